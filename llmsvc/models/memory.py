"""How much memory is free, on the host and on a GPU, and how much a process has. Imports no torch."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def free_bytes(device: str = "cpu") -> int:
    """What can be allocated now on ``device`` ("cpu", "cuda", "cuda:1") without taking it from anybody."""
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device if ":" in device else "cuda:0")[0])
    return min([_machine(), *_group_room()])


def _machine() -> int:
    """Memory that is free, or only holds copies of files."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 4 * 2**30


def _group_room() -> list[int]:
    """What the control groups of this process have left (container limits). https://docs.kernel.org/admin-guide/cgroup-v2.html"""
    room = []
    for folder, limit, used in (
        *((parent, "memory.max", "memory.current") for parent in _own_groups()),
        (_GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # no such group, or no limit ("max")
            most = int((folder / limit).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            room.append(max(0, most - int((folder / used).read_text()) + int(stat.get("inactive_file", 0))))
    return room


def _own_groups() -> list[Path]:
    """The control group of this process and those above it, which is one in a container."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = _GROUPS / next(line for line in lines if line.startswith("0::")).removeprefix("0::").lstrip("/")
        return [folder for folder in (own, *own.parents) if folder.is_relative_to(_GROUPS)]
    return [_GROUPS]


def device_bytes(device: str) -> int:
    """What everybody together holds on a GPU."""
    torch = sys.modules["torch"]
    free, total = torch.cuda.mem_get_info(device)
    return int(total - free)


def resident_bytes() -> int:
    """What this process holds in memory and no file could give back; 0 where it cannot be known."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])
    return 0


def one_heap() -> None:
    """Let all threads share one heap from now on, on Linux.

    By default each gets its own, and what one frees there no other takes: after 300 models had come and gone, half of
    the process was such memory (mallopt(3), M_ARENA_MAX).
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(-8, 1)


@contextmanager
def importing() -> Iterator[None]:
    """Around imports of large libraries, a third of whose time goes into looking for garbage that they do not make.

    What was imported is not looked at later either: that stops every thread for a quarter of a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def give_back() -> None:
    """Hand what was freed to the system: the C library keeps it otherwise."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
