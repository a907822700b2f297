"""The way of tokens from the engines' threads to the event loop."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable

from llmsvc.chat.meter import Meter, Reading
from llmsvc.engine import TokenEvent

log = logging.getLogger(__name__)

CROSSING_SECONDS = 0.02


class Crossing:
    """Where events pass from the engines' threads to the event loop: together, at most once in CROSSING_SECONDS.

    Waking a loop costs as much as sending a frame.
    """

    def __init__(self) -> None:
        self._arrived: deque[tuple[Callable[[TokenEvent], None], TokenEvent]] = deque()
        self._lock = threading.Lock()  # several engines deliver at once
        self._coming = False
        self._crossed = 0.0
        self.meters: dict[str, Meter] = {}
        """By model: what passed here."""

    def to(self, receive: Callable[[TokenEvent], None], model: str, prompt_tokens: int) -> Callable[[TokenEvent], None]:
        """What an engine may call on its thread so that ``receive`` is called on this loop, in order."""
        loop = asyncio.get_running_loop()
        reading = Reading(self.meters.setdefault(model, Meter()), prompt_tokens)

        def deliver(event: TokenEvent) -> None:
            reading.take(event)
            with self._lock:
                self._arrived.append((receive, event))
                coming, self._coming = self._coming, True
            if not coming:
                loop.call_soon_threadsafe(self._soon, loop)

        return deliver

    def _soon(self, loop: asyncio.AbstractEventLoop) -> None:
        wait = self._crossed + CROSSING_SECONDS - loop.time()
        if wait > 0:
            loop.call_later(wait, self._cross, loop)
        else:
            self._cross(loop)

    def _cross(self, loop: asyncio.AbstractEventLoop) -> None:
        self._crossed = loop.time()
        with self._lock:
            arrived, self._arrived = self._arrived, deque()
            self._coming = False
        for receive, event in arrived:
            try:
                receive(event)
            except Exception:  # one answer's trouble must not cost the others their tokens
                log.exception("an event was lost")
