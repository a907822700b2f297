"""The prompt of one turn, within the model's window, and a ledger of what is in it."""

from dataclasses import asdict, dataclass
from typing import Any

from llmsvc.errors import BadRequest
from llmsvc.store.database import Row

ANSWER_SHARE = 4
"""At least one part in this many of the window is kept free for the answer."""


@dataclass(frozen=True)
class ContextLedger:
    """Tokens by part. ``system + history + message == prompt``, counted by the model's own tokenizer."""

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


def build(tokenizer: Any, window: int, system: str, history: list[Row], text: str, answer: str = "") -> Prompt:
    """Newest message whole, then as many whole turns as fit, newest first.

    ``history``: earlier messages, oldest first; ``answer``: what is there of an answer that is continued.
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
    turns = _turns(history)
    kept: list[dict[str, str]] = []
    tokens, used = alone, 0
    for turn in reversed(turns):
        longer = encode([*head, *turn, *kept, last])
        if len(longer) > budget:
            break
        tokens, kept, used = longer, [*turn, *kept], used + 1
    system_tokens = len(alone) - len(encode([last])) if head else 0
    message_tokens = len(alone) - system_tokens
    ledger = ContextLedger(
        window=window,
        prompt=len(tokens),
        system=system_tokens,
        history=len(tokens) - len(alone),
        message=message_tokens,
        turns_used=used,
        turns_left_out=len(turns) - used,
    )
    return Prompt(tuple(tokens), ledger)


def _turns(history: list[Row]) -> list[list[dict[str, str]]]:
    """Pairs of a user's message and its answer; a turn without any answer is nothing to remember."""
    turns: list[list[dict[str, str]]] = []
    for row in history:
        entry = {"role": row["role"], "content": row["content"]}
        if row["role"] == "user":
            turns.append([entry])
        elif turns and row["content"]:
            turns[-1].append(entry)
    return [turn for turn in turns if len(turn) > 1]
