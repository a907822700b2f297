"""How much of a prompt goes into a step on a CPU, from how fast it was read lately."""

from collections.abc import Callable

from llmsvc.engine.compiled import CHUNK

_TIMED, _QUICK = 128, 300.0
"""Tokens: what is shorter says little of how fast prompts are read. And tokens per second."""
_STEP_SECONDS = 2.0
"""How long a prompt's piece may take, for who stops waits for its end."""
LEAST = 64
"""Tokens that it has at least."""


class Pace:
    """Measures how fast prompts are read. A GPU has none: there it is no matter."""

    def __init__(self, window: int, sized: Callable[[int], None] | None) -> None:
        """``sized`` is told how many tokens a piece is to have; None where that is fixed."""
        self._window, self._sized = window, sized
        self.reading = 0.0
        """Tokens of prompts per second, lately; 0 before any was read."""
        self._timed = False
        """Whether a piece was read that is long enough to say it."""

    def measure(self, speed: Callable[[int], float], asked: Callable[[], bool]) -> None:
        """By a few tokens, and where those took no time by more. Who waits already (``asked``) is not kept."""
        for length in (min(_TIMED // 4, self._window), min(_TIMED, self._window)):
            if asked() or 0 < self.reading < _QUICK:
                return
            self._reads(speed(length))

    def took(self, tokens: int, seconds: float) -> None:
        """So many tokens were read, some of them decoded, in so long."""
        speed, long = tokens / seconds, tokens >= _TIMED
        if long or speed > self.reading:  # in small pieces it reads no slower
            self._reads(self.reading + (speed - self.reading) * (0.3 if self._timed else 1.0))
            self._timed = self._timed or long

    def _reads(self, speed: float) -> None:
        """Have a prompt's pieces fit the speed at which it is read."""
        self.reading = speed
        if self._sized is not None:
            most = max(LEAST, min(CHUNK, int(speed * _STEP_SECONDS)))
            self._sized(1 << most.bit_length() - 1)
