"""The one gate to the disk: an index, one file per session, and one per uploaded file's text.

Rows are plain dicts with a string ``id``. Callers get copies and write through the methods below.
"""

import fcntl
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmsvc.errors import NotFound, StorageError
from llmsvc.store import migrate, search
from llmsvc.store.rows import Row, Rows
from llmsvc.store.shelf import Shelf
from llmsvc.store.storage import JournalDB

__all__ = ["Database", "Row"]

log = logging.getLogger(__name__)

LISTED = ("id", "title", "created_at", "updated_at", "model", "turns")
"""What a list of sessions has of each."""

_ID = re.compile(r"[0-9a-f]{32}")
_NO_CHAT = "There is no such chat. It may have been deleted; pick one from the list."


class Database:
    """The data directory, locked for this process. Safe to call from any thread.

    An action on two files writes the index first: its row decides what exists. Every write raises StorageError,
    with nothing changed, when the disk refuses. ``unclean``: sessions that were in use when the last process died.
    """

    def __init__(self, data_dir: Path) -> None:
        """Raises StorageError when the directory cannot be used or another process has it."""
        self._dir = data_dir
        self._lock_file = lock(data_dir)
        self.unclean: set[str] = set()
        self._shelf = Shelf(JournalDB)
        self._texts = Shelf(JournalDB, capacity=8)  # of files: each may be some megabytes
        try:
            migrate.run(data_dir)
            self._index_db = JournalDB(index_path(data_dir))
            with suppress(StorageError):  # a disk that cannot be written can still be read
                self.index("meta").put({"id": "version", "version": migrate.VERSION})
            self._sessions, self._settings = self.index("sessions"), self.index("settings")
            self._removed = self.index("removed")
            self._recover()
        except BaseException:
            self._lock_file.close()
            raise

    def close(self) -> None:
        """Fold all journals. Raises StorageError when the disk refuses; the journals then keep everything."""
        try:
            self._texts.close()
            self._shelf.close()
            self._index_db.close()
        finally:
            self._lock_file.close()

    def index(self, table: str) -> Rows:
        """A table of the index: sessions, settings, files, models, credentials."""
        return Rows(self._index_db, table)

    # Sessions: rows of the index

    def add_session(self, row: Row) -> None:
        self._sessions.add(row)

    def session(self, session_id: str) -> Row:
        """Raises NotFound."""
        if (row := self._sessions.get(session_id)) is None:
            raise NotFound(_NO_CHAT)
        return row

    def owned_session(self, owner: str, session_id: str, deleted: bool = False) -> Row:
        """One that is there for ``owner``, or is ``deleted`` and can be restored. Raises NotFound.

        Another's answers as one that does not exist.
        """
        row = self.session(session_id)
        if row["owner"] != owner:
            raise NotFound(_NO_CHAT)
        if row["undo_until"] is not None and not deleted:
            raise NotFound("This chat was deleted.")
        return row

    def sessions(self) -> list[Row]:
        return self._sessions.all()

    def newest_sessions(self, owner: str, limit: int) -> list[Row]:
        """The sessions of ``owner`` that are not deleted, last used first; ``LISTED`` of each."""

        def wanted(row: Row) -> bool:
            return bool(row["owner"] == owner and row["undo_until"] is None)

        return self._sessions.largest("updated_at", limit, wanted, LISTED)

    def sessions_with(self, field: str) -> list[Row]:
        """Those whose ``field`` holds something, without copying the others."""
        return self._sessions.find(lambda row: bool(row.get(field)))

    def update_session(self, session_id: str, fields: Row) -> None:
        self._sessions.update(session_id, fields)

    def update_session_later(self, session_id: str, fields: Row) -> None:
        """On the medium with the next write to the index, or with ``flush``; a crash before may lose it."""
        self._sessions.update_later(session_id, fields)

    def flush(self) -> None:
        """Write what was put off."""
        self._index_db.storage.flush()  # type: ignore[attr-defined]

    def remove_session(self, session_id: str) -> None:
        """Free its disk. A crash in the middle is finished at the next start."""
        path = self._session_path(session_id)
        self._removed.put({"id": session_id})
        self._sessions.remove(session_id)
        self._shelf.delete(path)
        self._remove_files(session_id)
        self._removed.remove(session_id)

    def search_sessions(self, owner: str, needle: search.Needle) -> Iterator[Row]:
        """The sessions of ``newest_sessions`` whose title or messages contain the words. Reads every file."""
        opened = self._shelf.opened()
        folder = str(self._dir / "sessions")
        for row in self.newest_sessions(owner, sys.maxsize):
            id_ = row["id"]
            if needle.in_text(row["title"]) or (
                self._mentions(id_, needle) if id_ in opened else needle.in_file(f"{folder}/{id_[:2]}/{id_}.json")
            ):
                yield row

    def _mentions(self, session_id: str, needle: search.Needle) -> bool:
        try:
            with self.session_rows(session_id, "messages") as rows:
                return bool(rows.find(lambda message: needle.in_text(message["content"])))
        except (NotFound, StorageError):  # deleted meanwhile, or damaged: it says so when it is opened
            return False

    # Messages: a table of the session's own file

    def add_messages(self, session_id: str, rows: list[Row]) -> None:
        """All of them in one commit, durable on return."""
        with self.session_rows(session_id, "messages") as table:
            table.add(*rows)

    def update_message(self, session_id: str, message_id: str, fields: Row) -> None:
        with self.session_rows(session_id, "messages") as table:
            table.update(message_id, fields)

    def messages(self, session_id: str) -> list[Row]:
        """Those of every branch, in the order they were added."""
        with self.session_rows(session_id, "messages") as table:
            return table.all()

    @contextmanager
    def session_rows(self, session_id: str, table: str) -> Iterator[Rows]:
        """A table of the session's own file, lent. Raises NotFound."""
        path = self._session_path(session_id)
        if session_id not in self._sessions:
            raise NotFound(_NO_CHAT)
        with self._shelf.lend(path) as volume:
            yield volume.rows(table)

    # Files: rows in the session's own file; the text of each, and its original, beside one another

    def original(self, session_id: str, file_id: str) -> Path:
        """Where an uploaded file is kept as it came."""
        return self._file_path(session_id, file_id).with_suffix(".original")

    def vectors(self, session_id: str, file_id: str) -> Path:
        """Where the vectors of its passages are kept."""
        return self._file_path(session_id, file_id).with_suffix(".vectors")

    def file(self, session_id: str, file_id: str) -> Row:
        """Raises NotFound."""
        with self.session_rows(session_id, "files") as rows:
            if row := rows.get(file_id):
                return row
        raise NotFound("There is no such file in this chat. It may have been removed.")

    @contextmanager
    def file_rows(self, session_id: str, file_id: str, table: str) -> Iterator[Rows]:
        """A table of what was read from a file, lent. Raises NotFound."""
        self.file(session_id, file_id)
        with self._texts.lend(self._file_path(session_id, file_id)) as volume:
            yield volume.rows(table)

    def clear_file(self, session_id: str, file_id: str) -> None:
        """Forget what was read from it."""
        path = self._file_path(session_id, file_id)
        try:
            self._texts.delete(path)
        except StorageError:  # damaged, so it cannot even be opened
            self._texts.forget(path)
            _unlink(path, path.with_name(path.name + ".journal"))
        _unlink(self.vectors(session_id, file_id))

    def remove_file(self, session_id: str, file_id: str) -> None:
        """Its row, its text and its original. A crash in the middle is finished at the next start."""
        self._removed.put({"id": file_id, "session": session_id})
        with self.session_rows(session_id, "files") as rows:
            rows.remove(file_id)
        self._remove_from_disk(session_id, file_id)
        self._removed.remove(file_id)

    def stored_bytes(self) -> dict[str, int]:
        """Of all that is kept of files, by owner."""
        kept: dict[str, int] = {}
        with suppress(FileNotFoundError):
            for folder in os.scandir(self._dir / "files"):
                owner = (self._sessions.get(folder.name) or {}).get("owner", "")
                with suppress(FileNotFoundError):
                    size = sum(entry.stat().st_size for entry in os.scandir(folder))
                    kept[owner] = kept.get(owner, 0) + size
        return kept

    def free_bytes(self) -> int:
        """Of the disk."""
        return shutil.disk_usage(self._dir).free

    def _remove_from_disk(self, session_id: str, file_id: str) -> None:
        self.clear_file(session_id, file_id)
        original = self.original(session_id, file_id)
        _unlink(original)
        with suppress(OSError):  # the last one takes the folder along
            original.parent.rmdir()

    def _remove_files(self, session_id: str) -> None:
        folder = self._dir / "files" / session_id
        with suppress(FileNotFoundError):
            for id_ in {name.split(".")[0] for name in os.listdir(folder)}:
                self._remove_from_disk(session_id, id_)
            shutil.rmtree(folder, ignore_errors=True)

    def _file_path(self, session_id: str, file_id: str) -> Path:
        if not (_ID.fullmatch(session_id) and _ID.fullmatch(file_id)):
            raise NotFound("There is no such file.")
        return self._dir / "files" / session_id / f"{file_id}.json"

    # Settings: one row for each key

    def setting(self, key: str) -> Row:
        row = self._settings.get(key)
        return row["values"] if row else {}

    def set_setting(self, key: str, values: Row) -> None:
        self._settings.put({"id": key, "values": values})

    def _recover(self) -> None:
        """Finish what a crash interrupted: removals, and journals that were not folded."""
        for row in self._removed.all():
            with suppress(StorageError):  # a disk that cannot be written: next time
                if session_id := row.get("session"):
                    with suppress(NotFound):
                        self.remove_file(session_id, row["id"])
                else:
                    self._sessions.remove(row["id"])
                    self._shelf.delete(self._session_path(row["id"]))
                    self._remove_files(row["id"])
                self._removed.remove(row["id"])
        for path in leftovers(self._dir):
            try:
                if path.suffix == ".tmp":
                    path.unlink()
                else:
                    self.unclean.add(path.with_suffix("").stem)
                    JournalDB(path.with_suffix("")).close()
            except (OSError, StorageError) as error:  # that one chat says so when it is opened; the others work
                log.warning("%s", error)

    def _session_path(self, session_id: str) -> Path:
        if not _ID.fullmatch(session_id):
            raise NotFound("There is no such chat.")
        return session_path(self._dir, session_id)


def index_path(data_dir: Path) -> Path:
    return data_dir / "index.json"


@lru_cache(4096)
def session_path(data_dir: Path, session_id: str) -> Path:
    return data_dir / "sessions" / session_id[:2] / f"{session_id}.json"


def _unlink(*paths: Path) -> None:
    """Raises StorageError."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{path} could not be removed ({error.strerror}). Check its rights.") from error


def leftovers(data_dir: Path) -> list[Path]:
    """Journals and unfinished snapshots of sessions and files: there are none after a clean stop."""
    found = []
    for kind in ("sessions", "files"):
        with suppress(FileNotFoundError):  # pathlib's glob takes ten times as long
            for folder in os.listdir(data_dir / kind):
                shelf = f"{data_dir}/{kind}/{folder}"
                found += [Path(shelf, name) for name in os.listdir(shelf) if name.endswith((".journal", ".tmp"))]
    return found


def lock(data_dir: Path) -> Any:
    """Take the directory for this process; the kernel drops the lock when the process ends, however it ends."""
    path = data_dir / ".lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = path.open("a+") if os.access(data_dir, os.W_OK) or not path.exists() else path.open("r")
    except OSError as error:
        raise StorageError(
            f"The data directory {data_dir} cannot be used ({error.strerror}). Choose another one with --data-dir."
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "?"
        file.close()
        raise StorageError(
            f"The data directory {data_dir} is in use by process {holder}. "
            "Stop that process, or choose another directory with --data-dir."
        ) from None
    with suppress(OSError, ValueError):  # on a full or read-only disk the lock holds, only its owner stays unnamed
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    return file
