"""The Anthropic API: messages. https://docs.anthropic.com/en/api/messages"""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from llmsvc.chat.completions import Answer, Piece, Usage
from llmsvc.chat.transfer import new_id
from llmsvc.formats.tools import ToolCall
from llmsvc.http.answers import WAITING, data, stream, while_there, whole
from llmsvc.http.anthropic_models import CountRequest, MessagesRequest
from llmsvc.http.identity import owner_of
from llmsvc.http.thinking import signature
from llmsvc.service import Service

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def add_routes(router: APIRouter, service: Service) -> None:
    @router.post("/v1/messages")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """An answer to messages; with the header X-LLMSVC-Session, within that chat."""
        shown = body.thinking is None or body.thinking.display != "omitted"
        if body.stream:
            return await stream(service, request, body.ask(), lambda answer: _events(answer, shown))
        answered = await whole(service, request, body.ask())
        (choice,) = answered.choices
        content = [_thinking_block(choice.reasoning, shown)] if choice.reasoning else []
        content += [{"type": "text", "text": choice.text}] if choice.text or not choice.calls else []
        content += [_call_block(call, json.loads(call.arguments)) for call in choice.calls]
        found = {**_message(answered.model, content), **_ended(choice.finish, choice.stop)}
        return JSONResponse({**found, "usage": _usage(answered.usage)}, headers=answered.headers)

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountRequest, request: Request) -> dict[str, int]:
        """How many tokens the messages would be."""
        owner_of(request)
        return {"input_tokens": await while_there(request, service.completions.count(body.ask()))}


def _message(model: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": f"msg_{new_id()}", "type": "message", "role": "assistant", "model": model, "content": content}


def _call_block(call: ToolCall, given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given}


def _thinking_block(reasoning: str, shown: bool) -> dict[str, Any]:
    return {"type": "thinking", "thinking": reasoning if shown else "", "signature": signature(reasoning)}


def _ended(finish: str, stop: str) -> dict[str, Any]:
    return {"stop_reason": "stop_sequence" if stop else _REASONS.get(finish), "stop_sequence": stop or None}


def _usage(usage: Usage) -> dict[str, Any]:
    """What was cached is no part of the input there."""
    cached = {"cache_read_input_tokens": usage.cached, "cache_creation_input_tokens": 0}
    details = {"output_tokens_details": {"thinking_tokens": usage.reasoning}}
    return {"input_tokens": usage.prompt - usage.cached, "output_tokens": usage.completion, **cached, **details}


async def _events(answer: Answer, shown: bool) -> AsyncIterator[str]:
    """https://docs.anthropic.com/en/docs/build-with-claude/streaming"""
    begun = {**_message(answer.model, []), "stop_reason": None, "stop_sequence": None}
    yield _event("message_start", message={**begun, "usage": _usage(answer.usage)})
    blocks, ended = _Blocks(shown), _ended("stop", "")
    async for piece in answer.pieces():
        if not piece:
            yield WAITING
        for event in blocks.of(piece):
            yield event
        if piece.finish:
            ended = _ended(piece.finish, piece.stop)
    for event in blocks.end():
        yield event
    yield _event("message_delta", delta=ended, usage=_usage(answer.usage))
    yield _event("message_stop")


def _event(name: str, **fields: Any) -> str:
    return data({"type": name, **fields}, name)


class _Blocks:
    """The blocks of one answer, as events. ``shown``: whether the reasoning is."""

    def __init__(self, shown: bool) -> None:
        self._shown, self._number, self._kind, self._reasoning = shown, 0, "", ""

    def of(self, piece: Piece) -> Iterator[str]:
        if piece.reasoning:
            yield from self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            self._reasoning += piece.reasoning
            if self._shown:
                yield self._delta(type="thinking_delta", thinking=piece.reasoning)
        if piece.text:
            yield from self._open("text", {"type": "text", "text": ""})
            yield self._delta(type="text_delta", text=piece.text)
        for call in piece.calls:
            yield from self._open("tool_use", _call_block(call, {}))
            yield self._delta(type="input_json_delta", partial_json=call.arguments)
            yield from self.end()

    def end(self) -> Iterator[str]:
        """Of the block that is open."""
        if self._kind == "thinking":
            yield self._delta(type="signature_delta", signature=signature(self._reasoning))
            self._reasoning = ""
        if self._kind:
            yield _event("content_block_stop", index=self._number)
            self._number, self._kind = self._number + 1, ""

    def _open(self, kind: str, block: dict[str, Any]) -> Iterator[str]:
        if kind != self._kind:
            yield from self.end()
            self._kind = kind
            yield _event("content_block_start", index=self._number, content_block=block)

    def _delta(self, **delta: Any) -> str:
        return _event("content_block_delta", index=self._number, delta=delta)
