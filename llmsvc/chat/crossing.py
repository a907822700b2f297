"""The way of tokens from the engines' threads to the event loop."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable

from llmsvc.chat.meter import Meter, Reading
from llmsvc.engine import TokenEvent

log = logging.getLogger(__name__)

CROSSING_SECONDS = 0.066
"""Two tokens of an answer that comes at 30 in a second."""


class Crossing:
    """Where events pass from the engines' threads to the event loop: together, at most once in CROSSING_SECONDS.

    Waking a loop costs as much as sending a frame. So while tokens come fast nobody wakes it: it looks by itself, and
    stops when it finds nothing. The first event of an answer and its last do not wait.
    """

    def __init__(self) -> None:
        self._arrived: deque[tuple[Callable[[TokenEvent], None], TokenEvent]] = deque()
        self._lock = threading.Lock()  # several engines deliver at once
        self._coming = False
        """Whether the loop will look without being woken."""
        self._ticking: asyncio.TimerHandle | None = None
        self._crossed = 0.0
        self.meters: dict[str, Meter] = {}
        """By model: what passed here."""

    def to(self, receive: Callable[[TokenEvent], None], model: str, prompt_tokens: int) -> Callable[[TokenEvent], None]:
        """What an engine may call on its thread so that ``receive`` is called on this loop, in order."""
        loop = asyncio.get_running_loop()
        reading = Reading(self.meters.setdefault(model, Meter()), prompt_tokens)

        def deliver(event: TokenEvent) -> None:
            reading.take(event)
            urgent = event.tokens < 2 or event.finish_reason is not None
            with self._lock:
                self._arrived.append((receive, event))
                coming, self._coming = self._coming, True
            if urgent or not coming:
                loop.call_soon_threadsafe(self._woken, loop, urgent)

        return deliver

    def _woken(self, loop: asyncio.AbstractEventLoop, urgent: bool) -> None:
        since = loop.time() - self._crossed
        due = since >= CROSSING_SECONDS
        if self._ticking is None and since < 2 * CROSSING_SECONDS:
            self._ticking = loop.call_later(CROSSING_SECONDS - (0 if due else since), self._tick, loop)
        if urgent or due:
            self._cross(loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ticking = loop.call_later(CROSSING_SECONDS, self._tick, loop) if self._arrived else None
        self._cross(loop)

    def _cross(self, loop: asyncio.AbstractEventLoop) -> None:
        self._crossed = loop.time()
        with self._lock:
            arrived, self._arrived = self._arrived, deque()
            self._coming = self._ticking is not None
        for receive, event in arrived:
            try:
                receive(event)
            except Exception:  # one answer's trouble must not cost the others their tokens
                log.exception("an event was lost")
