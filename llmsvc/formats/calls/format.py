"""How one family of models calls tools."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmsvc.formats.calls import grammar
from llmsvc.formats.calls.grammar import Grammar, Writer
from llmsvc.formats.calls.reader import CallReader, Form
from llmsvc.formats.calls.values import call_id
from llmsvc.formats.tools import Tool, Tools


@dataclass(frozen=True)
class CallFormat:
    """How one family calls tools. ``marks``: texts of tokens that may be special, and must be kept when decoding.

    ``forms``: the ways that are read; ``writer``: the way to which an answer is bound; ``closers``: marks that are left
    out behind a call; ``new_id``: ids as the family's chat template takes them.
    """

    name: str
    marks: tuple[str, ...]
    forms: tuple[Form, ...]
    writer: Writer
    closers: tuple[str, ...] = ()
    new_id: Callable[[], str] = call_id

    def reader(self, tools: Sequence[Tool]) -> CallReader:
        """Reads one answer to a request with these tools."""
        return CallReader(self.forms, self.closers or self.marks[1:], tools, self.new_id)

    def grammar(self, tools: Tools, reasoning_end: str = "") -> str:
        """The grammar of an answer that consists of calls of ``tools.callable``.

        ``reasoning_end``: the mark that ends reasoning, where the prompt leaves the answer within it.
        """
        rules = Grammar()
        before = f"{grammar.until(reasoning_end)} /\\n{{0,2}}/ " if reasoning_end else ""
        return rules.answer(before + self.writer(rules, tools))
