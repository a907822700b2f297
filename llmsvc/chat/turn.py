"""A turn: one answer being generated. The server owns it; clients only attach and watch."""

import asyncio
import logging
import time
from typing import Any

from llmsvc.chat.asking import reader
from llmsvc.chat.context import Prompt
from llmsvc.chat.thought import Thought, read
from llmsvc.chat.transfer import counted, new_id, parted
from llmsvc.engine import FinishReason, TokenEvent
from llmsvc.errors import LlmsvcError
from llmsvc.formats.said import Reader
from llmsvc.logs import REQUEST
from llmsvc.store.database import Row

log = logging.getLogger(__name__)

_STATES = {
    FinishReason.STOP: "done",
    FinishReason.LENGTH: "done",
    FinishReason.REPETITION: "done",
    FinishReason.CANCELLED: "stopped",
    FinishReason.INTERRUPTED: "interrupted",
    FinishReason.ERROR: "failed",
}

IDLE_SECONDS = 15.0
"""A watcher of an answer that waits gets the same frame again after so long: what is silent is cut by proxies."""


class Watch:
    """One watcher's place to wait. Used on the event loop only.

    It has one timer for many waits, since most end long before it: to make and cancel one costs as much as a frame.
    """

    def __init__(self) -> None:
        self._changed = False
        self._waiting: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0

    def wake(self) -> None:
        self._changed = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(True)

    async def wait(self) -> bool:
        """Until something changed; false when nothing did for IDLE_SECONDS."""
        if not self._changed:
            loop = asyncio.get_running_loop()
            self._waiting, self._until = loop.create_future(), loop.time() + IDLE_SECONDS
            self._timer = self._timer or loop.call_at(self._until, self._due, loop)
            await self._waiting
        happened, self._changed = self._changed, False
        return happened

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _due(self, loop: asyncio.AbstractEventLoop) -> None:
        late = self._until <= loop.time()
        self._timer = None if late else loop.call_at(self._until, self._due, loop)
        if late and self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(False)


class Turn:
    """One answer. Written on the event loop only; any number of watchers attach to it.

    ``outcome`` is how its generation ended; ``state`` follows once that is on the disk, and then it is ``finished``.
    """

    def __init__(self, session_id: str, owner: str, message_id: str, id_: str = "") -> None:
        self.id = id_ or new_id()
        self.session_id, self.owner, self.message_id = session_id, owner, message_id
        self.text = self.reasoning = ""
        self.tokens_before = 0
        self.thought = Thought()
        self.state = "queued"
        self.outcome = ""
        self.note = ""
        self.error: LlmsvcError | None = None
        self._usage: Row | None = {}
        self._last: TokenEvent | None = None
        self._reader: Reader | None = None
        self.context: Row = {}
        self.sources: list[Row] = []
        self.options: Row = {}
        self.engine: Any = None
        self.request = REQUEST.get()
        self.begun = self.started = time.monotonic()
        self.watches: set[Watch] = set()
        self._first = self._at = 0.0
        self._over, self._announced = asyncio.Event(), asyncio.Event()

    @classmethod
    def stored(cls, session_id: str, owner: str, row: Row) -> "Turn":
        """The finished turn that left an answer."""
        turn = cls(session_id, owner, row["id"], row["turn_id"])
        turn.reasoning, turn.text = parted(row)
        turn.state, turn._usage, turn.context = row["state"], row["usage"], row["context"]
        turn.sources = row["sources"]
        turn.error = LlmsvcError(row["error"]) if row["error"] else None
        turn.outcome = row["state"]
        turn._announced.set()
        return turn

    @property
    def usage(self) -> Row:
        """Tokens and seconds so far."""
        if self._usage is None and (event := self._last) is not None:
            seconds = self._at - self._first
            self._usage = {
                "prompt_tokens": event.prompt_tokens or self.context.get("prompt", 0),
                "completion_tokens": self.tokens_before + event.tokens,
                "cached_tokens": event.cached_tokens,
                "ttft_seconds": round(self._first - self.started, 3),
                # The first token belongs to the prefill, so speed counts the intervals behind it.
                "tokens_per_second": round((event.tokens - 1) / seconds, 1) if seconds > 0 else 0.0,
                "finish_reason": event.finish_reason or "",
                "reasoning_tokens": self.thought.tokens,
                "thinking_seconds": round(self.thought.seconds, 1),
            }
        return self._usage or {}

    @property
    def finished(self) -> bool:
        return self._announced.is_set()

    def status(self) -> Row:
        """The ``status`` of the contract's stream."""
        return {
            "turn_id": self.id,
            "state": self.state,
            "offset": len(self.text),
            "reasoning": self.reasoning,
            "usage": self.usage,
            "context": self.context,
            "sources": self.sources,
            "error": str(self.error or ""),
            "note": self.note,
        }

    def record(self) -> Row:
        """What the log says of it."""
        names = ("prompt_tokens", "completion_tokens", "cached_tokens", "ttft_seconds")
        return {
            "request": self.request,
            "turn": self.id,
            "owner": self.owner,
            "state": self.state,
            **{name: self.usage.get(name, 0) for name in names},
            "seconds": round(time.monotonic() - self.begun, 3),
        }

    def tell(self, note: str) -> None:
        """Say what it waits for. The same words again wake nobody, so that who watches hears that all is well."""
        if note != self.note:
            self.note = note
            self.changed()

    def changed(self) -> None:
        """Wake every watcher."""
        for watch in self.watches:
            watch.wake()

    def end(self, outcome: str, error: LlmsvcError | None = None) -> None:
        """Decide how the generation ended. The first to decide is right: a stop is not undone by a last token."""
        if not self.outcome:
            self.outcome, self.error = outcome, error
            self._over.set()

    def finish(self) -> None:
        """Announce the end, which is on the disk by now."""
        self.state = self.outcome
        self._announced.set()
        self.changed()

    def go_on(self, answer: Row, remote: bool) -> None:
        """With an answer that was cut, be it in its reasoning; other servers go on with words only."""
        usage = counted(answer["usage"])
        self.reasoning, self.text = parted(answer)
        if remote and not self.text:
            self.reasoning = ""
        self.sources, self.tokens_before = answer["sources"], usage.get("completion_tokens", 0)
        self.thought = Thought(usage.get("reasoning_tokens", 0), usage.get("thinking_seconds", 0.0))

    def prompted(self, prompt: Prompt) -> None:
        """Its prompt is there, and goes to the engine."""
        self.context, self.sources, self.state = prompt.ledger.row(), list(prompt.sources), "prefill"
        self.note = "; ".join(prompt.ledger.left_out)
        self._reader = reader(prompt.rendered)
        self.thought.begin(prompt.rendered.opened)
        self.started = time.monotonic()
        self.changed()

    def receive(self, event: TokenEvent) -> None:
        """Take an event of the engine. What cannot be read fails the turn, so that nobody waits for ever."""
        if self.outcome:
            return
        try:
            self._take(event)
        except Exception as error:
            log.exception("an answer could not be read")
            self.end("failed", LlmsvcError(f"The answer failed: {error}"))
        self.changed()

    def _take(self, event: TokenEvent) -> None:
        self._at = time.monotonic()
        self._first = self._first or self._at
        self._last, self._usage = event, None
        said = read(self._reader, event)
        self.thought.take(said, event.tokens, self._at)
        self.text += said.text
        self.reasoning += said.reasoning
        self.state = "running"
        if event.finish_reason is not None:
            self.end(_STATES[event.finish_reason], event.error)

    async def over(self, timeout: float | None = None) -> bool:
        """Whether the generation ended within ``timeout`` seconds."""
        return await within(timeout, self._over)

    async def pause(self, seconds: float) -> None:
        """Sleep, but not past the announcement of the end."""
        await within(seconds, self._announced)


def can_continue(last: Row) -> bool:
    """Whether the last message is an answer that was cut."""
    cut = last["state"] in ("interrupted", "stopped") or last["usage"].get("finish_reason") == "length"
    return last["role"] == "assistant" and cut


async def within(timeout: float | None, event: asyncio.Event) -> bool:
    """Whether it happened within ``timeout`` seconds."""
    try:
        async with asyncio.timeout(timeout):
            return await event.wait()
    except TimeoutError:
        return False
