"""What crosses the engine's door: a request goes in, token events come out."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from llmsvc.errors import LlmsvcError

Source = str | tuple[dict[str, Any], ...]
"""What a prompt was made of: a text, or messages, of which an answer at the end is continued."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen.

    ``temperature`` 0 is greedy; ``top_p`` 1, ``top_k`` 0, ``min_p`` 0 and ``repetition_penalty`` 1 switch those off.
    ``seed`` makes a request repeatable, whatever else is in its batch. ``stop`` strings end the text and are no part of
    it. ``logprobs``: report each token's log-probability and so many of the likeliest; None reports nothing.
    ``json_schema`` (JSON text), ``regex`` or ``grammar`` (llguidance's Lark): the answer is made to match.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 1024
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    json_schema: str = ""
    regex: str = ""
    grammar: str = ""

    @property
    def constrained(self) -> bool:
        """Whether the answer is bound to a grammar, which takes its time to be read."""
        return bool(self.json_schema or self.regex or self.grammar)


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    REPETITION = "repetition"
    """It went on repeating itself."""
    CANCELLED = "cancelled"
    ERROR = "error"
    INTERRUPTED = "interrupted"
    """What there is of it is good, and somebody else can go on with it."""


@dataclass(frozen=True)
class TokenLogprob:
    """One token's text, its log-probability before any filter, and the likeliest ones there."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class TokenEvent:
    """New text of one request. ``tokens`` counts all that were generated so far, special ones included.

    ``text`` may be empty: a token can complete no grapheme yet. The last event has a ``finish_reason``.
    ``logprobs``: of the tokens that were chosen since the last event, where they were asked for. ``stop``: the stop
    string that ended it. ``prompt_tokens``: in the last event, where only who answered knows. ``reasoning``: where who
    answered tells it apart from the text.
    """

    request_id: str
    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    error: LlmsvcError | None = None
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    stop: str = ""
    prompt_tokens: int = 0
    reasoning: str = ""


@dataclass(frozen=True)
class ThinkingLimit:
    """Reasoning that has no end after ``tokens`` of them is ended: the tokens ``closing`` follow then.

    It has ended by itself when the answer's text has one of the marks ``until`` in it. It begins at once, or where the
    answer begins with one of the marks ``opens``; an answer that begins otherwise has none to be ended. Of an answer
    that is bound to a grammar, ``closing`` comes as far as the grammar takes it.
    """

    tokens: int
    until: tuple[str, ...]
    closing: tuple[int, ...]
    opens: tuple[str, ...] = ()


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to continue. ``deliver`` is called on the engine's thread and must not block.

    ``group``: who asks; of what waits, the next one is of the group that has the fewest running. ``source``: for who
    has a tokenizer of their own. ``marks``: special tokens that are kept in the answer's text, since they tell its
    parts apart; all others are left out. ``thinking``: a bound for the reasoning in front of the answer.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    deliver: Callable[[TokenEvent], None]
    group: str = ""
    source: Source = ()
    marks: tuple[str, ...] = ()
    thinking: ThinkingLimit | None = None
