"""A TinyDB storage whose file is always whole: written beside, synced, renamed."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinydb import Storage

from llmsvc.errors import StorageError

Tables = dict[str, dict[str, Any]]


class AtomicJSONStorage(Storage):
    """The format of stock ``JSONStorage``, kept in memory after the first read.

    Raises StorageError, naming the file, when the disk refuses; the old content then stands.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text: str | None = None

    def read(self) -> Tables | None:
        if self._text is None:
            try:
                self._text = self._path.read_text(encoding="utf-8")
            except FileNotFoundError:
                return None
            except (OSError, UnicodeError) as error:
                raise StorageError(f"{self._path} cannot be read: {error}") from error
        try:
            tables: Tables | None = json.loads(self._text) if self._text else None
        except ValueError as error:
            raise StorageError(f"{self._path} is damaged: {error}. Restore it from a backup.") from error
        return tables

    def write(self, data: Tables) -> None:
        text = json.dumps(data)
        part = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
            _sync_folder(self._path.parent)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise StorageError(
                f"Not saved: {self._path} cannot be written ({error.strerror}). Free some disk."
            ) from error
        self._text = text


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
