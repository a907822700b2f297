"""What models do for chats while nobody waits for them, given up as soon as somebody asks something."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from llmsvc.chat.transfer import new_id
from llmsvc.engine import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from llmsvc.errors import LlmsvcError
from llmsvc.models.pool import ModelPool
from llmsvc.models.pooled import PooledModel
from llmsvc.store.database import Row

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
"""How long nothing must run before anything is begun."""

Job = Callable[[PooledModel], Awaitable[bool]]
"""With the model, lent; false when it was disturbed and is to be tried again."""


class Idle:
    """One job at a time. Lives on the event loop."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool
        self._wanted: dict[str, tuple[str, Job]] = {}
        self._idle = asyncio.Event()
        self._disturbed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def want(self, name: str, model: str, job: Job) -> None:
        """Do ``job``, in place of one of that name that was not done yet; without the model, nothing."""
        self._wanted[name] = (model, job)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())

    def busy(self) -> None:
        self._idle.clear()
        self._disturbed.set()

    def idle(self) -> None:
        self._idle.set()
        self._disturbed.clear()

    async def close(self) -> None:
        self._wanted.clear()
        self.busy()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while self._wanted:
            await self._idle.wait()
            try:
                async with asyncio.timeout(PAUSE_SECONDS):
                    await self._disturbed.wait()
                continue
            except TimeoutError:
                pass
            name, wanted = next(iter(self._wanted.items()))
            try:
                done = await self._do(*wanted)
            except LlmsvcError as error:  # the chat was deleted meanwhile, or the disk is full
                log.info("%s", error)
                done = True
            if done and self._wanted.get(name) is wanted:
                del self._wanted[name]

    async def _do(self, model: str, job: Job) -> bool:
        pooled = self._pool.ready(model)
        if pooled is None:
            return True
        try:
            return pooled.loaded is None or await job(pooled)
        finally:
            self._pool.release(pooled)

    async def ask(
        self, pooled: PooledModel, chat: Sequence[Row], sampling: SamplingParams, tokens: Sequence[int] = ()
    ) -> tuple[str, FinishReason] | None:
        """The model's words and how they ended, or None when it was disturbed. ``tokens``: of the chat, if known."""
        assert pooled.loaded is not None
        loop, pieces = asyncio.get_running_loop(), list[str]()
        over: asyncio.Future[Any] = loop.create_future()

        def receive(event: TokenEvent) -> None:
            pieces.append(event.text)
            if event.finish_reason is not None and not over.done():
                over.set_result(event.finish_reason)

        def deliver(event: TokenEvent) -> None:
            loop.call_soon_threadsafe(receive, event)

        prompt = tuple(tokens or await asyncio.to_thread(counted, pooled.loaded.tokenizer, chat))
        request = GenerationRequest(new_id(), prompt, sampling, deliver, source=tuple(chat))
        pooled.engine.submit(request)
        disturbed: asyncio.Future[Any] = asyncio.ensure_future(self._disturbed.wait())
        try:
            await asyncio.wait({over, disturbed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            disturbed.cancel()
            if not over.done():
                pooled.engine.cancel(request.id)
        if not over.done() or over.result() is FinishReason.CANCELLED:
            return None
        return "".join(pieces), over.result()


def counted(tokenizer: Any, chat: Sequence[Row]) -> list[int]:
    """A chat's tokens, up to where its answer begins."""
    rendered = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)
    tokens: list[int] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return tokens
