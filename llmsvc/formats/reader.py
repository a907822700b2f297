"""One answer, read as it comes: reasoning, words for the user, calls of tools."""

import re
from collections.abc import Sequence

from llmsvc.formats.calls import CallReader
from llmsvc.formats.families import Family
from llmsvc.formats.harmony import HarmonyReader
from llmsvc.formats.reasoning import HARMONY
from llmsvc.formats.reasoning_reader import ReasoningReader
from llmsvc.formats.said import Reader, Said
from llmsvc.formats.scan import first, tail
from llmsvc.formats.tools import Tool


class AnswerReader:
    """Reads one answer of a family, in pieces of any size.

    ``tools``: what may be called; without any, what looks like a call is words. ``opened``: the
    prompt ended inside the reasoning. ``continued``: it ended inside the answer or its reasoning,
    whose first words are known: white space at the beginning counts.
    """

    def __init__(
        self,
        family: Family,
        tools: Sequence[Tool] = (),
        *,
        opened: bool = False,
        continued: bool = False,
    ) -> None:
        self._reasoning: Reader
        self._calls: Reader = _Words(family.calls.marks)
        if family.reasoning is HARMONY:
            names = [tool.name for tool in tools]
            self._reasoning = HarmonyReader(names, opened=opened, continued=continued)
            return
        if family.reasoning is None:
            self._reasoning = _Words()
        else:
            self._reasoning = ReasoningReader(family.reasoning, opened=opened, continued=continued)
        if tools:
            self._calls = _Calls(family.calls.reader(tools))

    def push(self, text: str) -> Said:
        """What is certain now."""
        said = self._reasoning.push(text)
        words = self._calls.push(said.text) if said.text else Said()
        return Said(words.text, said.reasoning, said.calls + words.calls)

    def finish(self) -> Said:
        """What was held back, at the answer's end. Nothing of the answer is lost."""
        said = self._reasoning.finish()
        words, last = self._calls.push(said.text), self._calls.finish()
        calls = said.calls + words.calls + last.calls
        return Said(words.text + last.text, said.reasoning, calls)


class _Calls:
    """A reader of calls, behind the reasoning."""

    def __init__(self, reader: CallReader) -> None:
        self._reader = reader

    def push(self, text: str) -> Said:
        words, calls = self._reader.push(text)
        return Said(words, calls=tuple(calls))

    def finish(self) -> Said:
        words, calls = self._reader.finish()
        return Said(words, calls=tuple(calls))


_SPECIAL = re.compile(r"<[|｜].*|.*[|｜]>|\[/?[A-Z_]+\]")
"""Marks that nobody writes for their own sake, unlike ``<tool_call>``."""


class _Words:
    """Words as they are, but for special tokens that were decoded for a reader who is not there."""

    def __init__(self, marks: Sequence[str] = ()) -> None:
        self._marks, self._held = tuple(mark for mark in marks if _SPECIAL.fullmatch(mark)), ""

    def push(self, text: str) -> Said:
        self._held += text
        while found := first(self._held, self._marks):
            at, mark = found
            self._held = self._held[:at] + self._held[at + len(mark) :]
        certain = len(self._held) - tail(self._held, self._marks)
        words, self._held = self._held[:certain], self._held[certain:]
        return Said(words)

    def finish(self) -> Said:
        words, self._held = self._held, ""
        return Said(words)


def closing(family: Family) -> str:
    """The text that ends reasoning, for a token budget; "" where it cannot be forced."""
    if family.reasoning is None:
        return ""
    if family.reasoning is HARMONY:
        return HARMONY.closing
    return family.reasoning.closing + family.reasoning.answer
