"""Says when an answer repeats itself for ever: small models end in such loops, above all at temperature 0."""

import re
from array import array
from collections.abc import Callable

_WINDOW = 1024
"""Tokens that are looked at."""
_LONGEST = 256
"""Tokens of a cycle."""
_REPEATS = 4
_WORDS, _DATA = 280, _WINDOW
"""Tokens of repetition that cannot be meant: of words, and of what may be a table's rule or a row of zeros."""
_EVERY = 16
"""Tokens between two looks."""
_MARKUP = re.compile(r"<[^<>]*>|^[^<>]*>|<[^<>]*$")
_LITERAL = re.compile(r"\b(?:null|none|nil|nan|true|false|undefined|inf|infinity|empty|n/a)\b", re.IGNORECASE)
_WORD = re.compile(r"([^\W\d_])(?!\1)[^\W\d_]")
"""Two letters that differ: "xxxx", "AAAA" and "0x00" are no words."""


class Loops:
    """Watches one answer.

    A loop is one cycle of up to 256 tokens, again and again to the answer's end: at least four times and over 280
    tokens. Cycles without words (digits, rules, spaces, empty cells, ``null``) may be data that somebody asked for:
    they need 1,024 tokens. A refrain, a table or a list whose lines differ is no loop.
    """

    def __init__(self, text_of: Callable[[list[int]], str]) -> None:
        """``text_of``: the text of some tokens; asked only of a cycle that has repeated for long."""
        self._text_of = text_of
        self._tokens = array("i")

    def push(self, token: int) -> bool:
        """Take the answer's next token; True when it closes a loop. It is looked for at every 16th token."""
        self._tokens.append(token)
        length = len(self._tokens)
        return length >= _WORDS and length % _EVERY == 0 and self._loops()

    def _loops(self) -> bool:
        period = self._period()
        if not period:
            return False
        return self._repeats(period, _DATA) or self._has_words(period)

    def _period(self) -> int:
        """Tokens of the shortest cycle that repeats for as long as words may; 0 without such."""
        tail = self._tokens[-_LONGEST - _EVERY :].tobytes()
        size = self._tokens.itemsize
        end = tail[-_EVERY * size :]
        place = len(tail) - len(end)
        while (place := tail.rfind(end, 0, place + len(end) - 1)) >= 0:  # where its end stood before
            period, between = divmod(len(tail) - len(end) - place, size)
            if not between and self._repeats(period, max(_WORDS, _REPEATS * period)):
                return period
        return 0

    def _repeats(self, period: int, length: int) -> bool:
        """Whether the last ``length`` tokens are a cycle of ``period``."""
        last = self._tokens[-length:]
        return len(last) == length and last[period:] == last[:-period]

    def _has_words(self, period: int) -> bool:
        text = self._text_of(self._tokens[-2 * period :].tolist())
        return _WORD.search(_LITERAL.sub("", _MARKUP.sub("", text))) is not None
