"""Every disk call of the store, so that a test can record them and lose power between any two."""

import os
from pathlib import Path


class Disk:
    """The real one. All methods raise OSError; offsets and sizes are in bytes."""

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def open(self, path: Path, *, empty: bool = False) -> int:
        """A handle to write with; the file is made when missing, emptied when ``empty``."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if empty else 0), 0o600)

    def write(self, handle: int, data: bytes, offset: int) -> None:
        """All of ``data``, or an error: a full disk may take a part first."""
        done = 0
        while done < len(data):
            done += os.pwrite(handle, data[done:], offset + done)

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def sync(self, handle: int) -> None:
        """Return when the file's data and length are on the medium."""
        getattr(os, "fdatasync", os.fsync)(handle)

    def sync_folder(self, folder: Path) -> None:
        """Return when names made, renamed and removed in ``folder`` are on the medium."""
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def make_folder(self, folder: Path) -> None:
        """Durably, parents included."""
        if not folder.is_dir():
            self.make_folder(folder.parent)
            folder.mkdir(exist_ok=True, mode=0o700)
            self.sync_folder(folder.parent)
