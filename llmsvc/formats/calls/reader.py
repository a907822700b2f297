"""Splits an answer into words and calls, while it comes in pieces of any size.

A form is one way of writing calls. Its opening begins a block; the block ends at its closing mark, or with its last
bracket. What the form cannot read is shown as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import regex  # a dependency of transformers; it can say that a text may still become a match

from llmsvc.formats.calls.values import Known, NotACall, Unfinished, call_id
from llmsvc.formats.tools import Tool, ToolCall

MOST_HELD = 1_000_000
"""Characters of a block; a longer one is shown as text."""
MOST_TRIES = 100
"""How often a block is read that may have ended."""
_MOST_BLANK = 1_000
"""Characters of white space that are held back, since a call may follow."""
_BLANK = r"\s{0,64}"
"""Between the marks of an opening; without a bound much white space would be looked at again and again."""

Match = Any
"""Of the opening's expression; groups "name" and "id" where it has them. The regex package has no types."""


@dataclass(frozen=True)
class Form:
    """One way of writing calls.

    ``opening``: an expression; NAMES in it stands for the tools' names. ``read``: the calls of a block, raises NotACall
    or Unfinished. ``closing``: the mark that ends the block. ``brackets``: it also ends with its last bracket, those
    within ``quotes`` not counted. ``first``: only before any words.
    """

    opening: str
    read: Callable[[Match, str, Known], list[ToolCall]]
    closing: str = ""
    brackets: bool = True
    quotes: str = '"'
    first: bool = False


class _Block:
    """The block that is being read: where it may end."""

    def __init__(self, form: Form, match: Match, before: str) -> None:
        self.form, self.match, self.before = form, match, before
        self.tries = 0
        self._at = self._depth = 0
        self._quote = ""
        signs = [regex.escape(form.closing)] if form.closing else []
        signs += [r"[\[\](){}]", rf"[{form.quotes}]", r"\\"] if form.brackets else []
        self._signs = regex.compile("|".join(signs), regex.DOTALL)

    def end(self, held: str) -> int | None:
        """The next place at which the block may end; None when the text has no more of them."""
        while sign := self._signs.search(held, self._at):
            found = sign.group()
            if found == "\\" and sign.end() == len(held):
                self._at = sign.start()
                return None  # what it escapes is still to come
            self._at = sign.end() + (found == "\\")
            if found == self.form.closing and not self._quote:
                return int(sign.start())
            if self._last(found):
                return int(sign.end())
        self._at = max(self._at, len(held) - overlap(held, self.form.closing))
        return None

    def _last(self, sign: str) -> bool:
        """Whether it is the block's last bracket."""
        if self._quote:
            self._quote = "" if sign == self._quote else self._quote
        elif sign in self.form.quotes:
            self._quote = sign if self._depth else ""
        elif sign in "[({":
            self._depth += 1
        elif sign in "])}":
            self._depth -= 1
            return self._depth <= 0
        return False


@dataclass
class CallReader:
    """Reads one answer. ``closers``: marks which mean nothing after a call, and are left out there."""

    forms: Sequence[Form]
    closers: Sequence[str]
    tools: Sequence[Tool]
    new_id: Callable[[], str] = call_id
    _held: str = field(default="", init=False)
    _block: _Block | None = field(default=None, init=False)
    _first: bool = field(default=True, init=False)
    _called: bool = field(default=False, init=False)
    _lost: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._known = Known(self.tools, self.new_id)
        names = "|".join(map(regex.escape, self._known.names))
        self._openings = [
            (form, regex.compile(form.opening.replace(r"\s*", _BLANK).replace("NAMES", f"(?:{names})")))
            for form in (self.forms if names else ())
        ]
        marks = "|".join(map(regex.escape, sorted(self.closers, key=len, reverse=True)))
        self._closer = regex.compile(rf"{_BLANK}(?:{marks})" if marks else r"(?!)")

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """What is certain now: words and calls. What may become a call is held back."""
        self._held += text
        return self._read(ended=False)

    def finish(self) -> tuple[str, list[ToolCall]]:
        """What was held back, at the answer's end: a call may lack its last mark."""
        return self._read(ended=True)

    def _read(self, ended: bool) -> tuple[str, list[ToolCall]]:
        words, calls = "", list[ToolCall]()
        while True:
            if self._block is None:
                words += self._words(ended)
            if self._block is None or (settled := self._settle(self._block, ended)) is None:
                return words, calls
            words, calls = words + settled[0], calls + settled[1]

    def _words(self, ended: bool) -> str:
        """Words up to where a block begins, which is then begun, or may begin."""
        if self._called and not self._between(ended):
            return ""
        start, form, match = self._opening(ended)
        words, before = self._held[:start], ""
        if (self._first or self._called) and not words.strip():  # white space around a call is nobody's words
            if form is None and not ended and len(self._held) <= _MOST_BLANK:
                return ""
            words, before = ("", words) if form is not None and self._first else ("" if self._called else words, "")
        words = words.lstrip() if self._called else words
        self._held = self._held[match.end() if form is not None else start :]
        self._block = _Block(form, match, before) if form is not None else None
        self._first, self._called = self._first and not words.strip(), self._called and not words
        return words

    def _between(self, ended: bool) -> bool:
        """Leave out what only closes a call; False when more of it may come."""
        while (mark := self._closer.match(self._held, partial=True)) and not mark.partial:
            self._held = self._held[mark.end() :]
        if not mark or not self._held.strip():
            return True
        self._held = "" if ended else self._held
        return ended

    def _opening(self, ended: bool) -> tuple[int, Form | None, Match]:
        """Where the words end, and the form and match of what begins there."""
        best: tuple[int, bool, int] = (len(self._held), True, 0)
        chosen: tuple[Form | None, Match] = None, None
        for rank, (form, opening) in enumerate(self._openings):
            if form.first and not self._first:
                continue
            find = opening.match if form.first else opening.search
            match = find(self._held, partial=not ended)
            if match and (place := (match.start(), bool(match.partial), rank)) < best:
                best, chosen = place, (None if match.partial else form, match)
        return best[0], *chosen

    def _settle(self, block: _Block, ended: bool) -> tuple[str, list[ToolCall]] | None:
        """A block as its calls, or as words when it is none; None while it has not ended."""
        while block.tries < MOST_TRIES:
            end = block.end(self._held)
            if end is None and not ended:
                return self._shown(block, len(self._held)) if len(self._held) > MOST_HELD else None
            block.tries += 1
            try:
                calls = block.form.read(block.match, self._held[:end], self._known)
            except Unfinished:
                if end is None:
                    break
            except NotACall:
                if end is not None:
                    return self._shown(block, end)
                break
            else:
                self._held, self._block, self._called = "" if end is None else self._held[end:], None, True
                return "", calls
        return self._shown(block, self._border(block) if ended else len(self._held))

    def _shown(self, block: _Block, end: int) -> tuple[str, list[ToolCall]]:
        """So much of a block as words."""
        words = block.before + str(block.match.group()) + self._held[:end]
        self._held, self._block, self._first, self._called = self._held[end:], None, False, False
        return words, []

    def _border(self, block: _Block) -> int:
        """Where to go on behind a block that never ended: at its first closing mark, some times."""
        at = self._held.find(block.form.closing) if block.form.closing else -1
        self._lost += 1
        return len(self._held) if at < 0 or self._lost > MOST_TRIES // 5 else at + len(block.form.closing)


def overlap(text: str, mark: str) -> int:
    """The length of the longest end of a text that begins a mark."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
