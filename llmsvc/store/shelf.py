"""Databases that are opened when needed, lent while used, and closed when many others were used since."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmsvc.store.rows import Rows
from llmsvc.store.storage import JournalDB


class Volume:
    """One file on the shelf: its tables, by name."""

    def __init__(self, database: JournalDB) -> None:
        self.database = database
        self._rows: dict[str, Rows] = {}

    def rows(self, table: str) -> Rows:
        with self.database.storage.lock:  # type: ignore[attr-defined]
            if table not in self._rows:
                self._rows[table] = Rows(self.database, table)
            return self._rows[table]


class _Place:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.volume: Volume | None = None
        self.lent = 0


class Shelf:
    """At most ``capacity`` volumes stay open, besides those that are lent. Safe from any thread."""

    def __init__(self, open_: Callable[[Path], JournalDB], capacity: int = 256) -> None:
        self._open, self._capacity = open_, capacity
        self._lock = threading.Lock()
        self._places: OrderedDict[Path, _Place] = OrderedDict()

    @contextmanager
    def lend(self, path: Path) -> Iterator[Volume]:
        """The volume at ``path``; it is not closed before the block ends. Raises StorageError."""
        with self._lock:
            place = self._places.setdefault(path, _Place())
            self._places.move_to_end(path)
            place.lent += 1
        try:
            with place.lock:
                if place.volume is None:
                    place.volume = Volume(self._open(path))
                volume = place.volume
            yield volume
        finally:
            with self._lock:
                place.lent -= 1
                self._tidy()

    def _tidy(self) -> None:
        """Close the least recently used. Under the lock: nobody may open a file that is being closed."""
        spare = len(self._places) - self._capacity
        if spare > 0:
            for path, place in [item for item in self._places.items() if not item[1].lent][:spare]:
                del self._places[path]
                if place.volume is not None:
                    place.volume.database.close()

    def opened(self) -> set[str]:
        """The names, without suffix, of the files whose newest content may be in a journal."""
        with self._lock:
            return {path.stem for path in self._places}

    def delete(self, path: Path) -> None:
        """Remove a volume's files; whoever still holds it is refused from then on."""
        with self.lend(path) as volume:
            volume.database.storage.delete()  # type: ignore[attr-defined]
        self.forget(path)

    def forget(self, path: Path) -> None:
        """Open it anew when it is lent next."""
        with self._lock:
            self._places.pop(path, None)

    def close(self) -> None:
        with self._lock:
            places, self._places = list(self._places.values()), OrderedDict()
        for place in places:
            if place.volume is not None:
                place.volume.database.close()
