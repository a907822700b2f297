"""Passages of files as vectors of what they mean (see ``encoder``), made behind everybody's back.

A file is searched by its words from the moment it is read. Some time later its vectors are there too, beside its
original on the disk, with a digest of what they were made of: those that are lost, or of another text, are made again.
Without the encoder, which is brought when the first file comes, everything else works as before.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from llmsvc.errors import LlmsvcError, NotFound, Unavailable
from llmsvc.files.encoder import SIZE, Encoder

if TYPE_CHECKING:
    from llmsvc.files.encoder import Array
    from llmsvc.files.retrieval import Document

log = logging.getLogger(__name__)

Bring = Callable[[Callable[[str, int, int], None]], Path]
"""Gives the encoder's folder, by the network if need be, telling how far it is; what that raises ends it. Raises
LlmsvcError."""

AGAIN_SECONDS = 600.0
"""What failed is tried again this much later."""
PATIENCE_SECONDS = 2.0
"""A message waits so long for an encoder that is still to be read from the disk."""
_CLOSING_SECONDS = 5.0
_CHILD = Path(__file__).with_name("encode_child.py")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(eq=False)
class _Job:
    """One file. ``load`` raises NotFound when it was removed."""

    id: str
    load: "Callable[[], Document]"
    process: "subprocess.Popen[bytes] | None" = None


class Meaning:
    """One file at a time, on a thread of its own. Safe from any thread."""

    def __init__(self, bring: Bring | None = None) -> None:
        """Without ``bring`` there are no vectors."""
        self._bring = bring
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._failed: dict[str, float] = {}
        """When; by file, and "" for the encoder."""
        self._encoder: Encoder | None = None
        self._folder = Path()
        self._bringing: Future[None] | None = None
        self._closing = bring is None
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def want(self, id_: str, load: "Callable[[], Document]") -> None:
        """Make the vectors of a file, some time; ``load`` is called then, on another thread."""
        with self._lock:
            if id_ not in self._jobs and not (self._closing or self._lately(id_) or self._lately("")):
                job = self._jobs[id_] = _Job(id_, load)
                self._put(lambda: self._make(job))

    def drop(self, ids: Iterable[str]) -> None:
        """These files are removed, or read anew."""
        with self._lock:
            for id_ in ids:
                self._failed.pop(id_, None)
                if (job := self._jobs.pop(id_, None)) and job.process:
                    job.process.kill()

    def of(self, document: "Document") -> "Array | None":
        """One row for each of its chunks, of length 1; None while they are not there."""
        import numpy as np

        try:
            kept = document.vectors.read_bytes()
        except OSError:
            return None
        digest, rows = kept[: len(document.digest)], kept[len(document.digest) :]
        if digest != document.digest or len(rows) != 2 * SIZE * len(document.chunks):
            document.vectors.unlink(missing_ok=True)
            return None
        return np.frombuffer(rows, np.float16).reshape(-1, SIZE).astype(np.float32)

    def query(self, text: str) -> "Array | None":
        """Its vector; None where there is no encoder."""
        with self._lock:
            if self._encoder is None and not (self._bringing or self._closing or self._lately("")):
                self._bringing = Future()
                self._put(self._bring_now)
            bringing = self._bringing
        if bringing is not None:
            with suppress(TimeoutError):
                bringing.result(PATIENCE_SECONDS)
        return self._encoder.encode(text) if self._encoder else None

    def close(self) -> None:
        """What is not made yet is made at a later run."""
        with self._lock:
            self._closing, jobs = True, list(self._jobs)
        self.drop(jobs)
        if self._thread is not None:
            self._inbox.put(None)
            self._thread.join(_CLOSING_SECONDS)  # no longer for a network that says nothing: it is a daemon

    # Under the lock

    def _lately(self, what: str) -> bool:
        return what in self._failed and time.monotonic() - self._failed[what] < AGAIN_SECONDS

    def _put(self, work: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="meaning", daemon=True)
            self._thread.start()
        self._inbox.put(work)

    # On the thread

    def _run(self) -> None:
        while work := self._inbox.get():
            work()

    def _make(self, job: _Job) -> None:
        try:
            if self._wants(job) and self._brought():
                document = job.load()
                if (made := self._encode(job, document.passages)) is not None:
                    self._keep(job, document, made)
        except NotFound:  # it was removed
            pass
        except Exception:  # the disk is full, the child was killed: it is searched by its words
            if self._wants(job):
                log.warning("%s has no vectors", job.id, exc_info=True)
                self._failed[job.id] = time.monotonic()
        finally:
            with self._lock:
                if self._jobs.get(job.id) is job:
                    del self._jobs[job.id]

    def _wants(self, job: _Job) -> bool:
        return self._jobs.get(job.id) is job

    def _bring_now(self) -> None:
        self._brought()
        with self._lock:
            bringing, self._bringing = self._bringing, None
        if bringing is not None:
            bringing.set_result(None)

    def _brought(self) -> bool:
        """Whether the encoder is there, now."""
        if self._encoder is None and self._bring is not None and not self._lately(""):
            try:
                self._folder = self._bring(self._tell)
                self._encoder = Encoder(self._folder)
            except Exception as error:
                self._failed[""] = time.monotonic()
                said = (
                    str(error) if isinstance(error, LlmsvcError) else f"the encoder is damaged ({type(error).__name__})"
                )
                if not self._closing:
                    log.warning("Files are searched by their words only: %s", said)
        return self._encoder is not None

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self._closing:
            raise Unavailable("The service is being stopped.")

    def _encode(self, job: _Job, texts: list[str]) -> bytes | None:
        """None when it was dropped meanwhile. Raises ValueError when the child did not do all of it."""
        order = {"root": str(_ROOT), "folder": str(self._folder), "texts": texts}
        with self._lock:
            if not self._wants(job):
                return None
            process = job.process = subprocess.Popen(
                [sys.executable, "-I", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"OPENBLAS_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))},
                process_group=0,
            )
        made, _ = process.communicate(json.dumps(order).encode())
        if not self._wants(job):
            return None
        if len(made) != 2 * SIZE * len(texts):
            raise ValueError("the child ended before it was done")
        return made

    def _keep(self, job: _Job, document: "Document", made: bytes) -> None:
        path = document.vectors
        half = path.with_name(path.name + ".tmp")
        try:
            with open(half, "wb", opener=_private) as out:
                out.write(document.digest + made)
            with self._lock:
                if not self._wants(job):
                    return
                half.replace(path)
            try:
                job.load()
            except NotFound:  # it was removed meanwhile
                path.unlink(missing_ok=True)
        finally:
            half.unlink(missing_ok=True)
            with suppress(OSError):  # nothing of the chat's files is left
                path.parent.rmdir()


def _private(path: str, flags: int) -> Any:
    return os.open(path, flags, 0o600)
