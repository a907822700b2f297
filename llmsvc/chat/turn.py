"""A turn: one answer being generated. The server owns it; clients only attach and watch."""

import asyncio
import time
from typing import Any

from llmsvc.chat.transfer import new_id
from llmsvc.engine import FinishReason, TokenEvent
from llmsvc.errors import LlmsvcError
from llmsvc.logs import REQUEST
from llmsvc.store.database import Row

_STATES = {
    FinishReason.STOP: "done",
    FinishReason.LENGTH: "done",
    FinishReason.CANCELLED: "stopped",
    FinishReason.INTERRUPTED: "interrupted",
    FinishReason.ERROR: "failed",
}


class Watch:
    """One watcher's place to wait. Used on the event loop only."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.closed = False

    def wake(self) -> None:
        self._event.set()

    def close(self) -> None:
        """End the watching; the turn goes on."""
        self.closed = True
        self.wake()

    async def wait(self, timeout: float | None = None) -> bool:
        """Until something changed; false when nothing did for ``timeout`` seconds."""
        happened = await within(timeout, self._event)
        self._event.clear()
        return happened


class Turn:
    """One answer. Written on the event loop only; any number of watchers attach to it.

    ``outcome`` is how its generation ended; ``state`` follows once that is on the disk, and then it is ``finished``.
    """

    def __init__(self, session_id: str, owner: str, message_id: str, id_: str = "") -> None:
        self.id = id_ or new_id()
        self.session_id, self.owner, self.message_id = session_id, owner, message_id
        self.text = ""
        self.tokens_before = 0
        self.state = "queued"
        self.outcome = ""
        self.note = ""
        self.error: LlmsvcError | None = None
        self.usage: Row = {}
        self.context: Row = {}
        self.sources: list[Row] = []
        self.engine: Any = None
        self.request = REQUEST.get()
        self.begun = self.started = time.monotonic()
        self.watches: set[Watch] = set()
        self._first = 0.0
        self._over, self._announced = asyncio.Event(), asyncio.Event()

    @classmethod
    def stored(cls, session_id: str, owner: str, row: Row) -> "Turn":
        """The finished turn that left an answer."""
        turn = cls(session_id, owner, row["id"], row["turn_id"])
        turn.text, turn.state, turn.usage, turn.context = row["content"], row["state"], row["usage"], row["context"]
        turn.sources = row["sources"]
        turn.error = LlmsvcError(row["error"]) if row["error"] else None
        turn.outcome = row["state"]
        turn._announced.set()
        return turn

    @property
    def finished(self) -> bool:
        return self._announced.is_set()

    def status(self) -> Row:
        """The ``status`` of the contract's stream."""
        return {
            "turn_id": self.id,
            "state": self.state,
            "offset": len(self.text),
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

    def receive(self, event: TokenEvent) -> None:
        """Take an event of the engine."""
        if self.outcome:
            return
        now = time.monotonic()
        self._first = self._first or now
        self.text += event.text
        self.usage = {
            "prompt_tokens": event.prompt_tokens or self.context.get("prompt", 0),
            "completion_tokens": self.tokens_before + event.tokens,
            "cached_tokens": event.cached_tokens,
            "ttft_seconds": round(self._first - self.started, 3),
            # The first token belongs to the prefill, so speed counts the intervals behind it.
            "tokens_per_second": round((event.tokens - 1) / (now - self._first), 1) if now > self._first else 0.0,
            "finish_reason": event.finish_reason or "",
        }
        self.state = "running"
        if event.finish_reason is not None:
            self.end(_STATES[event.finish_reason], event.error)
        self.changed()

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
