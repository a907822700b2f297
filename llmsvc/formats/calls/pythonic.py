"""Calls as Python writes them: ``[name(key="value", other=1), …]``.

Chat templates put strings between quotes without escaping what is in them, so a quote ends a string only where
something that may follow a value follows it.
"""

import re
from typing import Any

from llmsvc.formats.calls.reader import Form, Match
from llmsvc.formats.calls.values import Bare, Known, NotACall, Unfinished
from llmsvc.formats.tools import ToolCall

_DEEPEST = 50
_CALL = re.compile(r"\s*(?:print\(\s*)?((?:[\w-]+\.)*[\w-]+)\s*\(")
_KEY = re.compile(r"\s*([A-Za-z_][\w-]*)\s*=(?!=)")
_CLOSE = {"[": "]", "{": "}", "(": ")"}
_END_OF_ARGUMENT = re.compile(r"\s*(?:\)\s*(?:\Z|[\]),;]|(?:[\w-]+\.)*[\w-]+\()|,\s*(?:[\w-]+\s*=|[\"'\[{\d)-])|\Z)")
_END_OF_ITEM = re.compile(r"\s*(?:[,\]}):]|\Z)")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[0abfnrtv\\'\"/\n])")
_ESCAPES = dict(zip("0abfnrtv\n", "\0\a\b\f\n\r\t\v", strict=False)) | {"\n": ""}

Arguments = list[tuple[str | None, Any]]


class _Python:
    """Reads a text from its beginning; ``at`` is where it is."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def calls(self) -> list[tuple[str, Arguments]]:
        """All calls of the text, in a list, in lines, or one behind the other."""
        self._skip("[")
        found = []
        while True:
            self._skip(",;")
            if not self.peek() or self.peek() == "]":
                break
            begun = _CALL.match(self.text, self.at)
            if begun is None:
                raise NotACall("No call.")
            self.at = begun.end()
            found.append((begun[1], self._arguments()))
            if "print" in begun[0].replace(begun[1], ""):
                self._skip(")")
        self._skip("]")
        if self.peek():
            raise NotACall("Something follows the calls.")
        return found

    def _arguments(self) -> Arguments:
        found: Arguments = []
        while self.peek() != ")":
            key = _KEY.match(self.text, self.at)
            self.at = key.end() if key else self.at
            found.append((key[1] if key else None, self.value(_END_OF_ARGUMENT, ")")))
            self._skip(",")
        self.at += 1
        return found

    def value(self, end: re.Pattern[str], close: str, depth: int = 0) -> Any:
        """A value. ``end``: what follows a string here; ``close``: the bracket it stands in."""
        first = self.peek()
        if not first:
            raise Unfinished("A value is missing.")
        if depth > _DEEPEST:
            raise NotACall("Too deep.")
        if first in "\"'":
            return self._string(end)
        if first in "[(":
            return self._items(_CLOSE[first], depth)
        if first == "{":
            return self._pairs(depth)
        return self._bare(close, keyed=end is _END_OF_ARGUMENT)

    def _string(self, end: re.Pattern[str]) -> str:
        quote = self.text[self.at]
        if self.text.startswith(quote * 3, self.at):
            quote *= 3
        start = at = self.at + len(quote)
        while (at := self.text.find(quote, at)) >= 0:
            slashes = len(self.text[start:at]) - len(self.text[start:at].rstrip("\\"))
            if slashes % 2 == 0 and (len(quote) == 3 or end.match(self.text, at + 1)):
                self.at = at + len(quote)
                return unescaped(self.text[start:at])
            at += 1
        raise Unfinished("A string has no end.")

    def _items(self, close: str, depth: int) -> list[Any]:
        self.at += 1
        found = []
        while self.peek() != close:
            found.append(self.value(_END_OF_ITEM, close, depth + 1))
            self._skip(",")
        self.at += 1
        return found

    def _pairs(self, depth: int) -> Any:
        self.at += 1
        found: dict[str, Any] = {}
        members = []
        while self.peek() != "}":
            members.append(self.value(_END_OF_ITEM, "}", depth + 1))
            if self.peek() == ":":
                self.at += 1
                found[str(members.pop())] = self.value(_END_OF_ITEM, "}", depth + 1)
            self._skip(",")
        self.at += 1
        return members or found  # JSON knows no sets

    def _bare(self, close: str, keyed: bool) -> Bare:
        """What has no quotes, up to the bracket that closes or to a comma behind which another argument begins."""
        start, depth = self.at, 0
        while self.at < len(self.text):
            sign = self.text[self.at]
            if not depth and (sign == close or (sign == ":" and close == "}")):
                break
            if not depth and sign == "," and not (keyed and not _KEY.match(self.text, self.at + 1)):
                break
            depth += (sign in "[({") - (sign in "])}")
            self.at += 1
        if self.at == start:
            raise NotACall("A value is missing.")
        return Bare(self.text[start : self.at].strip())

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def _skip(self, signs: str) -> None:
        while (sign := self.peek()) and sign in signs:
            self.at += 1
            if signs in "[])":
                return


def value_of(text: str) -> Any:
    """One value. Raises NotACall."""
    python = _Python(text)
    value = python.value(_END_OF_ITEM, "")
    if python.peek():
        raise NotACall("Something follows the value.")
    return value


def unescaped(text: str) -> str:
    """The text that is meant between two quotes."""
    if "\\" not in text:
        return text
    plain = _ESCAPE.sub(lambda found: _character(found[1]), text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _character(escape: str) -> str:
    return chr(int(escape[1:], 16)) if escape[0] in "ux" and len(escape) > 1 else _ESCAPES.get(escape, escape)


def calls(match: Match, body: str, known: Known) -> list[ToolCall]:
    """The calls of a list, or of lines."""
    found = _Python(body).calls()
    if not found:
        raise NotACall("No call.")
    return [_call(name, given, known) for name, given in found]


def _call(name: str, given: Arguments, known: Known) -> ToolCall:
    """A built-in tool of Llama is called as ``brave_search.call(…)``, one of Gemma as ``default_api.name(…)``."""
    name = next((short for short in _short(name) if short in known.names), name)
    known.call(name, {})
    keys = iter([key for key in known.keys(name) if key not in {key for key, _ in given}])
    named = [(next(keys, None) if key is None else key, value) for key, value in given]
    if any(key is None for key, _ in named):
        raise NotACall("More arguments than parameters.")
    return known.call(name, {str(key): known.argument(name, str(key), value) for key, value in named})


def _short(name: str) -> list[str]:
    return [name, name.removesuffix(".call"), name.rpartition(".")[2]]


_BEGUN = r"(?:[\w-]+\.)*NAMES(?:\.call)?\s*\("
BARE = Form(rf"(?=\[\s*{_BEGUN})", calls, quotes="\"'")
"""A list without any mark, of calls of known tools."""
TAGGED = Form(rf"<\|python_tag\|>\s*(?={_BEGUN})", calls, quotes="\"'")
CODE = Form(rf"```(?:tool_code|python)\s*(?=(?:\[\s*|print\(\s*)?{_BEGUN})", calls, "```", brackets=False)


def listed(opening: str, closing: str) -> Form:
    """Calls between two marks."""
    return Form(rf"{opening}\s*(?=\[?\s*{_BEGUN})", calls, closing, brackets=False)
