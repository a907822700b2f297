"""Passages of files as vectors of what they mean (see ``encoder``), made behind everybody's back.

A file is searched by its words from the moment it is read. Some time later its vectors are there too, beside its
original on the disk: they are made of its text alone, so what is lost of them is made again. Without the encoder, which
is brought when the first file comes, everything else works as before.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmsvc.errors import LlmsvcError, Unavailable
from llmsvc.files.encoder import SIZE, Encoder

if TYPE_CHECKING:
    import numpy as np

    from llmsvc.files.encoder import Array
    from llmsvc.files.retrieval import Document

    Half = np.ndarray[Any, np.dtype[np.float16]]

log = logging.getLogger(__name__)

Bring = Callable[[Callable[[str, int, int], None]], Path]
"""Gives the encoder's folder, by the network if need be, telling how far it is; what that raises ends it. Raises
LlmsvcError."""

AGAIN_SECONDS = 600.0
"""After the encoder could not be brought, it is asked for again this much later."""
_CHILD = Path(__file__).with_name("encode_child.py")
_ROOT = Path(__file__).resolve().parents[2]


class Meaning:
    """One file at a time. Safe from any thread."""

    def __init__(self, bring: Bring | None = None) -> None:
        """Without ``bring`` there are no vectors."""
        self._bring = bring
        self._worker = ThreadPoolExecutor(1, "meaning")
        self._lock = threading.Lock()
        self._wanted: set[str] = set()
        self._failed: set[str] = set()
        self._process: tuple[str, subprocess.Popen[bytes]] | None = None
        self._encoder: Encoder | None = None
        self._folder: Path | None = None
        self._not_before = 0.0 if bring else float("inf")
        self._closing = False

    def want(self, id_: str, load: Callable[[], "Document"]) -> None:
        """Make the vectors of a file, some time; ``load`` is called then, on another thread."""
        with self._lock:
            if id_ in self._wanted or id_ in self._failed or time.monotonic() < self._not_before:
                return
            self._wanted.add(id_)
        self._worker.submit(self._make, id_, load)

    def drop(self, ids: Iterable[str]) -> None:
        """These files are removed, or read anew: nothing is written for them any more."""
        with self._lock:
            self._wanted.difference_update(ids)
            self._failed.difference_update(ids)
            if self._process is not None and self._process[0] not in self._wanted:
                self._process[1].kill()

    def of(self, document: "Document") -> "Array | None":
        """One row for each of its chunks, of length 1; None while they are not there."""
        import numpy as np

        try:
            found: Array = np.load(document.vectors).astype(np.float32)
        except (OSError, ValueError, EOFError):
            found = np.empty((0, SIZE), np.float32)
        if found.shape == (len(document.chunks), SIZE):
            return found
        self.want(document.id, lambda: document)
        return None

    def query(self, text: str) -> "Array | None":
        """Its vector; None where there is no encoder."""
        with self._lock:
            if self._encoder is None and self._folder is not None:
                self._encoder = Encoder(self._folder)
            encoder = self._encoder
        return encoder.encode(text) if encoder else None

    def close(self) -> None:
        """What is not made yet is made at a later run."""
        with self._lock:
            self._closing, self._not_before = True, float("inf")
            ids = list(self._wanted)
        self.drop(ids)
        self._worker.shutdown(wait=True, cancel_futures=True)

    # On the worker's thread

    def _make(self, id_: str, load: Callable[[], "Document"]) -> None:
        try:
            if id_ in self._wanted and (folder := self._brought()) is not None:
                document = load()
                made = self._encode(id_, folder, document.passages)
                if made is not None:
                    self._keep(id_, document.vectors, made)
        except Exception:  # its chat was deleted, the disk is full: it is searched by its words
            log.warning("%s has no vectors", id_, exc_info=True)
            self._failed.add(id_)
        finally:
            with self._lock:
                self._wanted.discard(id_)

    def _brought(self) -> Path | None:
        if self._folder is None and time.monotonic() >= self._not_before:
            try:
                self._folder = self._bring(self._tell) if self._bring else None
            except LlmsvcError as error:
                with self._lock:
                    self._not_before = max(self._not_before, time.monotonic() + AGAIN_SECONDS)
                if not self._closing:
                    log.warning("Files are searched by their words only: %s", error)
        return self._folder

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self._closing:
            raise Unavailable("The service is being stopped.")

    def _encode(self, id_: str, folder: Path, texts: list[str]) -> "Half | None":
        """None when it was dropped meanwhile."""
        import numpy as np

        order = {"root": str(_ROOT), "folder": str(folder), "texts": texts}
        with self._lock:
            if id_ not in self._wanted:
                return None
            process = subprocess.Popen(
                [sys.executable, "-I", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"OPENBLAS_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2))},
                process_group=0,
            )
            self._process = id_, process
        try:
            written, _ = process.communicate(json.dumps(order).encode())
        finally:
            with self._lock:
                self._process = None
        if id_ not in self._wanted:
            return None
        return np.frombuffer(written, np.float16).reshape(len(texts), SIZE)  # fails when the child did

    def _keep(self, id_: str, path: Path, vectors: "Half") -> None:
        import numpy as np

        with self._lock:
            if id_ not in self._wanted:
                return
            half = path.with_name(path.name + ".half")
            with half.open("wb") as out:
                np.save(out, vectors)
            half.replace(path)
