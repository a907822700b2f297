"""The one gate to the disk: an index file and one file per session.

Rows are plain dicts with a string ``id``. Callers get copies and write through the methods below.
"""

import fcntl
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinydb import TinyDB, where

from llmsvc.errors import NotFound, StorageError
from llmsvc.store.storage import AtomicJSONStorage

Row = dict[str, Any]

_ID = re.compile(r"[0-9a-f]{32}")


class Database:
    """The data directory, locked for this process. Safe to call from any thread."""

    def __init__(self, data_dir: Path) -> None:
        """Raises StorageError when the directory cannot be used or another process has it."""
        self._dir = data_dir
        self._lock = threading.RLock()
        self._lock_file = _lock(data_dir)
        self._index = TinyDB(path=data_dir / "index.json", storage=AtomicJSONStorage)
        self._open: dict[str, TinyDB] = {}

    def close(self) -> None:
        with self._lock:
            self._index.close()
            for database in self._open.values():
                database.close()
            self._lock_file.close()

    # Sessions: rows of the index

    def add_session(self, row: Row) -> None:
        with self._lock:
            self._index.table("sessions").insert(row)

    def session(self, session_id: str) -> Row:
        """Raises NotFound."""
        with self._lock:
            found = self._index.table("sessions").get(where("id") == session_id)
        if found is None:
            raise NotFound("There is no such chat. It may have been deleted; pick one from the list.")
        return dict(found)

    def sessions(self) -> list[Row]:
        with self._lock:
            return [dict(row) for row in self._index.table("sessions").all()]

    def update_session(self, session_id: str, fields: Row) -> None:
        with self._lock:
            self._index.table("sessions").update(fields, where("id") == session_id)

    def remove_session(self, session_id: str) -> None:
        """The index row first: it decides; then the files."""
        with self._lock:
            self._index.table("sessions").remove(where("id") == session_id)
            if (database := self._open.pop(session_id, None)) is not None:
                database.close()
            self._session_path(session_id).unlink(missing_ok=True)

    # Messages: a table of the session's own file

    def add_message(self, session_id: str, row: Row) -> None:
        with self._messages(session_id) as table:
            table.insert(row)

    def add_messages(self, session_id: str, rows: list[Row]) -> None:
        with self._messages(session_id) as table:
            table.insert_multiple(rows)

    def update_message(self, session_id: str, message_id: str, fields: Row) -> None:
        with self._messages(session_id) as table:
            table.update(fields, where("id") == message_id)

    def messages(self, session_id: str) -> list[Row]:
        """In the order they were added."""
        with self._messages(session_id) as table:
            return [dict(row) for row in table.all()]

    # Settings: one row for each key

    def setting(self, key: str) -> Row:
        with self._lock:
            found = self._index.table("settings").get(where("key") == key)
        return dict(found["values"]) if found else {}

    def set_setting(self, key: str, values: Row) -> None:
        with self._lock:
            self._index.table("settings").upsert({"key": key, "values": values}, where("key") == key)

    @contextmanager
    def _messages(self, session_id: str) -> Iterator[Any]:
        with self._lock:
            database = self._open.get(session_id)
            if database is None:
                database = TinyDB(path=self._session_path(session_id), storage=AtomicJSONStorage)
                self._open[session_id] = database
            yield database.table("messages")

    def _session_path(self, session_id: str) -> Path:
        if not _ID.fullmatch(session_id):
            raise NotFound("There is no such chat.")
        return self._dir / "sessions" / session_id[:2] / f"{session_id}.json"


def _lock(data_dir: Path) -> Any:
    """Take the directory for this process; the kernel drops the lock when the process ends, however it ends."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (data_dir / ".lock").open("a+")
    except OSError as error:
        raise StorageError(
            f"The data directory {data_dir} cannot be used ({error.strerror}). Choose another one with --data-dir."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        raise StorageError(
            f"The data directory {data_dir} is in use by process {file.read().strip() or '?'}. "
            "Stop that process, or choose another directory with --data-dir."
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    if shutil.disk_usage(data_dir).free < 10_000_000:
        raise StorageError(f"The disk of {data_dir} is full. Free some space first.")
    return file
