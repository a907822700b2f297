"""The prompt of one turn, within the model's window, and a ledger of what is in it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmsvc.chat.material import WHOLE_SHARE, choose, lay_out, quote
from llmsvc.errors import BadRequest
from llmsvc.files.retrieval import Library
from llmsvc.models.remote import Estimate
from llmsvc.store.database import Row

Chat = list[dict[str, str]]
ANSWER_SHARE = 4
"""At least one part in this many of the window is kept free for the answer."""


KEEP_SHARE, CUT_SHARE = 0.75, 0.35
"""With files, earlier turns may fill so much of what is left; if they have more, they are cut down to the second.

So the prompt loses its beginning, which the engine would have to read again, once in many turns and not in each.
"""
_NO_FILES = Library()


@dataclass(frozen=True)
class ContextLedger:
    """Tokens by part. ``system + files + history + excerpts + message == prompt``, counted by the model's tokenizer.

    ``system`` is what is there besides messages: the system prompt, and the marks of the model's chat template;
    ``files``: those that are there whole; ``excerpts``: passages of others, with the newest message. Those that came
    with earlier messages belong to ``history``.
    """

    window: int
    prompt: int
    system: int
    history: int
    message: int
    turns_used: int
    turns_left_out: int
    files: int = 0
    excerpts: int = 0
    left_out: tuple[str, ...] = ()
    """Sentences: what the answer should have been told of and was not."""
    begins: int = 0
    """Depth of the first message that is there, if the chat has files."""
    estimated: bool = False
    """By the length of the texts, since the tokenizer is on another server."""

    def row(self) -> Row:
        return {**asdict(self), "left_out": list(self.left_out)}


@dataclass(frozen=True)
class Prompt:
    tokens: tuple[int, ...]
    ledger: ContextLedger
    sources: tuple[Row, ...] = ()
    """Whole files and passages that are there for this message."""
    messages: tuple[Row, ...] = ()
    """What the tokens say."""


def build(
    tokenizer: Any,
    window: int,
    system: str,
    older: Iterable[Row],
    text: str,
    answer: str = "",
    depth: int = 1,
    library: Library = _NO_FILES,
    sources: Sequence[Row] = (),
) -> Prompt:
    """Newest message whole, then as many whole turns as fit, newest first.

    ``older``: earlier messages, newest first, read only as far as they fit; ``depth``: how many messages there are with
    this one; ``answer``: what is there of an answer that is continued, and ``sources`` what it had of the files.
    Raises BadRequest, with the numbers, when the newest message alone leaves no room for an answer: it is never cut.
    """
    budget = window - window // ANSWER_SHARE

    def encode(chat: Chat) -> list[int]:
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids: list[int] = tokenizer(rendered + answer, add_special_tokens=False)["input_ids"]
        return ids

    def count(part: str) -> int:
        return len(tokenizer(part, add_special_tokens=False)["input_ids"])

    desk = lay_out(library, budget, count)
    head, last = _system(desk.system(system)), _user(text)
    alone = encode([*head, last])
    if len(alone) > budget and desk.whole:  # a long message: they are searched this once
        desk.left_out += [f"{document.name} does not fit beside this message as a whole" for document in desk.whole]
        desk.whole = []
        head = _system(desk.system(system))
        alone = encode([*head, last])
    if len(alone) > budget:
        raise BadRequest(
            f"This message needs {len(alone):,} tokens, but the model reads at most {window:,}, of which "
            f"{window // ANSWER_SHARE:,} are kept for the answer. Shorten it, or choose a model with a longer context."
        )
    turns = _Turns(older, library)

    def within(most: int) -> Callable[[int], list[int] | None]:
        def fits(used: int) -> list[int] | None:
            tokens = encode([*head, *turns.last(used), last])
            return tokens if len(tokens) <= most else None

        return fits

    if not library.documents:
        used, tokens = _most(turns, within(budget), alone)
        chosen: list[Row] = []
    else:
        room = budget - len(alone)
        keep, cut = (within(len(alone) + int(share * room)) for share in (KEEP_SHARE, CUT_SHARE))
        as_before = turns.as_before()
        if as_before and (same := keep(as_before)):
            used, tokens = as_before, same
        else:
            used, tokens = _most(turns, cut if as_before else keep, alone)
        left = min(budget - len(tokens), int(WHOLE_SHARE * budget))
        chosen = list(sources) or choose(desk, text, turns.asked(), count, left, turns.sources(used))
        chosen = [source for source in chosen if not source.get("whole")]
    asked = _user(quote(chosen, library) + text)
    tokens = encode([*head, *turns.last(used), asked]) if chosen else tokens
    while len(tokens) > budget and chosen:
        chosen.pop()
        asked = _user(quote(chosen, library) + text)
        tokens = encode([*head, *turns.last(used), asked])
    # A template may add a system prompt of its own, so the message is counted, and the rest is not its.
    empty = len(encode([*head, _user("")]))
    plain = len(encode([*_system(desk.system(system, files=False)), _user("")])) if desk.whole else empty
    with_passages = len(encode([*head, asked])) if chosen else len(alone)
    ledger = ContextLedger(
        window=window,
        prompt=len(tokens),
        system=plain,
        files=empty - plain,
        history=len(tokens) - with_passages,
        excerpts=with_passages - len(alone),
        message=len(alone) - empty,
        turns_used=used,
        turns_left_out=max(0, (depth - 1) // 2 - turns.empty - used),
        left_out=tuple(desk.left_out),
        begins=turns.begins(used) or depth if library.documents else 0,
        estimated=isinstance(tokenizer, Estimate),
    )
    said = (*head, *turns.last(used), asked, *([{"role": "assistant", "content": answer}] if answer else ()))
    return Prompt(tuple(tokens), ledger, (*desk.whole_sources(), *chosen), said)


def _system(text: str) -> Chat:
    return [{"role": "system", "content": text}] if text.strip() else []


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _most(turns: "_Turns", fits: Callable[[int], list[int] | None], alone: list[int]) -> tuple[int, list[int]]:
    """How many turns fit, and the prompt with them.

    Twice as many until they no longer fit, then the largest number between: few renderings, whatever the length.
    """
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
    return used, tokens


class _Turns:
    """Pairs of a user's message and its answer, read from the newest on as far as they are asked for.

    A turn without any answer is nothing to remember. A message has the passages that were sent with it.
    """

    def __init__(self, older: Iterable[Row], library: Library) -> None:
        self._rows, self._library = iter(older), library
        self._read: list[Chat] = []
        self._users: list[Row] = []
        self._answers: list[Row] = []
        self.empty = 0

    def has(self, count: int) -> bool:
        answers: list[Row] = []
        while len(self._read) < count:
            if (row := next(self._rows, None)) is None:
                return False
            if row["role"] != "user":
                answers = [row, *answers] if row["content"] else answers
            elif answers:
                quoted = quote(answers[0]["sources"], self._library) if self._library.documents else ""
                said = [{"role": answer["role"], "content": answer["content"]} for answer in answers]
                self._read.append([_user(quoted + row["content"]), *said])
                self._users.append(row)
                self._answers.append(answers[0])
                answers = []
            else:
                self.empty += 1
        return True

    def last(self, count: int) -> Chat:
        """The messages of the newest ``count`` turns, oldest first."""
        return [entry for turn in reversed(self._read[:count]) for entry in turn]

    def as_before(self) -> int:
        """How many turns there are from where the last prompt with files began; 0 if there was none."""
        begins, count = self._answers[0]["context"].get("begins", 0) if self.has(1) else 0, 0
        while begins and self.has(count + 1) and self._users[count]["depth"] >= begins:
            count += 1
        return count

    def asked(self) -> str:
        """The user's message before this one."""
        return str(self._users[0]["content"]) if self.has(1) else ""

    def sources(self, count: int) -> list[Row]:
        """Those of the newest ``count`` turns."""
        return [source for answer in self._answers[:count] for source in answer["sources"]]

    def begins(self, count: int) -> int:
        return int(self._users[count - 1]["depth"]) if count else 0
