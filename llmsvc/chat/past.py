"""The turns before a message: word by word as far as a prompt has them, and the others to be found again."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from threading import Lock
from typing import Any

from llmsvc.chat.material import quote
from llmsvc.chat.transfer import parted
from llmsvc.files.chunks import Cutter
from llmsvc.files.retrieval import Chunk, Document, Library
from llmsvc.store.database import Row

Chat = list[Row]
MOST_SEARCHED = 2000
"""Turns that are searched, of those that are left out; older ones are only counted."""
MOST_RECALLED = 3
"""Pieces of old turns with one message."""
_KEPT = 32
_KEPT_CHARACTERS = 8_000_000


@dataclass(frozen=True)
class Cut:
    """Where a chat's prompts begin to be word by word, and what stands for the turns before.

    ``id``: the answer after which it was decided, "" when there is no row of it. ``begins``: depth of the first
    message; ``bare``: up to this depth messages stand without the passages that came with them; ``first``, ``covers``:
    depths of the first and the last message of which ``summary`` tells.
    """

    id: str = ""
    begins: int = 0
    bare: int = 0
    first: int = 0
    covers: int = 0
    summary: str = ""

    @classmethod
    def of(cls, row: Row) -> "Cut":
        return cls(**row)

    def row(self) -> Row:
        return asdict(self)


Cuts = Callable[[str], Row | None]
"""The row of a cut, by its id."""


@dataclass(frozen=True)
class Turn:
    """A user's message and what was answered."""

    user: Row
    answers: list[Row]

    @property
    def depth(self) -> int:
        return int(self.user["depth"])

    @property
    def number(self) -> int:
        """As people count them."""
        return number(self.depth)

    @property
    def text(self) -> str:
        return "\n\n".join([f"User: {self.user['content']}", *(f"Answer: {parted(row)[1]}" for row in self.answers)])


def number(depth: int) -> int:
    """Of the turn that a message belongs to, from 1."""
    return (depth + 1) // 2


class Attic:
    """Turns that are left out of the prompts, to be searched. Immutable, but for what is built when first asked."""

    def __init__(self, turns: Iterable[Turn] = (), document: "Callable[[int, str], Document] | None" = None) -> None:
        """``document``: makes one of a turn's depth and text, or knows it."""
        self._texts, self._document = {turn.depth: turn.text for turn in turns}, document or _document

    @cached_property
    def _library(self) -> Library:
        """Cut when it is first searched: most are only quoted from."""
        return Library(self._document(depth, text) for depth, text in self._texts.items())

    def search(self, query: str, limit: int) -> list[Row]:
        """Pieces that have words of the query, best first."""
        return [_piece(chunk) for chunk in self._library.search(query, limit)]

    def quote(self, pieces: Sequence[Row]) -> str:
        """The pieces as they stand before a message; "" when there are none."""
        there = sorted((piece for piece in pieces if piece["depth"] in self._texts), key=lambda p: p["depth"])
        said = [
            f"[turn {number(piece['depth'])}]\n{self._texts[piece['depth']][piece['start'] : piece['end']]}"
            for piece in there
        ]
        return "\n\n".join(["Said earlier in this chat:", *said, "---\n\n"]) if said else ""


def _answered(row: Row) -> Row:
    """An answer as chat templates take it; how much of its reasoning is read again is theirs to say."""
    reasoning, content = parted(row)
    return {"role": row["role"], "content": content, **({"reasoning": reasoning} if reasoning else {})}


def _document(depth: int, text: str) -> Document:
    pages = [{"text": text, "chunks": Cutter("text", "").cut(text)}]
    return Document({"id": str(depth), "name": f"turn {number(depth)}", "kind": "text"}, pages)


def _piece(chunk: Chunk) -> Row:
    return {"depth": int(chunk.file.id), "start": chunk.start, "end": chunk.end}


_EMPTY = Attic()


class Attics:
    """The last few, since an index takes a while, and the turns in them: the next attic has most of them too.

    Safe from any thread.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._attics: OrderedDict[str, Attic] = OrderedDict()
        self._documents: OrderedDict[tuple[int, str], Document] = OrderedDict()
        self._characters = 0

    def get(self, id_: str, turns: Callable[[], Iterable[Turn]]) -> Attic:
        """``id_``: of the newest message in it, since what is before a message never changes."""
        with self._lock:
            attic = self._attics.pop(id_, None)
        attic = attic or Attic(turns(), self._known)
        with self._lock:
            self._attics[id_] = attic
            while len(self._attics) > _KEPT:
                self._attics.popitem(last=False)
        return attic

    def _known(self, depth: int, text: str) -> Document:
        with self._lock:
            document = self._documents.pop((depth, text), None)
            if document is None:
                document = _document(depth, text)
                self._characters += len(text)
            self._documents[depth, text] = document
            while self._characters > _KEPT_CHARACTERS:
                (_, oldest), _ = self._documents.popitem(last=False)
                self._characters -= len(oldest)
        return document


class Past:
    """Turns before a message, read from the newest on as far as they are asked for.

    A turn without any answer, be it only its reasoning, is nothing to remember.
    """

    def __init__(
        self, older: Iterable[Row], library: Library, cuts: Cuts | None = None, attics: Attics | None = None
    ) -> None:
        self._rows, self._library, self._attics = iter(older), library, attics or Attics()
        self._turns: list[Turn] = []
        self.empty = 0
        self.cut = self._in_force(cuts or (lambda _: None))
        self._attic = _EMPTY

    def has(self, count: int) -> bool:
        answers: list[Row] = []
        while len(self._turns) < count:
            if (row := next(self._rows, None)) is None:
                return False
            if row["role"] != "user":
                answers = [row, *answers] if row["content"] or row.get("reasoning") else answers
            elif answers:
                self._turns.append(Turn(row, answers))
                answers = []
            else:
                self.empty += 1
        return True

    def _in_force(self, cuts: Cuts) -> Cut:
        """The newest cut: of the last answer, or as its prompt had it."""
        if not self.has(1):
            return Cut()
        answer = self._turns[0].answers[0]
        if row := cuts(str(answer.get("id", ""))):
            return Cut.of(row)
        ledger = answer["context"]
        row = cuts(str(ledger.get("cut", "")))
        before = Cut.of(row) if row else Cut()
        return replace(before, begins=ledger.get("begins", 0), bare=ledger.get("bare", 0))

    def since(self, begins: int) -> int:
        """How many turns there are from a depth on."""
        count = 0
        while self.has(count + 1) and self._turns[count].depth >= begins:
            count += 1
        return count

    def newest(self, count: int) -> list[Turn]:
        return self._turns[:count]

    def left_out(self, count: int, above: int = 0) -> list[Turn]:
        """The turns before the newest ``count``, deeper than ``above``, oldest first, as far as they are searched."""
        end = count
        while end - count < MOST_SEARCHED and self.has(end + 1) and self._turns[end].depth > above:
            end += 1
        return self._turns[count:end][::-1]

    def open_attic(self, count: int) -> None:
        """Make what is before the newest ``count`` turns known to ``chat``, ``search`` and ``quote``."""
        if self.has(count + 1):
            newest = self._turns[count].user
            self._attic = self._attics.get(str(newest.get("id", "")), lambda: self.left_out(count))

    def chat(self, count: int, bare: int = 0) -> Chat:
        """The messages of the newest ``count`` turns, oldest first, those above ``bare`` with their passages."""
        return [entry for turn in reversed(self._turns[:count]) for entry in self._said(turn, turn.depth <= bare)]

    def _said(self, turn: Turn, bare: bool) -> Chat:
        first = turn.answers[0]
        pieces: Any = () if bare else first["context"].get("recalled_from", ())
        quoted = "" if bare or not self._library.documents else quote(first["sources"], self._library)
        asked = {"role": "user", "content": f"{quoted}{self._attic.quote(pieces)}{turn.user['content']}"}
        return [asked, *map(_answered, turn.answers)]

    def recall(self, question: str, known: Sequence[Row]) -> list[Row]:
        """The pieces of left-out turns that a question is about and that are not ``known``, best first."""
        found = self._attic.search(question, MOST_RECALLED + len(known))
        found = found or self._attic.search(f"{question} {self.asked()}", MOST_RECALLED + len(known))
        return list(islice((piece for piece in found if piece not in known), MOST_RECALLED))

    def quote(self, pieces: Sequence[Row]) -> str:
        """Of left-out turns, as it stands before a message."""
        return self._attic.quote(pieces)

    def asked(self) -> str:
        """The user's message before this one."""
        return str(self._turns[0].user["content"]) if self.has(1) else ""

    def sources(self, count: int, bare: int) -> list[Row]:
        """Passages of files that stand with the newest ``count`` turns."""
        return [source for row in self._first(count, bare) for source in row["sources"]]

    def recalled(self, count: int, bare: int) -> list[Row]:
        """Pieces of old turns that stand with the newest ``count`` turns."""
        return [piece for row in self._first(count, bare) for piece in row["context"].get("recalled_from", ())]

    def _first(self, count: int, bare: int) -> list[Row]:
        """The answers with which what was found is kept."""
        return [turn.answers[0] for turn in self._turns[:count] if turn.depth > bare]

    def begins(self, count: int) -> int:
        """Depth of the first message of the newest ``count`` turns, or of what comes behind them all."""
        if count:
            return self._turns[count - 1].depth
        return int(self._turns[0].answers[-1]["depth"]) + 1 if self.has(1) else 0
