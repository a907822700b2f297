"""What models do for chats while nobody waits for them, given up as soon as somebody asks something."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from llmsvc.chat import options
from llmsvc.chat.asking import Manner, reader, rendered, request
from llmsvc.chat.context import Prompt
from llmsvc.chat.thought import read
from llmsvc.chat.transfer import new_id
from llmsvc.engine import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from llmsvc.errors import LlmsvcError
from llmsvc.formats import templates
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
        self, pooled: PooledModel, chat: Sequence[Row], sampling: SamplingParams
    ) -> tuple[str, FinishReason] | None:
        """The model's words, without reasoning, and how they ended, or None when it was disturbed."""
        loaded = pooled.loaded
        assert loaded is not None
        prompt = await asyncio.to_thread(rendered, loaded.tokenizer, chat, at_once(loaded.tokenizer))
        tokens = await asyncio.to_thread(templates.encode, loaded.tokenizer, prompt)
        said, pieces = reader(prompt), list[str]()

        def receive(event: TokenEvent) -> None:
            pieces.append(read(said, event).text)

        make = partial(request, new_id(), loaded, tokens, sampling, source=tuple(chat), prompt=prompt)
        end = await self._run(pooled, make, receive)
        return None if end is None else ("".join(pieces), end)

    async def read_ahead(self, pooled: PooledModel, prompt: Prompt) -> bool:
        """Have the model read a prompt that will come; false when it was disturbed."""
        loaded = pooled.loaded
        assert loaded is not None
        one = SamplingParams(temperature=0, max_tokens=1)
        make = partial(request, new_id(), loaded, prompt.tokens, one, source=prompt.messages)
        return await self._run(pooled, make, lambda _: None) is not None

    async def _run(
        self,
        pooled: PooledModel,
        make: Callable[[Callable[[TokenEvent], None]], GenerationRequest],
        receive: Callable[[TokenEvent], None],
    ) -> FinishReason | None:
        """To its end, which is None when it was disturbed. ``receive``: on the event loop."""
        loop = asyncio.get_running_loop()
        over: asyncio.Future[FinishReason] = loop.create_future()

        def take(event: TokenEvent) -> None:
            receive(event)
            if event.finish_reason is not None and not over.done():
                over.set_result(event.finish_reason)

        def deliver(event: TokenEvent) -> None:
            loop.call_soon_threadsafe(take, event)

        asked = make(deliver)
        pooled.engine.submit(asked)
        disturbed: asyncio.Future[Any] = asyncio.ensure_future(self._disturbed.wait())
        try:
            await asyncio.wait({over, disturbed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            disturbed.cancel()
            if not over.done():
                pooled.engine.cancel(asked.id)
        ended = over.done() and over.result() is not FinishReason.CANCELLED
        return over.result() if ended else None


def at_once(tokenizer: Any) -> Manner:
    """Answers without reasoning, which nobody would read: it is switched off, or ended before it begins."""
    return Manner(options.thinking({"thinking": "off"}, templates.can_think(tokenizer)), bound=True)
