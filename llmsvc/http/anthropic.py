"""The Anthropic API: messages. https://docs.anthropic.com/en/api/messages"""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from llmsvc.chat.completions import Answer, Usage
from llmsvc.chat.tools import ToolCall
from llmsvc.chat.transfer import new_id
from llmsvc.http.answers import WAITING, data, stream, while_there, whole
from llmsvc.http.anthropic_models import CountRequest, MessagesRequest
from llmsvc.http.identity import owner_of
from llmsvc.service import Service

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def add_routes(router: APIRouter, service: Service) -> None:
    @router.post("/v1/messages")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """An answer to messages; with the header X-LLMSVC-Session, within that chat."""
        if body.stream:
            return await stream(service, request, body.ask(), _events)
        answered = await whole(service, request, body.ask())
        (choice,) = answered.choices
        text: list[dict[str, Any]] = [{"type": "text", "text": choice.text}] if choice.text or not choice.calls else []
        content = text + [_call_block(call, json.loads(call.arguments)) for call in choice.calls]
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


def _ended(finish: str, stop: str) -> dict[str, Any]:
    return {"stop_reason": "stop_sequence" if stop else _REASONS.get(finish), "stop_sequence": stop or None}


def _usage(usage: Usage) -> dict[str, int]:
    """What was cached is no part of the input there."""
    cached = {"cache_read_input_tokens": usage.cached, "cache_creation_input_tokens": 0}
    return {"input_tokens": usage.prompt - usage.cached, "output_tokens": usage.completion, **cached}


async def _events(answer: Answer) -> AsyncIterator[str]:
    """https://docs.anthropic.com/en/docs/build-with-claude/streaming"""

    def event(name: str, **fields: Any) -> str:
        return data({"type": name, **fields}, name)

    begun = {**_message(answer.model, []), "stop_reason": None, "stop_sequence": None}
    yield event("message_start", message={**begun, "usage": _usage(answer.usage)})
    number, writing, ended = 0, False, _ended("stop", "")
    async for piece in answer.pieces():
        if not piece:
            yield WAITING
        if piece.text:
            if not writing:
                writing = True
                yield event("content_block_start", index=number, content_block={"type": "text", "text": ""})
            yield event("content_block_delta", index=number, delta={"type": "text_delta", "text": piece.text})
        for call in piece.calls:
            if writing:
                yield event("content_block_stop", index=number)
                number, writing = number + 1, False
            yield event("content_block_start", index=number, content_block=_call_block(call, {}))
            delta = {"type": "input_json_delta", "partial_json": call.arguments}
            yield event("content_block_delta", index=number, delta=delta)
            yield event("content_block_stop", index=number)
            number += 1
        if piece.finish:
            ended = _ended(piece.finish, piece.stop)
    if writing:
        yield event("content_block_stop", index=number)
    yield event("message_delta", delta=ended, usage=_usage(answer.usage))
    yield event("message_stop")
