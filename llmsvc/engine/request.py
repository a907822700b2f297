"""What crosses the engine's door: a request goes in, token events come out."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen.

    ``temperature`` 0 is greedy; ``top_p`` 1 and ``top_k`` 0 switch those filters off. ``seed`` makes
    a request repeatable. ``stop`` strings end the text and are not part of it.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    max_tokens: int = 1024
    seed: int | None = None
    stop: tuple[str, ...] = ()


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True)
class TokenEvent:
    """New text of one request. ``tokens`` counts all that were generated so far, special ones included.

    ``text`` may be empty: a token can complete no grapheme yet. The last event has a ``finish_reason``.
    """

    request_id: str
    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    error: str = ""
    cached_tokens: int = 0


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to continue. ``deliver`` is called on the engine's thread and must not block."""

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    deliver: Callable[[TokenEvent], None]
