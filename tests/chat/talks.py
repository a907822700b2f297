"""Chats whose prompts are built as the service does it, with the real tokenizer and nothing generated."""

from collections.abc import Sequence
from typing import Any

from llmsvc.chat import context
from llmsvc.chat.past import Attics
from llmsvc.files.chunks import Cutter
from llmsvc.files.retrieval import Document, Library


def document(name: str, pages: list[str], kind: str = "pdf", order: int = 0) -> Document:
    cutter = Cutter(kind, name)
    rows = [{"text": text, "chunks": cutter.cut(text)} for text in pages]
    row = {"id": name.encode().hex().ljust(32, "0"), "name": name, "kind": kind}
    return Document(row, rows, order)


class Talk:
    """``idle`` does between two messages what the service does then; ``summary`` is what the model would say."""

    def __init__(
        self,
        tokenizer: Any,
        library: Library | None = None,
        window: int = 2048,
        system: str = "",
        facts: Sequence[str] = (),
    ) -> None:
        self.tokenizer, self.library, self.window, self.system = tokenizer, library or Library(), window, system
        self.rows: list[dict[str, Any]] = []
        self.cuts: dict[str, dict[str, Any]] = {}
        self.given: dict[str, Any] = {"facts": facts, "cuts": self.cuts.get, "attics": Attics()}

    def say(self, text: str, answer: str = "I see.", **said: Any) -> None:
        """Add a turn without a prompt."""
        depth = len(self.rows) + 1
        user = {"id": f"u{depth}", "role": "user", "content": text, "depth": depth, "context": {}, "sources": []}
        told = {"context": {}, "sources": [], **said}
        self.rows += [user, {"id": f"a{depth}", "role": "assistant", "content": answer, "depth": depth + 1, **told}]

    def prompt(self, text: str) -> context.Prompt:
        depth, older = len(self.rows) + 1, reversed(self.rows)
        place = (self.tokenizer, self.window, self.system, older, text, "", depth, self.library)
        return context.build(*place, **self.given)

    def ask(self, text: str, answer: str = "I see.") -> context.Prompt:
        prompt = self.prompt(text)
        self.say(text, answer, context=prompt.ledger.row(), sources=list(prompt.sources))
        return prompt

    def idle(self, summary: str = "They spoke of many things.") -> tuple[int, ...] | None:
        """The tokens that the engine has read by the next message, if it read any."""
        plan = context.plan(self.tokenizer, self.window, self.system, reversed(self.rows), self.library, **self.given)
        if plan is None:
            return None
        told = (
            {"first": plan.cut.first or plan.turns[0].depth, "covers": plan.turns[-1].depth + 1} if plan.turns else {}
        )
        row = {name: getattr(plan.cut, name) for name in ("id", "begins", "bare", "first", "covers", "summary")}
        self.cuts[plan.cut.id] = {**row, **told, **({"summary": summary} if plan.turns else {})}
        return self.prompt("").tokens

    def words(self, prompt: context.Prompt) -> str:
        return str(self.tokenizer.decode(prompt.tokens))


def checked(talk: Talk, prompt: context.Prompt, text: str) -> str:
    """What holds for every prompt; its text."""
    ledger, words = prompt.ledger, talk.words(prompt)
    parts = [getattr(ledger, name) for name in context.PARTS]
    assert sum(parts) == ledger.prompt == len(prompt.tokens)
    assert ledger.prompt == len(talk.tokenizer(words, add_special_tokens=False)["input_ids"])
    assert ledger.prompt <= talk.window - talk.window // 4
    assert min(parts) >= 0, ledger
    assert talk.system.strip() in words
    assert text in words
    turns = ledger.turns_used + ledger.turns_summarised + ledger.turns_left_out
    assert turns == sum(row["role"] == "user" for row in talk.rows)
    return words


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two prompts share."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
