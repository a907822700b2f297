"""The files of each chat: taken in, listed, read and removed. Parsing goes on behind (``ingest``)."""

import codecs
import os
import secrets
import shutil
import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmsvc.errors import BadRequest, Conflict, NotFound, StorageError
from llmsvc.files.ingest import Ingest, Job, Outcome
from llmsvc.files.limits import GUESTS_TOGETHER, Limits, size
from llmsvc.files.meaning import Meaning
from llmsvc.files.retrieval import Document, Library
from llmsvc.store.database import Database, Row

_LONGEST_NAME = 120
_LIBRARIES = 8
"""Chats whose files and index stay in memory."""
_UNFINISHED, _READ = ("queued", "parsing"), ("ready", "partial")


class Files:
    """Of every owner; another owner's answer as those that do not exist. Safe from any thread; methods may wait for
    the disk.

    A row is ``{id, name, bytes, state, progress, pages, error, note, kind, encoding, characters, locked, created_at}``.
    ``state`` is queued, parsing, ready, partial, needs OCR or failed; ``progress`` goes from 0 to 1.
    """

    def __init__(self, database: Database, limits: Limits, meaning: Meaning | None = None) -> None:
        self._db, self.limits, self._meaning = database, limits, meaning or Meaning()
        self._ingest = Ingest(limits)
        self._unfinished = database.index("files")
        self._jobs: dict[str, Job] = {}
        self._versions: dict[str, int] = {}
        self._libraries: OrderedDict[str, tuple[Any, Library]] = OrderedDict()
        self._lock = threading.RLock()
        self._closing = False

    # What a user does

    def add(self, owner: str, session_id: str, name: str, upload: Path) -> Row:
        """Move an upload in, and begin to parse it. Raises NotFound, BadRequest or Conflict when it is too much."""
        try:
            self._db.owned_session(owner, session_id)
            row = self._checked(owner, name, upload)
            with self._lock:
                if len(self.rows(session_id)) >= self.limits.files:
                    raise Conflict(f"A chat may have at most {self.limits.files} files. Remove one first.")
                self._unfinished.put({"id": row["id"], "session": session_id})
                with self._db.session_rows(session_id, "files") as rows:
                    rows.add(row)
            try:
                self._keep(upload, self._db.original(session_id, row["id"]))
            except OSError as error:
                self._db.remove_file(session_id, row["id"])
                raise StorageError(f"The file was not stored ({error.strerror}). Free some space, try again.") from None
        finally:
            with suppress(OSError):  # the upload folder can be read by whoever knows its address
                upload.unlink(missing_ok=True)
                upload.parent.rmdir()
        self._queue(session_id, row)
        return self._shown(row)

    def listed(self, owner: str, session_id: str) -> list[Row]:
        """Oldest first. Raises NotFound."""
        self._db.owned_session(owner, session_id)
        return self.rows(session_id)

    def row(self, owner: str, session_id: str, file_id: str) -> Row:
        """Without its text. Raises NotFound."""
        return self._shown(self._row(owner, session_id, file_id))

    def get(self, owner: str, session_id: str, file_id: str) -> Row:
        """With ``text``: that of all pages so far. Raises NotFound."""
        return {**self.row(owner, session_id, file_id), "text": "\n\n".join(self.pages(session_id, file_id))}

    def remove(self, owner: str, session_id: str, file_id: str) -> Row:
        """At any moment: its parser is killed, and its text and original are gone from the disk. Raises NotFound."""
        self._row(owner, session_id, file_id)
        self._halt([file_id])
        self._db.remove_file(session_id, file_id)
        self._unfinished.remove(file_id)
        with self._lock:
            self._libraries.pop(session_id, None)
        self._changed(session_id)
        return {"id": file_id}

    def retry(self, owner: str, session_id: str, file_id: str, password: str = "", encoding: str = "") -> Row:
        """Parse anew, with a password (which is not kept), or in another encoding. Raises NotFound, BadRequest."""
        row = self._row(owner, session_id, file_id)
        try:
            encoding = codecs.lookup(encoding).name if encoding else ""
        except LookupError:
            raise BadRequest(f'"{encoding}" is no known encoding. Try utf-8, cp1252 or utf-16.') from None
        self._halt([file_id])
        fields = {"state": "queued", "error": "", "note": "", "locked": False, "characters": 0}
        self._unfinished.put({"id": file_id, "session": session_id})
        with self._db.session_rows(session_id, "files") as rows:
            rows.update(file_id, fields)
        row |= fields
        self._queue(session_id, row, password, encoding)
        return self._shown(row)

    # What the rooms above ask

    def rows(self, session_id: str) -> list[Row]:
        """Those of a session, oldest first. Raises NotFound."""
        with self._db.session_rows(session_id, "files") as rows:
            return [self._shown(row) for row in rows.all()]

    def pages(self, session_id: str, file_id: str) -> list[str]:
        """The text of each page that was parsed."""
        return [page["text"] for page in self._pages(session_id, file_id)]

    def library(self, session_id: str) -> Library:
        """What can be asked about: the files that were read, as a whole or in part."""
        rows = self.rows(session_id)
        key = tuple((row["id"], row["state"], row["characters"], row["encoding"]) for row in rows)
        with self._lock:
            known = self._libraries.get(session_id)
        if known is None or known[0] != key:
            read = [row for row in rows if row["state"] in _READ]
            documents = [self._document(session_id, row, order) for order, row in enumerate(read)]
            unread = [f"{row['name']} was not read ({row['state']})" for row in rows if row not in read]
            known = key, Library(documents, unread, self._meaning)
            with self._lock:
                self._libraries[session_id] = known
                self._libraries.move_to_end(session_id)
                while len(self._libraries) > _LIBRARIES:
                    self._libraries.popitem(last=False)
        for document in known[1].documents:
            if not document.vectors.exists():
                self._want_vectors(session_id, document.id)
        return known[1]

    def unfinished(self, session_id: str) -> list[Row]:
        """The files that are still to be read. Raises NotFound."""
        if not any(job.session_id == session_id for job in list(self._jobs.values())):
            return []
        return [row for row in self.rows(session_id) if row["state"] in _UNFINISHED]

    def version(self, session_id: str) -> int:
        """Grows with every change that a page shows."""
        return self._versions.get(session_id, 0)

    def halt(self, session_id: str) -> None:
        """Stop parsing: the session was deleted. ``wake`` goes on with it after an undo."""
        self._halt([row["id"] for row in self.rows(session_id)])

    def wake(self, session_id: str) -> None:
        for row in self.rows(session_id):
            if row["state"] in _UNFINISHED:
                self._queue(session_id, row)

    def resume(self) -> None:
        """Begin anew what the last run of the service left unfinished."""
        for note in self._unfinished.all():
            try:
                with self._db.session_rows(note["session"], "files") as rows:
                    row = rows.get(note["id"])
                deleted = self._db.session(note["session"])["undo_until"] is not None
            except NotFound:
                row, deleted = None, False
            except StorageError:  # damaged: it says so when it is opened
                continue
            if row is None:
                self._unfinished.remove(note["id"])
            elif not deleted:
                self._queue(note["session"], row)

    def close(self) -> None:
        """Stop all parsing; it begins anew at the next start."""
        self._closing = True
        with self._lock:
            self._halt(list(self._jobs))
        self._ingest.close()
        self._meaning.close()

    # Inside

    def _want_vectors(self, session_id: str, id_: str) -> None:
        self._meaning.want(id_, lambda: self._document(session_id, self._db.file(session_id, id_)))

    def _document(self, session_id: str, row: Row, order: int = 0) -> Document:
        return Document(row, self._pages(session_id, row["id"]), order, self._db.vectors(session_id, row["id"]))

    def _pages(self, session_id: str, file_id: str) -> list[Row]:
        with self._db.file_rows(session_id, file_id, "pages") as pages:
            return pages.all()

    def _row(self, owner: str, session_id: str, file_id: str) -> Row:
        self._db.owned_session(owner, session_id)
        return self._db.file(session_id, file_id)

    def _checked(self, owner: str, name: str, upload: Path) -> Row:
        try:
            count = upload.stat().st_size
        except OSError:
            raise BadRequest("The upload did not arrive whole. Upload the file again.") from None
        if count > self.limits.upload:
            raise BadRequest(f"This file has {size(count)}; at most {size(self.limits.upload)} may be uploaded.")
        self._check_quota(owner, count)
        if self._db.free_bytes() - count < self.limits.free_disk:
            raise Conflict("The disk is nearly full, so nothing more is taken. Free some space first.")
        return {
            "id": secrets.token_hex(16),
            "name": clean_name(name),
            "bytes": count,
            "state": "queued",
            "pages": 0,
            "error": "",
            "note": "",
            "kind": "",
            "encoding": "",
            "characters": 0,
            "locked": False,
            "created_at": time.time(),
        }

    def _check_quota(self, owner: str, more: int) -> None:
        """Raises Conflict."""
        kept, limits = self._db.stored_bytes(), self.limits
        bounds = [("All uploads", sum(kept.values()), limits.quota)]
        if _guest(owner):
            of_guests = sum(count for name, count in kept.items() if _guest(name))
            bounds += [("All visitors' uploads", of_guests, GUESTS_TOGETHER * limits.guest_quota)]
        bounds += [("Your uploads", kept.get(owner, 0), limits.guest_quota if _guest(owner) else limits.owner_quota)]
        for what, count, most in bounds:
            if count + more > most:
                raise Conflict(f"{what} together may have {size(most)}. Remove files first.")

    def _keep(self, upload: Path, target: Path) -> None:
        """Durably. Raises OSError."""
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copyfile(upload, target)
        handle = os.open(target, os.O_RDONLY)
        try:
            os.chmod(handle, 0o600)
            os.fsync(handle)
        finally:
            os.close(handle)

    def _queue(self, session_id: str, row: Row, password: str = "", encoding: str = "") -> None:
        id_ = row["id"]
        job = Job(id_, session_id, self._db.original(session_id, id_), row["name"], password, encoding)
        with self._lock:
            if self._closing or id_ in self._jobs:
                return
            self._jobs[id_] = job
        self._changed(session_id)
        work = _Work(self._db, session_id, job, lambda: self._changed(session_id))

        def end(outcome: Outcome) -> None:
            work.end(outcome)
            with self._lock:
                if self._jobs.get(id_) is job:  # not begun anew meanwhile
                    del self._jobs[id_]
                    self._unfinished.remove(id_)
            self._changed(session_id)
            if outcome.state in _READ:
                self._want_vectors(session_id, id_)

        self._ingest.submit(job, work.begin, work.take, end)

    def _halt(self, ids: Iterable[str]) -> None:
        ids = list(ids)
        with self._lock:
            jobs = [job for id_ in ids if (job := self._jobs.pop(id_, None))]
        for job in jobs:
            job.stop()
        self._meaning.drop(ids)

    def _changed(self, session_id: str) -> None:
        with self._lock:
            self._versions[session_id] = self._versions.get(session_id, 0) + 1

    def _shown(self, row: Row) -> Row:
        """With the progress, which is kept in memory only."""
        progress = 0.0 if row["state"] in _UNFINISHED else 1.0
        if job := self._jobs.get(row["id"]):
            if job.total:
                progress = round(min(1.0, job.done / job.total), 3)
            row = {**row, "pages": job.total or row["pages"]}
        return {**row, "progress": progress}


class _Work:
    """Writes down what the child of one job says. Under the job's lock, so that nothing is written once it stopped."""

    def __init__(self, database: Database, session_id: str, job: Job, changed: Callable[[], None]) -> None:
        self._db, self._session_id, self._job, self._changed = database, session_id, job, changed
        self._facts: Row = {}
        self._characters = 0

    def begin(self) -> bool:
        with self._job.lock:
            if self._job.stopped:
                return False
            self._db.clear_file(self._session_id, self._job.id)
            return self._update({"state": "parsing"})

    def take(self, message: Row) -> None:
        with self._job.lock:
            if self._job.stopped:
                return
            if "page" in message:
                page = {"id": str(message["page"]), "text": message["text"], "chunks": message["chunks"]}
                with self._db.file_rows(self._session_id, self._job.id, "pages") as pages:
                    pages.add(page)
                self._job.done = message["page"]
                self._job.total = max(self._job.total, self._job.done)
                self._characters += len(message["text"])
            elif message["report"] == "pages":
                self._job.total = message["value"]
            elif message["report"] == "note":
                self._facts["note"] = " ".join(filter(None, (self._facts.get("note"), message["value"])))
            else:
                self._facts[message["report"]] = message["value"]
        self._changed()

    def end(self, outcome: Outcome) -> None:
        fields = {"state": outcome.state, "error": outcome.error, "locked": outcome.locked}
        with self._job.lock:
            if not self._job.stopped:
                self._update({**fields, **self._facts, "pages": self._job.total, "characters": self._characters})

    def _update(self, fields: Row) -> bool:
        with self._db.session_rows(self._session_id, "files") as rows:
            return rows.update(self._job.id, fields)


def _guest(owner: str) -> bool:
    return owner.startswith("guest:")


def clean_name(name: str) -> str:
    """A printable line that is no path: without what turns the reading direction or hides."""
    name = unicodedata.normalize("NFC", name).replace("\\", "/").rsplit("/", 1)[-1]
    name = "".join(c if c.isprintable() and unicodedata.category(c) != "Cf" else " " for c in name)
    name = " ".join(name.split()).lstrip(". ")
    if len(name) > _LONGEST_NAME:
        stem, dot, ending = name.rpartition(".")
        name = f"{stem[: _LONGEST_NAME - 2 - len(ending)]}…{dot}{ending}" if len(ending) < 12 else name[:_LONGEST_NAME]
    return name.rstrip() or "file"
