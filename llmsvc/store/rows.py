"""A TinyDB table whose rows are dicts with a unique string ``id``, found without a scan."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from tinydb.table import Document

from llmsvc.store.storage import JournalDB, JournalStorage, copied

Row = dict[str, Any]


class Rows:
    """Callers get copies, in the order of insertion, and write through these methods. Safe from any thread."""

    def __init__(self, database: JournalDB, name: str) -> None:
        self._storage: JournalStorage = database.storage  # type: ignore[assignment]
        self._lock = self._storage.lock
        self._table = database.table(name)
        self._numbers = {row["id"]: int(number) for number, row in self._rows().items()}

    def _rows(self) -> dict[str, Row]:
        """By their numbers: the store's own, not to be changed or given out."""
        return self._table._read_table()  # type: ignore[return-value]

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, id_: object) -> bool:
        return id_ in self._numbers

    def get(self, id_: str) -> Row | None:
        with self._lock:
            number = self._numbers.get(id_)
            return None if number is None else copied(self._rows()[str(number)])

    def all(self) -> list[Row]:
        with self._lock:
            return [copied(row) for row in self._rows().values()]

    def find(self, wanted: Callable[[Row], bool]) -> list[Row]:
        """The rows for which ``wanted`` (which must not change them) is true."""
        with self._lock:
            return [copied(row) for row in self._rows().values() if wanted(row)]

    def count(self, wanted: Callable[[Row], bool]) -> int:
        """How many rows there are for which ``wanted`` (which must not change them) is true."""
        with self._lock:
            return sum(map(wanted, self._rows().values()))

    def largest(self, key: str, limit: int, wanted: Callable[[Row], bool], columns: Sequence[str]) -> list[Row]:
        """Those ``columns``, which hold no lists or dicts, of at most ``limit`` rows with the largest ``row[key]``."""
        with self._lock:
            rows = sorted(filter(wanted, self._rows().values()), key=itemgetter(key), reverse=True)
            return [{name: row[name] for name in columns} for row in rows[:limit]]

    def greatest(self, key: str) -> Row | None:
        """The row with the largest ``row[key]``."""
        with self._lock:
            rows = self._rows().values()
            return copied(max(rows, key=itemgetter(key))) if rows else None

    def most(self, key: str) -> int:
        """The largest ``row[key]``, a number above 0; 0 when there are no rows."""
        with self._lock:
            return max(map(itemgetter(key), self._rows().values()), default=0)

    def add(self, *rows: Row) -> None:
        """Insert new rows, in one commit."""
        with self._lock:
            numbers = self._table.insert_multiple(rows)
            self._numbers.update(zip((row["id"] for row in rows), numbers, strict=True))

    def update(self, id_: str, fields: Row) -> bool:
        """Set ``fields``; false when there is no such row."""
        with self._lock:
            number = self._numbers.get(id_)
            return number is not None and bool(self._table.update(fields, doc_ids=[number]))

    def update_later(self, id_: str, fields: Row) -> None:
        """``update``, on the medium only with the next change or flush of the file."""
        with self._storage.putting_off():
            self.update(id_, fields)

    def put(self, row: Row) -> None:
        """Insert the row, or set its fields on the one with its id."""
        with self._lock:
            if (number := self._numbers.get(row["id"])) is None:
                self.add(row)
            else:
                self._table.upsert(Document(row, number))

    def remove(self, id_: str) -> None:
        with self._lock:
            if (number := self._numbers.get(id_)) is not None:
                self._table.remove(doc_ids=[number])
                del self._numbers[id_]
