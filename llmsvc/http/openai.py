"""The OpenAI API: models, chat completions and completions. https://platform.openai.com/docs/api-reference"""

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from llmsvc.chat.completions import Answer, TokenLogprob, Usage
from llmsvc.chat.transfer import new_id
from llmsvc.formats.tools import ToolCall
from llmsvc.http.answers import WAITING, Whole, data, stream, whole
from llmsvc.http.identity import owner_of
from llmsvc.http.openai_models import ChatRequest, CompletionRequest
from llmsvc.service import Service

DONE = "data: [DONE]\n\n"


def add_routes(router: APIRouter, service: Service) -> None:
    @router.get("/v1/models")
    def models(request: Request) -> dict[str, Any]:
        """What can be asked: models that are loaded or on the disk."""
        owner_of(request)
        rows = [_model_row(row) for row in service.completions.listed()]
        return {"object": "list", "data": rows, "has_more": False}

    @router.get("/v1/models/{model:path}")
    def model(model: str, request: Request) -> dict[str, Any]:
        """One of them."""
        owner_of(request)
        return _model_row(service.completions.check(model))

    @router.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """An answer to messages; with the header X-LLMSVC-Session, within that chat."""
        if body.stream:
            return await stream(service, request, body.ask(), lambda answer: _chat_chunks(answer, body))
        answered = await whole(service, request, body.ask())
        choices = [_chat_choice(number, choice, body.logprobs) for number, choice in enumerate(answered.choices)]
        found = {**_head("chat.completion", "chatcmpl", answered.model), "choices": choices}
        return JSONResponse({**found, "usage": usage_row(answered.usage)}, headers=answered.headers)

    @router.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """What comes behind a text."""
        if body.stream:
            return await stream(service, request, body.ask(), lambda answer: _text_chunks(answer, body))
        answered = await whole(service, request, body.ask())
        choices = [
            {"index": number, "text": choice.text, "logprobs": _text_logprobs(choice.logprobs, body.logprobs)}
            | {"finish_reason": choice.finish}
            for number, choice in enumerate(answered.choices)
        ]
        found = {**_head("text_completion", "cmpl", answered.model), "choices": choices}
        return JSONResponse({**found, "usage": usage_row(answered.usage)})


def _model_row(row: dict[str, Any]) -> dict[str, Any]:
    """In OpenAI's form, with what Anthropic's clients read and what one may want to know besides."""
    owner = row["id"].partition("/")[0] or "local"
    more = {"context_length": row["context"], "loaded": row["loaded"]}
    anthropics = {"type": "model", "display_name": row["id"], "created_at": "1970-01-01T00:00:00Z"}
    return {"id": row["id"], "object": "model", "created": 0, "owned_by": owner, **more, **anthropics}


def usage_row(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{new_id()}", "object": kind, "created": int(time.time()), "model": model}


# Chat completions


def _chat_choice(number: int, choice: Whole, with_logprobs: bool) -> dict[str, Any]:
    said = choice.text or (None if choice.calls else "")
    message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None}
    if choice.reasoning:
        message |= _reasoning(choice.reasoning)
    if choice.calls:
        message["tool_calls"] = [_call_row(call) for call in choice.calls]
    logprobs = _chat_logprobs(choice.logprobs) if with_logprobs else None
    return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}


async def _chat_chunks(answer: Answer, body: ChatRequest) -> AsyncIterator[str]:
    head, told, calls = _head("chat.completion.chunk", "chatcmpl", answer.model), set[int](), dict[int, int]()
    if body.with_usage:
        head["usage"] = None

    def chunk(choice: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> str:
        one = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return data({**head, "choices": [one]})

    async for piece in answer.pieces():
        if not piece:
            yield WAITING
            continue
        if piece.choice not in told:
            told.add(piece.choice)
            yield chunk(piece.choice, {"role": "assistant", "content": ""})
        if piece.reasoning:
            yield chunk(piece.choice, _reasoning(piece.reasoning))
        if piece.text or piece.logprobs:
            logprobs = _chat_logprobs(piece.logprobs) if body.logprobs else None
            yield chunk(piece.choice, {"content": piece.text}, logprobs=logprobs)
        for call in piece.calls:
            number = calls.get(piece.choice, 0)
            calls[piece.choice] = number + 1
            yield chunk(piece.choice, {"tool_calls": [{"index": number, **_call_row(call)}]})
        if piece.finish:
            yield chunk(piece.choice, {}, piece.finish)
    if body.with_usage:
        yield data({**head, "choices": [], "usage": usage_row(answer.usage)})
    yield DONE


def _reasoning(text: str) -> dict[str, str]:
    """No part of OpenAI's API: other servers call it by the one or the other name."""
    return {"reasoning_content": text, "reasoning": text}


def _call_row(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _chat_logprobs(found: Iterable[TokenLogprob]) -> dict[str, Any]:
    def row(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    content = [{**row(one.token, one.logprob), "top_logprobs": [row(*likely) for likely in one.top]} for one in found]
    return {"content": content, "refusal": None}


# Completions


async def _text_chunks(answer: Answer, body: CompletionRequest) -> AsyncIterator[str]:
    head, lengths = _head("text_completion", "cmpl", answer.model), dict[int, int]()
    if body.with_usage:
        head["usage"] = None
    async for piece in answer.pieces():
        if not piece:
            yield WAITING
            continue
        before = lengths.get(piece.choice, 0)
        logprobs = _text_logprobs(piece.logprobs, body.logprobs, before)
        lengths[piece.choice] = before + sum(len(one.token) for one in piece.logprobs)
        one = {"index": piece.choice, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish or None}
        yield data({**head, "choices": [one]})
    if body.with_usage:
        yield data({**head, "choices": [], "usage": usage_row(answer.usage)})
    yield DONE


def _text_logprobs(found: Sequence[TokenLogprob], wanted: int | None, start: int = 0) -> dict[str, Any] | None:
    """``start``: characters that came before."""
    if wanted is None:
        return None
    offsets = [start + sum(len(one.token) for one in found[:number]) for number in range(len(found))]
    return {
        "tokens": [one.token for one in found],
        "token_logprobs": [one.logprob for one in found],
        "top_logprobs": [dict(one.top) for one in found],
        "text_offset": offsets,
    }
