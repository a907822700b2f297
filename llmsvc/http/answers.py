"""Answers for every API: whole, or as events while they are made. Who goes away takes theirs along."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from llmsvc.chat.completions import Answer, Ask, TokenLogprob, Usage
from llmsvc.errors import LlmsvcError
from llmsvc.formats.tools import ToolCall
from llmsvc.http import errors
from llmsvc.http.identity import owner_of
from llmsvc.service import Service

Result = TypeVar("Result")
Frames = Callable[[Answer], AsyncIterator[str]]

SESSION = "X-LLMSVC-Session"
WAITING = ": waiting\n\n"
"""A comment, by the specification: clients skip it."""


@dataclass
class Whole:
    """One choice, complete."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str = ""
    stop: str = ""


@dataclass(frozen=True)
class Answered:
    model: str
    session_id: str
    usage: Usage
    choices: list[Whole]

    @property
    def headers(self) -> dict[str, str]:
        return session_header(self.session_id)


def session_header(session_id: str) -> dict[str, str]:
    """What tells a client to which chat its answer belongs."""
    return {SESSION: session_id} if session_id else {}


async def whole(service: Service, request: Request, ask: Ask) -> Answered:
    """The complete answer. Raises LlmsvcError, or ClientDisconnect when nobody waits for it any more."""

    async def work() -> Answered:
        async with _open(service, request, ask) as answer:
            choices: dict[int, Whole] = {}
            async for piece in answer.pieces():
                if not piece:
                    continue
                choice = choices.setdefault(piece.choice, Whole())
                choice.text += piece.text
                choice.reasoning += piece.reasoning
                choice.calls += piece.calls
                choice.logprobs += piece.logprobs
                choice.finish, choice.stop = piece.finish, piece.stop
            return Answered(answer.model, answer.session_id, answer.usage, [choices[n] for n in sorted(choices)])

    return await while_there(request, work())


async def stream(service: Service, request: Request, ask: Ask, frames: Frames) -> StreamingResponse:
    """Server-sent events. What can be refused is refused before the first one: raises LlmsvcError."""
    stack = AsyncExitStack()
    answer = await while_there(request, stack.enter_async_context(_open(service, request, ask)))
    return _Events(_with_errors(frames(answer)), stack, session_header(answer.session_id))


def data(value: Any, event: str = "") -> str:
    """One event."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"event: {event}\ndata: {text}\n\n" if event else f"data: {text}\n\n"


async def while_there(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Do it, unless the client goes away: then it is cancelled. Raises ClientDisconnect."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def _open(service: Service, request: Request, ask: Ask) -> AbstractAsyncContextManager[Answer]:
    owner = owner_of(request)
    if session_id := request.headers.get(SESSION):
        return service.completions.ask_in(owner, session_id, ask)
    return service.completions.ask(owner, ask)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _with_errors(frames: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        async for frame in frames:
            yield frame
    except LlmsvcError as error:
        yield errors.event(error)


class _Events(StreamingResponse):
    """Leaves the answer when it was sent, or when its client is gone."""

    def __init__(self, frames: AsyncIterator[str], stack: AsyncExitStack, headers: dict[str, str]) -> None:
        headers |= {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(frames, headers=headers, media_type="text/event-stream")
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            await super().__call__(scope, receive, send)
