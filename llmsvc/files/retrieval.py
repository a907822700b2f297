"""Finds the passages of a chat's files that a question is about: by its words (BM25), and by what they mean."""

import re
import sys
import threading
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsvc.store.database import Row

if TYPE_CHECKING:
    from llmsvc.files.encoder import Array
    from llmsvc.files.meaning import Meaning

_WORD = re.compile(r"[^\W_]+")
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_STOP_WORDS = """
a an and are as at be but by can could did do does for from had has have how i if in into is it its me my no not
of on or our should so some such tell than that the their them then there these they this to was we were what
when where which who whose why will with would you your
"""
_STOP = frozenset(_STOP_WORDS.split())


FAINT = 0.4
"""What has so much less of the question than the first passage is noise, and costs the model time."""
ALIKE, MEANING = 0.6, 1.0
"""How much likeness by word vectors, and by the encoder's, count beside the words, each in parts of its best."""
RELATED = 0.3
"""Cosine of what has to do with each other, by the encoder."""
NAMED = 1 + ALIKE + MEANING
"""What passages of a file that the question names have ahead: they come before all others."""


@dataclass(frozen=True)
class Chunk:
    """A passage: where it stands, and its text."""

    file: "Document" = field(repr=False)
    page: int
    start: int
    end: int
    head: str = ""

    @property
    def text(self) -> str:
        return self.file.pages[self.page - 1][self.start : self.end]

    @property
    def place(self) -> str:
        """As a citation names it."""
        return self.file.place(self.page, self.head)

    def source(self) -> Row:
        """For the ledger, and to find it again."""
        where = {"page": self.page, "start": self.start, "end": self.end, "head": self.head}
        return {"file_id": self.file.id, "name": self.file.name, "place": self.place, **where}


class Document:
    """One file that was read."""

    def __init__(self, row: Row, pages: list[Row], order: int = 0, vectors: Path = Path()) -> None:
        """``vectors``: where those of its chunks are kept, once they are made."""
        self.order, self.vectors = order, vectors
        self.id, self.name, self.kind = row["id"], row["name"], row["kind"]
        self.pages: list[str] = [page["text"] for page in pages]
        self.chunks = [
            Chunk(self, number, *span) for number, page in enumerate(pages, 1) for span in page.get("chunks", [])
        ]
        self.characters = sum(map(len, self.pages))

    def place(self, page: int, head: str) -> str:
        if self.kind == "pdf":
            return f"p.{page}"
        above = [part for part in head.split(" › ") if part and not part.startswith("|")]
        return above[-1][:60] if above else f"part {page}" if len(self.pages) > 1 else ""

    @property
    def passages(self) -> list[str]:
        """As they are searched: with what stands above each, and the file's name."""
        return [f"{self.name} {chunk.head}\n{chunk.text}" for chunk in self.chunks]

    @cached_property
    def digest(self) -> bytes:
        """Of these, to know what was made of them."""
        return sha256("\0".join(self.passages).encode()).digest()

    @cached_property
    def terms(self) -> list[tuple[list[str], Any]]:
        """Of each chunk: its words, and the pieces of which its word vectors are summed."""
        from llmsvc.files.vectors import pieces_of

        texts = self.passages
        return list(zip((words(text) or [""] for text in texts), pieces_of(texts), strict=True))

    @cached_property
    def text(self) -> str:
        """Whole, with its page numbers."""
        if self.kind != "pdf" or len(self.pages) < 2:
            return "\n\n".join(self.pages)
        return "\n\n".join(f"[p.{number}]\n{page}" for number, page in enumerate(self.pages, 1))


class Library:
    """The files of a chat that were read, oldest first. Immutable, but for the index that is built when first asked."""

    def __init__(
        self, documents: Iterable[Document] = (), unread: Iterable[str] = (), meaning: "Meaning | None" = None
    ) -> None:
        self.documents, self.unread, self.meaning = list(documents), list(unread), meaning
        self._lock = threading.Lock()
        self._built: tuple[list[Chunk], Any, Any] | None = None
        self._meant: tuple[Array, Array, Array] | None = None

    def find(self, file_id: str) -> Document | None:
        return next((found for found in self.documents if found.id == file_id), None)

    def named(self, text: str) -> list[Document]:
        """The files that a text names, each with its ending."""
        low = text.casefold()
        # ASCII: signs of Chinese may stand right beside a name.
        around = r"(?<![\w.-]){}(?![\w-])".format
        names = ((document, document.name.casefold()) for document in self.documents)
        return [
            document for document, name in names if name in low and re.search(around(re.escape(name)), low, re.ASCII)
        ]

    def search(self, query: str, limit: int, without: frozenset[str] = frozenset()) -> list[Chunk]:
        """At most ``limit`` chunks that have words of the query, or mean the same, best first; none of ``without``."""
        import numpy as np

        chunks, index, vectors = self._index()
        if not chunks:
            return []
        asked = [word for word in dict.fromkeys(words(query)) if word in index.vocab_dict]
        near = self._near(query)
        if not asked and (near is None or not near.any()):
            return []
        scores = index.get_scores(asked) if asked else np.zeros(len(chunks), np.float32)
        likeness = np.maximum(vectors.likeness(query), 0)
        scores = scores / (scores.max() or 1) + ALIKE * likeness / (likeness.max() or 1)
        if near is not None:
            scores += MEANING * near / (near.max() or 1)
        first: Any = 0
        named = {document.id for document in self.named(query)}
        if 0 < len(named) < len(self.documents):
            first = NAMED * np.array([chunk.file.id in named for chunk in chunks])
        order = np.argsort(-(scores + first), kind="stable")
        least = FAINT * scores[order[0]]
        found = (chunks[at] for at in order if scores[at] > least)
        return [chunk for chunk, _ in zip((c for c in found if c.file.id not in without), range(limit), strict=False)]

    def _near(self, query: str) -> "Array | None":
        """How near each chunk's meaning is to that of a text, from 0 to 1; None while not all vectors are there.

        What all chunks share is taken out, but 0 for all where none is ``RELATED`` with it.
        """
        import numpy as np

        from llmsvc.files.vectors import unit

        if self.meaning is None:
            return None
        with self._lock:
            if self._meant is None:
                if not all(document.vectors.exists() for document in self.documents):
                    return None
                found = [rows for document in self.documents if (rows := self.meaning.of(document)) is not None]
                if len(found) < len(self.documents):
                    return None
                rows = np.concatenate(found)
                shared = rows.mean(axis=0)
                self._meant = rows, shared, np.linalg.norm(rows - shared, axis=1) + 1e-9
            rows, shared, lengths = self._meant
        asked = self.meaning.query(query)
        if asked is None:
            return None
        own = unit(asked - shared)
        whole, without = (rows @ np.stack([asked, own], axis=1)).T
        near: Array = np.maximum(without - shared @ own, 0) / lengths * (whole.max() > RELATED)
        return near

    def _index(self) -> tuple[list[Chunk], Any, Any]:
        with self._lock:
            if self._built is None:
                import bm25s

                from llmsvc.files.vectors import Vectors

                chunks = [chunk for document in self.documents for chunk in document.chunks]
                terms = [each for document in self.documents for each in document.terms]
                index = bm25s.BM25() if chunks else None
                if index is not None:
                    index.index([words_ for words_, _ in terms], show_progress=False)
                self._built = chunks, index, Vectors([pieces for _, pieces in terms]) if chunks else None
            return self._built


def words(text: str) -> list[str]:
    """Stems, in order. Names in code count as a whole and by their parts; Chinese and Japanese by pairs of signs."""
    found: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", text)):
        if _WIDE.search(word):
            found += [word[at : at + 2] for at in range(max(1, len(word) - 1))]
            continue
        low = word.casefold()
        if low not in _STOP:
            found.append(low)
        if len(parts := _PARTS.findall(word)) > 1:
            found += [part.casefold() for part in parts]
    return _stemmed(found)


def _stemmed(found: list[str]) -> list[str]:
    import Stemmer

    return [sys.intern(stem) for stem in Stemmer.Stemmer("english").stemWords(found)]
