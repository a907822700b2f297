"""What the engines delivered, in plain numbers: counted for each token, read at a scrape."""

import time
from bisect import bisect_left
from collections import Counter
from itertools import accumulate

from llmsvc.engine import TokenEvent

BOUNDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Of the histograms, in seconds."""


class Histogram:
    """Written by one thread, so it needs no lock: prometheus-client's own costs more than the rest of a reading."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Bound and how many were no larger, as Prometheus takes them."""
        return list(zip([*map(str, BOUNDS), "+Inf"], accumulate(self._counts), strict=True))


class Meter:
    """Of one model; written by its engine's thread."""

    def __init__(self) -> None:
        self.finished: Counter[str] = Counter()
        self.tokens = self.prompt_tokens = self.cached_tokens = 0
        self.first, self.between = Histogram(), Histogram()


class Reading:
    """Counts the events of one answer."""

    def __init__(self, meter: Meter, prompt_tokens: int) -> None:
        self._meter, self._prompt_tokens = meter, prompt_tokens
        self._tokens, self._last = 0, time.monotonic()

    def take(self, event: TokenEvent) -> None:
        meter, now = self._meter, time.monotonic()
        if new := event.tokens - self._tokens:
            (meter.between if self._tokens else meter.first).add(now - self._last)
            meter.tokens += new
            self._tokens, self._last = event.tokens, now
        if event.finish_reason is not None:
            meter.finished[event.finish_reason] += 1
            meter.prompt_tokens += event.prompt_tokens or self._prompt_tokens
            meter.cached_tokens += event.cached_tokens
