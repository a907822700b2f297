"""The prompt of one turn, within the model's window, and a ledger of what is in it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from llmsvc.errors import BadRequest
from llmsvc.store.database import Row

ANSWER_SHARE = 4
"""At least one part in this many of the window is kept free for the answer."""


@dataclass(frozen=True)
class ContextLedger:
    """Tokens by part. ``system + history + message == prompt``, counted by the model's own tokenizer.

    ``system`` is what is there besides messages: the system prompt, and the marks of the model's chat template.
    """

    window: int
    prompt: int
    system: int
    history: int
    message: int
    turns_used: int
    turns_left_out: int

    def row(self) -> Row:
        return asdict(self)


@dataclass(frozen=True)
class Prompt:
    tokens: tuple[int, ...]
    ledger: ContextLedger


def build(
    tokenizer: Any, window: int, system: str, older: Iterable[Row], text: str, answer: str = "", depth: int = 1
) -> Prompt:
    """Newest message whole, then as many whole turns as fit, newest first.

    ``older``: earlier messages, newest first, read only as far as they fit; ``depth``: how many messages there are with
    this one; ``answer``: what is there of an answer that is continued.
    Raises BadRequest, with the numbers, when the newest message alone leaves no room for an answer: it is never cut.
    """
    head = [{"role": "system", "content": system}] if system.strip() else []
    last = {"role": "user", "content": text}
    budget = window - window // ANSWER_SHARE

    def encode(chat: list[dict[str, str]]) -> list[int]:
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids: list[int] = tokenizer(rendered + answer, add_special_tokens=False)["input_ids"]
        return ids

    alone = encode([*head, last])
    if len(alone) > budget:
        raise BadRequest(
            f"This message needs {len(alone):,} tokens, but the model reads at most {window:,}, of which "
            f"{window // ANSWER_SHARE:,} are kept for the answer. Shorten it, or choose a model with a longer context."
        )
    turns = _Turns(older)

    def fits(count: int) -> list[int] | None:
        tokens = encode([*head, *turns.last(count), last])
        return tokens if len(tokens) <= budget else None

    # Twice as many until they no longer fit, then the largest number between: few renderings, whatever the length.
    tokens, used, too_many = alone, 0, 0
    while not too_many and turns.has(used + 1):
        count = used * 2 or 1
        while not turns.has(count):
            count -= 1
        if longer := fits(count):
            tokens, used = longer, count
        else:
            too_many = count
    while too_many - used > 1:
        count = (used + too_many) // 2
        if longer := fits(count):
            tokens, used = longer, count
        else:
            too_many = count
    # A template may add a system prompt of its own, so the message is counted, and the rest is not its.
    system_tokens = len(encode([*head, {"role": "user", "content": ""}]))
    message_tokens = len(alone) - system_tokens
    ledger = ContextLedger(
        window=window,
        prompt=len(tokens),
        system=system_tokens,
        history=len(tokens) - len(alone),
        message=message_tokens,
        turns_used=used,
        turns_left_out=max(0, (depth - 1) // 2 - turns.empty - used),
    )
    return Prompt(tuple(tokens), ledger)


class _Turns:
    """Pairs of a user's message and its answer, read from the newest on as far as they are asked for.

    A turn without any answer is nothing to remember.
    """

    def __init__(self, older: Iterable[Row]) -> None:
        self._rows = iter(older)
        self._read: list[list[dict[str, str]]] = []
        self.empty = 0

    def has(self, count: int) -> bool:
        answers: list[dict[str, str]] = []
        while len(self._read) < count:
            if (row := next(self._rows, None)) is None:
                return False
            entry = {"role": row["role"], "content": row["content"]}
            if row["role"] != "user":
                answers = [entry, *answers] if row["content"] else answers
            elif answers:
                self._read.append([entry, *answers])
                answers = []
            else:
                self.empty += 1
        return True

    def last(self, count: int) -> list[dict[str, str]]:
        """The messages of the newest ``count`` turns, oldest first."""
        return [entry for turn in reversed(self._read[:count]) for entry in turn]
