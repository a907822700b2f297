"""A disk that loses power: records every call, and builds what could be left of it at each moment.

The model of SQLite's crash tests and of ALICE (Pillai et al., OSDI 2014): what was synced stays; of the rest, each
write may be there, missing, torn or filled with zeros, and each change of a name may be there or not.
"""

import random
from pathlib import Path
from typing import Any

from llmsvc.store.disk import Disk

Event = tuple[Any, ...]


class RecordingDisk(Disk):
    def __init__(self) -> None:
        self.trace: list[Event] = []
        self._files: dict[Path, int] = {}
        self._handles: dict[int, int] = {}
        self._made = 0

    def open(self, path: Path, *, empty: bool = False) -> int:
        handle = super().open(path, empty=empty)
        if path not in self._files:
            self._made += 1
            self._files[path] = self._made
            self.trace.append(("name", path, self._made))
        self._handles[handle] = self._files[path]
        if empty:
            self.trace.append(("truncate", self._files[path], 0))
        return handle

    def write(self, handle: int, data: bytes, offset: int) -> None:
        super().write(handle, data, offset)
        self.trace.append(("write", self._handles[handle], data, offset))

    def truncate(self, handle: int, size: int) -> None:
        super().truncate(handle, size)
        self.trace.append(("truncate", self._handles[handle], size))

    def sync(self, handle: int) -> None:
        super().sync(handle)
        self.trace.append(("sync", self._handles[handle]))

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        self.trace.append(("sync_folder",))

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._files[target] = self._files.pop(source)
        self.trace.append(("rename", source, target, self._files[target]))

    def remove(self, path: Path) -> None:
        super().remove(path)
        if self._files.pop(path, None) is not None:
            self.trace.append(("remove", path))


class NoSync(RecordingDisk):
    """The mutant that forgets fdatasync."""

    def sync(self, handle: int) -> None:
        pass


class NoFolderSync(RecordingDisk):
    """The mutant that forgets to sync the directory."""

    def sync_folder(self, folder: Path) -> None:
        pass


def left_over(trace: list[Event], rng: random.Random) -> dict[Path, bytes]:
    """The files after a power failure behind ``trace``."""
    data: dict[int, bytearray] = {}
    waiting: dict[int, list[Event]] = {}
    names: dict[Path, int] = {}
    renames: list[Event] = []
    for event in trace:
        match event:
            case ("write" | "truncate", file, *_):
                waiting.setdefault(file, []).append(event)
            case ("sync", file):
                for write in waiting.pop(file, []):
                    _apply(data.setdefault(file, bytearray()), write)
            case ("name" | "rename" | "remove", *_):
                renames.append(event)
            case ("sync_folder",):
                for change in renames:
                    _rename(names, change)
                renames = []
    for change in renames:
        if rng.random() < 0.5:
            _rename(names, change)
    for file, writes in waiting.items():
        for write in writes:
            fate = rng.choice(("kept", "lost", "torn", "zeros"))
            if fate == "lost":
                continue
            if write[0] == "write" and fate == "torn":
                write = (*write[:2], write[2][: rng.randrange(len(write[2]))], write[3])
            if write[0] == "write" and fate == "zeros":
                write = (*write[:2], bytes(len(write[2])), write[3])
            _apply(data.setdefault(file, bytearray()), write)
    return {path: bytes(data.get(file, b"")) for path, file in names.items()}


def _apply(content: bytearray, event: Event) -> None:
    if event[0] == "truncate":
        del content[event[2] :]
        content.extend(bytes(event[2] - len(content)))
    else:
        _, _, written, offset = event
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(written)] = written


def _rename(names: dict[Path, int], event: Event) -> None:
    match event:
        case ("name", path, file):
            names[path] = file
        case ("rename", source, target, file):
            names.pop(source, None)
            names[target] = file
        case ("remove", path):
            names.pop(path, None)
