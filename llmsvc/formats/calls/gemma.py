"""Calls as FunctionGemma and Gemma 4 write them: ``call:name{key:<|"|>text<|"|>,other:1}``.

Keys and numbers stand without quotes; a token of its own stands at both ends of each string.
"""

import re
from functools import partial
from typing import Any

from llmsvc.formats.calls.reader import Form, Match
from llmsvc.formats.calls.values import Bare, Known, NotACall, Unfinished
from llmsvc.formats.tools import ToolCall

_DEEPEST = 50
_BARE = re.compile(r"[^,:{}\[\]]*")


class _Braces:
    """Reads a text from its beginning; ``at`` is where it is."""

    def __init__(self, text: str, quote: str) -> None:
        self.text, self.at, self.quote = text, 0, quote

    def members(self, depth: int = 0) -> dict[str, Any]:
        """``{key:value,…}``."""
        self._take("{")
        found: dict[str, Any] = {}
        while not self._ended("}"):
            key = self._string() or self._bare()
            self._take(":")
            found[str(key)] = self.value(depth + 1)
        return found

    def value(self, depth: int) -> Any:
        """A string, an object, a list, or what stands there without quotes."""
        if depth > _DEEPEST:
            raise NotACall("Too deep.")
        sign = self.peek()
        if sign == "{":
            return self.members(depth)
        if sign == "[":
            self.at += 1
            found = []
            while not self._ended("]"):
                found.append(self.value(depth + 1))
            return found
        string = self._string()
        return self._bare() if string is None else string

    def _string(self) -> str | None:
        self.peek()
        for quote in (self.quote, '"'):
            if self.text.startswith(quote, self.at):
                start = self.at + len(quote)
                end = self.text.find(quote, start)
                if end < 0:
                    raise Unfinished("A string has no end.")
                self.at = end + len(quote)
                return self.text[start:end]
        return None

    def _bare(self) -> Bare:
        found = _BARE.match(self.text, self.at)
        self.at += len(found[0]) if found else 0
        return Bare(found[0].strip() if found else "")

    def _ended(self, close: str) -> bool:
        """Whether the bracket follows; a comma before the next one is passed."""
        if self.peek() == ",":
            self.at += 1
        if not self.peek():
            raise Unfinished("A bracket is missing.")
        ended = self.peek() == close
        self.at += ended
        return ended

    def _take(self, sign: str) -> None:
        if self.peek() != sign:
            raise (NotACall if self.peek() else Unfinished)(f"{sign} is missing.")
        self.at += 1

    def peek(self) -> str:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]


def _calls(match: Match, body: str, known: Known, *, quote: str) -> list[ToolCall]:
    braces = _Braces(body, quote)
    found = braces.members()
    if braces.peek():
        raise NotACall("Something follows the arguments.")
    name = match["name"]
    return [known.call(name, {key: known.argument(name, key, value) for key, value in found.items()})]


def braces(opening: str, closing: str, quote: str) -> Form:
    """A call between two marks, with strings between two of ``quote``."""
    return Form(rf"{opening}\s*call:(?P<name>NAMES)\s*(?=\{{)", partial(_calls, quote=quote), closing, brackets=False)
