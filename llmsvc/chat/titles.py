"""Titles that the model itself makes of a chat's first exchange, while nobody waits for it."""

import asyncio
import logging
import re
from typing import Any

from llmsvc.chat import branches
from llmsvc.chat.sessions import Sessions
from llmsvc.chat.transfer import new_id
from llmsvc.engine import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from llmsvc.engine.request import Source
from llmsvc.errors import LlmsvcError
from llmsvc.models.pool import ModelPool
from llmsvc.models.pooled import PooledModel
from llmsvc.store.database import Database

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
"""How long nothing must run before a title is made."""
_LONGEST = 60


class Titles:
    """One request at a time, given up as soon as somebody asks something. Lives on the event loop."""

    def __init__(self, database: Database, sessions: Sessions, pool: ModelPool) -> None:
        self._db, self._sessions, self._pool = database, sessions, pool
        self._wanted: dict[str, str] = {}
        self._idle = asyncio.Event()
        self._disturbed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def want(self, session_id: str, model: str) -> None:
        """Make a title for a chat that has one exchange and was not named by its user."""
        self._wanted[session_id] = model
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
            session_id, model = next(iter(self._wanted.items()))
            try:
                if await self._entitle(session_id, model):
                    self._wanted.pop(session_id, None)
            except LlmsvcError as error:  # deleted meanwhile, or the disk is full: the first line stays its title
                log.info("%s", error)
                self._wanted.pop(session_id, None)

    async def _entitle(self, session_id: str, model: str) -> bool:
        """False when it was disturbed and is to be tried again."""
        pooled = self._pool.ready(model)
        if pooled is None:
            return True
        try:
            return await self._entitle_by(pooled, session_id)
        finally:
            self._pool.release(pooled)

    async def _entitle_by(self, pooled: PooledModel, session_id: str) -> bool:
        with self._db.session_rows(session_id, "messages") as rows:
            messages = branches.shown(rows, 3)
        wanted = self._db.session(session_id)["auto_title"] and len(messages) == 2
        if not wanted or pooled.loaded is None:
            return True
        question, answer = (row["content"] for row in messages)
        tokenizer = pooled.loaded.tokenizer
        chat = []
        for asked, answered, title in (*_EXAMPLES, (question[:600], answer[:200], "")):
            chat.append({"role": "user", "content": _PROMPT.format(question=asked, answer=answered)})
            chat.append({"role": "assistant", "content": title})
        chat.pop()
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        text = await self._ask(pooled.engine, tuple(tokens), tuple(chat))
        if text is None:
            return False
        if title := clean_title(text):
            self._sessions.entitle(session_id, title)
        return True

    async def _ask(self, engine: Any, tokens: tuple[int, ...], source: Source) -> str | None:
        """The model's words, or None when it was disturbed."""
        loop, pieces = asyncio.get_running_loop(), list[str]()
        over: asyncio.Future[Any] = loop.create_future()

        def receive(event: TokenEvent) -> None:
            pieces.append(event.text)
            if event.finish_reason is not None and not over.done():
                over.set_result(event.finish_reason)

        sampling = SamplingParams(temperature=0, max_tokens=24, stop=("\n",))

        def deliver(event: TokenEvent) -> None:
            loop.call_soon_threadsafe(receive, event)

        request = GenerationRequest(new_id(), tokens, sampling, deliver, source=source)
        engine.submit(request)
        disturbed: asyncio.Future[Any] = asyncio.ensure_future(self._disturbed.wait())
        try:
            await asyncio.wait({over, disturbed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            disturbed.cancel()
            if not over.done():
                engine.cancel(request.id)
        if not over.done() or over.result() is FinishReason.CANCELLED:
            return None
        return "".join(pieces) if over.result() is FinishReason.STOP else ""  # one that had no end is no title


_PROMPT = "Write a title of two to six words for this conversation:\n\nQuestion: {question}\n\nAnswer: {answer}"
_EXAMPLES = (  # small models need to be shown
    ("How do I sort a list of numbers in Python?", "Use sorted().", "Sorting Lists in Python"),
    ("My cat does not eat since yesterday, what could it be?", "There are many causes.", "Cat Not Eating"),
    ("Write a poem on autumn", "Leaves of gold drift down.", "Autumn Poem"),
)


def clean_title(text: str) -> str:
    """A model's words as a title, or "" when they are none."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = re.sub(r"^\W*(?:title|conversation title)\s*[:\-]\s*", "", line, flags=re.IGNORECASE)
    line = " ".join(line.strip(" \t\"'`*#_“”‘’").rstrip(".:;,").split())
    return line if 2 < len(line) <= _LONGEST and not re.search(r"[<>{}]", line) else ""


def first_line(text: str) -> str:
    """A title until the model makes one."""
    line = " ".join(text.split())
    return line if len(line) <= 48 else line[:47].rstrip() + "…"
