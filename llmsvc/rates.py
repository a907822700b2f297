"""How much each owner may ask for: token buckets, filled through a minute. https://en.wikipedia.org/wiki/Token_bucket"""

import math
import time
from threading import Lock

from llmsvc.errors import TooMany

GUESTS_TOGETHER = 10
"""Guests' allowances that all guests share: whoever drops the cookie is another guest."""
_MOST_KEPT = 10_000


class Rates:
    """Of one kind of thing. Safe from any thread."""

    def __init__(self, what: str, users: float, guests: float) -> None:
        """``what`` is counted, as the refused are told; so many a minute, 0 for any number."""
        self._what, self._users, self._guests = what, users, guests
        self._kept: dict[str, tuple[float, float]] = {}
        self._lock = Lock()

    def take(self, owner: str, amount: float = 1.0) -> None:
        """Raises TooMany, with nothing taken, when that is more than is left."""
        guest = owner.startswith("guest:")
        most = self._guests if guest else self._users
        if not most:
            return
        with self._lock:
            now = time.monotonic()
            wanted = {owner: most, **({"guests": GUESTS_TOGETHER * most} if guest else {})}
            left = {name: self._left(name, of, now) - amount for name, of in wanted.items()}
            for name, of in wanted.items():
                if left[name] < 0:
                    wait = min(60, math.ceil(-60 * left[name] / of))
                    raise TooMany(f"This is more than {most:,.0f} {self._what} a minute. Wait {wait} seconds.", wait)
            self._kept.update((name, (kept, now)) for name, kept in left.items())
            if len(self._kept) > _MOST_KEPT:  # what is full again says nothing
                self._kept = {name: (kept, at) for name, (kept, at) in self._kept.items() if now - at < 60}

    def _left(self, name: str, most: float, now: float) -> float:
        kept, at = self._kept.get(name, (most, now))
        return min(most, kept + most * (now - at) / 60)
