"""A TinyDB whose commits cost one append, and that survives a crash at any byte.

``x.json`` is what stock TinyDB writes, with one more table, ``_llmsvc``: the last commit in it and a checksum.
``x.json.journal`` holds the commits since. Opening replays the journal; closing folds it into the snapshot.
"""

import errno
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any
from zlib import crc32

from tinydb import Storage, TinyDB
from tinydb.table import Document, Table

from llmsvc.errors import StorageError
from llmsvc.store import journal
from llmsvc.store.disk import Disk
from llmsvc.store.journal import Damaged, Operation

log = logging.getLogger(__name__)

Tables = dict[str, dict[str, dict[str, Any]]]

META = "_llmsvc"
FORMAT = 1
COMPACT_BYTES = 1_000_000


class JournalStorage(Storage):
    """One database file. Safe from any thread; every method raises StorageError naming the file.

    A commit is on the medium before it is in memory, and in memory before ``commit`` returns; inside of
    ``putting_off`` it is in memory only, and on the medium with the next commit or ``flush``. ``sequence``: the number
    of the last commit. ``repairs``: with ``salvage``, what had to be given up to open a damaged file.
    """

    def __init__(
        self, path: Path, disk: Disk | None = None, *, compact_bytes: int = COMPACT_BYTES, salvage: bool = False
    ) -> None:
        self.path, self.lock = path, threading.RLock()
        self.repairs: list[str] = []
        self.sequence = 0
        self._journal_path = path.with_name(path.name + ".journal")
        self._disk, self._floor, self._salvage = disk or Disk(), compact_bytes, salvage
        self._tables: Tables = {}
        self._handle: int | None = None
        self._end = 0
        self._has_journal = False
        self._compact_at = compact_bytes
        self._refuse = ""
        self._later: dict[tuple[str, str | None], Operation] = {}
        self._puts_off = False
        self._open()

    def read(self) -> Tables:
        """The live tables. Only the outer dict is a copy: JournalTable copies each document it gives out."""
        return dict(self._tables)

    def write(self, data: Mapping[str, Mapping[Any, Any]] | None) -> None:
        """Replace everything, as TinyDB does to drop tables."""
        with self.lock:
            new = data or {}
            operations: list[Operation] = [(name, None, None) for name in self._tables if name not in new]
            for name, table in new.items():
                if table is not self._tables.get(name):
                    operations += [(name, None, None), (name, None, {})]
                    operations += [(name, str(id_), dict(document)) for id_, document in table.items()]
            self.commit(operations)

    def commit(self, operations: list[Operation]) -> None:
        """All of ``operations`` or none, durable on return. Raises TypeError for what JSON cannot hold."""
        if not operations:
            return
        with self.lock:
            self._check_open()
            if self._puts_off:
                self._put_off(json.loads(json.dumps(operations)))
            else:
                self._write(operations)

    @contextmanager
    def putting_off(self) -> Iterator[None]:
        """For changes that are worth no write of their own. What is put off goes into one record, so that a crash
        takes all of it or nothing. It holds the lock."""
        with self.lock:
            self._puts_off = True
            try:
                yield
            finally:
                self._puts_off = False

    def _check_open(self) -> None:
        if self._refuse:
            raise StorageError(self._refuse)

    def _write(self, operations: list[Operation]) -> None:
        """What was put off, and these."""
        record = journal.encode(self.sequence + 1, [*self._later.values(), *operations])
        self._append(record)
        self.sequence += 1
        # From the record, not from the caller: memory then equals the disk, and shares nothing with the caller.
        apply(self._tables, json.loads(record[18:])["o"])
        self._later = {}
        if self._end >= self._compact_at:
            try:
                self._compact()
            except OSError as error:  # nothing is lost: the journal has it
                log.warning("%s: compaction put off (%s)", self.path, error.strerror)
                self._compact_at = 2 * self._end

    def _put_off(self, operations: list[Operation]) -> None:
        for table, id_, document in operations:
            self._later.pop((table, id_), None)  # so that it stands at the end
            self._later[table, id_] = (table, id_, document)
        apply(self._tables, operations)

    def flush(self) -> None:
        """Put on the medium what was put off."""
        with self.lock:
            if self._later:
                self._check_open()
                self._write([])

    def close(self) -> None:
        """Fold the journal into the snapshot and remove it. The journal keeps everything if that fails."""
        with self.lock:
            if self._refuse == _CLOSED:
                return
            try:
                if not self._refuse:
                    if self._end or self._later:
                        self._compact()
                    if self._has_journal:
                        self._disk.remove(self._journal_path)
            except OSError as error:
                raise self._error(error, self.path) from error
            finally:
                self._refuse = _CLOSED
                if self._handle is not None:
                    self._disk.close(self._handle)
                self._handle = None

    def rewrite(self) -> None:
        """Write a whole new snapshot now. Raises StorageError."""
        with self.lock:
            try:
                self._compact()
            except OSError as error:
                raise self._error(error, self.path) from error

    def delete(self) -> None:
        """Close, and remove the files instead of keeping them."""
        with self.lock:
            self._refuse = _CLOSED
            if self._handle is not None:
                self._disk.close(self._handle)
            self._handle = None
            try:
                self._disk.remove(self._journal_path)
                self._disk.remove(self.path)
            except OSError as error:
                raise self._error(error, self.path, "removed") from error

    def _open(self) -> None:
        self._read_snapshot()
        try:
            data = self._disk.read(self._journal_path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._error(error, self._journal_path, "read") from error
        self._has_journal = True
        try:
            replayed = journal.replay(data, salvage=self._salvage)
            self._replay(replayed.records)
        except Damaged as damage:
            raise self._damaged(self._journal_path, str(damage)) from damage
        if replayed.lost:
            self.repairs.append(f"{replayed.lost} damaged commits given up")
        self._end = replayed.good
        if replayed.good < len(data):
            log.warning("%s: an unfinished write at its end was cut off", self._journal_path)
            try:
                self._handle = self._disk.open(self._journal_path)
                self._cut(replayed.good)
            except OSError as error:  # still readable; and nothing may be appended behind a torn record
                self._refuse = str(self._error(error, self._journal_path))

    def _read_snapshot(self) -> None:
        try:
            text = self._disk.read(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._error(error, self.path, "read") from error
        try:
            tables = json.loads(text) if text else {}
            tables.pop(META, None)
            if not all(set(map(type, table.values())) <= {dict} for table in tables.values()):
                raise ValueError("this is no TinyDB file")
        except (ValueError, AttributeError, TypeError) as error:
            if not self._salvage:
                raise self._damaged(self.path, str(error)) from error
            self.repairs.append(f"unreadable snapshot given up ({error})")
            return
        meta = _META_LINE.search(text)
        if meta is None or int(meta[2]) != _checksum(text[: meta.start()], int(meta[1])):
            if not self._salvage:
                raise self._damaged(self.path, "it was changed by another program, or by a failing disk")
            self.repairs.append("content with a wrong checksum accepted as it is")
        self.sequence = int(meta[1]) if meta else 0
        self._tables = tables

    def _replay(self, records: list[tuple[int, list[Operation]]]) -> None:
        for sequence, operations in records:
            if sequence <= self.sequence:  # older than the snapshot
                continue
            if sequence != self.sequence + 1 and not self._salvage:
                raise Damaged(f"commits {self.sequence + 1:,} to {sequence - 1:,} are missing")
            apply(self._tables, operations)
            self.sequence = sequence

    def _append(self, record: bytes) -> None:
        try:
            if self._handle is None:
                self._disk.make_folder(self.path.parent)
                self._handle = self._disk.open(self._journal_path)
                self._has_journal = True
                self._disk.sync_folder(self.path.parent)
            self._disk.write(self._handle, record, self._end)
        except OSError as error:
            if self._handle is not None:
                try:
                    self._cut(self._end)
                except OSError as worse:
                    self._refuse = str(self._error(worse, self._journal_path))
            raise self._error(error, self._journal_path) from error
        try:
            self._disk.sync(self._handle)
        except OSError as error:
            # The kernel may have dropped the data and calls the next sync a success, so no retry can be trusted.
            refused = self._error(error, self._journal_path)
            self._refuse = f"{refused} Restart llmsvc once the disk is well."
            with suppress(OSError):
                self._cut(self._end)
            raise refused from error
        self._end += len(record)

    def _cut(self, size: int) -> None:
        """Shorten the journal, durably: a later append must never meet what was behind it."""
        assert self._handle is not None
        self._disk.truncate(self._handle, size)
        self._disk.sync(self._handle)

    def _compact(self) -> None:
        data = snapshot(self._tables, self.sequence)
        replace(self.path, data, self._disk)
        if self._handle is None:
            self._handle = self._disk.open(self._journal_path)
            self._has_journal = True
        self._cut(0)
        self._end, self._later = 0, {}
        self._compact_at = max(self._floor, len(data))

    def _error(self, error: OSError, path: Path, verb: str = "written") -> StorageError:
        todo = "Free some disk." if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check the disk and its rights."
        start = "Not saved: " if verb == "written" else ""
        return StorageError(f"{start}{path} cannot be {verb} ({error.strerror}). {todo}")

    def _damaged(self, path: Path, why: str) -> StorageError:
        return StorageError(
            f"{path} is damaged: {why}. Nothing was changed. Restore it from a backup, or keep what can be read with "
            "python -m llmsvc.store repair."
        )


_CLOSED = "The store is closed."


def apply(tables: Tables, operations: list[Operation]) -> None:
    """Carry out what a commit says."""
    for name, id_, document in operations:
        if id_ is not None and document is not None:
            tables.setdefault(name, {})[id_] = document
        elif id_ is not None:
            tables.get(name, {}).pop(id_, None)
        elif document is not None:
            tables.setdefault(name, {})
        else:
            tables.pop(name, None)


def snapshot(tables: Tables, sequence: int) -> bytes:
    """A whole file, with what is needed to check it."""
    text = json.dumps(tables)[:-1].encode("ascii")
    meta = f'"{META}": {{"1": {{"sequence": {sequence}, "format": {FORMAT}, "crc32": {_checksum(text, sequence)}}}}}}}'
    return text + (b", " if tables else b"") + meta.encode("ascii")


def replace(path: Path, data: bytes, disk: Disk | None = None) -> None:
    """Put ``data`` in place of a file, durably, or leave it as it was and raise OSError."""
    disk, part = disk or Disk(), path.with_name(path.name + ".tmp")
    try:
        handle = disk.open(part, empty=True)
        try:
            disk.write(handle, data, 0)
            disk.sync(handle)
        finally:
            disk.close(handle)
    except OSError:
        with suppress(OSError):
            disk.remove(part)
        raise
    disk.rename(part, path)
    disk.sync_folder(path.parent)


_META_LINE = re.compile(
    rb'(?:, )?"%s": \{"1": \{"sequence": ([0-9]+), "format": %d, "crc32": ([0-9]+)\}\}\}$' % (META.encode(), FORMAT)
)


def _checksum(text: bytes, sequence: int) -> int:
    return crc32(b"%d" % sequence, crc32(text))


class _Staged(MutableMapping[int, dict[str, Any]]):
    """What an updater of TinyDB sees: the table with int keys, copied where it is touched."""

    def __init__(self, table: dict[str, dict[str, Any]]) -> None:
        self._table = table
        self.changed: dict[str, dict[str, Any] | None] = {}

    def __getitem__(self, id_: int) -> dict[str, Any]:
        key = str(id_)
        if key not in self.changed:
            self.changed[key] = copied(self._table[key])
        if (document := self.changed[key]) is None:
            raise KeyError(id_)
        return document

    def __setitem__(self, id_: int, document: dict[str, Any]) -> None:
        self.changed[str(id_)] = document

    def __delitem__(self, id_: int) -> None:
        if id_ not in self:
            raise KeyError(id_)
        self.changed[str(id_)] = None

    def __contains__(self, id_: object) -> bool:
        key = str(id_)
        return self.changed[key] is not None if key in self.changed else key in self._table

    def __iter__(self) -> Iterator[int]:
        for key in self._table:
            if self.changed.get(key, self) is not None:
                yield int(key)
        for key, document in self.changed.items():
            if key not in self._table and document is not None:
                yield int(key)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def operations(self, name: str) -> list[Operation]:
        return [(name, key, doc) for key, doc in self.changed.items() if doc != self._table.get(key)]


def own(found: Any) -> Any:
    """Documents that are the caller's own, down to their last list."""
    if isinstance(found, Document):
        return Document(copied(found), found.doc_id)
    return [own(document) for document in found] if isinstance(found, list) else found


def copied(value: Any) -> Any:
    """A copy of anything JSON holds; several times faster than ``copy.deepcopy``."""
    if isinstance(value, dict):
        return {k: copied(v) if isinstance(v, (dict, list)) else v for k, v in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


class JournalTable(Table):
    """Stock TinyDB but for ``_update_table``, which commits the difference instead of rewriting the file."""

    default_query_cache_capacity = 0  # a cached result would be shared between callers

    _storage: JournalStorage

    def _update_table(self, updater: Callable[[Any], None]) -> None:
        staged = _Staged(self._read_table())  # type: ignore[arg-type]
        try:
            updater(staged)
            self._storage.commit(staged.operations(self.name))
        except BaseException:
            self._next_id = None  # ids that were handed out for nothing
            raise

    def __iter__(self) -> Iterator[Document]:
        with self._storage.lock:
            return iter([own(document) for document in super().__iter__()])


def _locked(name: str) -> Callable[..., Any]:
    stock = getattr(Table, name)

    @wraps(stock)
    def method(self: JournalTable, *args: Any, **kwargs: Any) -> Any:
        with self._storage.lock:
            return own(stock(self, *args, **kwargs))

    return method


for _name in (
    *("insert", "insert_multiple", "update", "update_multiple", "upsert", "remove", "truncate"),
    *("all", "search", "get", "contains", "count", "__len__"),
):
    setattr(JournalTable, _name, _locked(_name))


class JournalDB(TinyDB):
    """``TinyDB(path)`` over a JournalStorage, safe from any thread."""

    table_class = JournalTable
    default_storage_class = JournalStorage  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return True  # stock TinyDB is false while its default table is empty

    def table(self, name: str, **kwargs: Any) -> Table:
        with self.storage.lock:  # type: ignore[attr-defined]
            return super().table(name, **kwargs)

    def drop_table(self, name: str) -> None:
        with self.storage.lock:  # type: ignore[attr-defined]
            super().drop_table(name)

    def drop_tables(self) -> None:
        with self.storage.lock:  # type: ignore[attr-defined]
            super().drop_tables()
