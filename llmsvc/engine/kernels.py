"""Kernels of ours for CPUs, in cpp/: compiled for the processor at hand when they are first needed, and kept."""

import ctypes
import hashlib
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import torch

log = logging.getLogger(__name__)

_SOURCES = sorted(Path(__file__).with_name("cpp").iterdir())
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-fPIC", "-shared", "-std=c++17")
_PATIENCE_SECONDS = 60

_library: ctypes.CDLL | None = None
_cannot: set[Path] = set()
"""What cannot be had in this process."""
_lock = threading.Lock()


def kernels() -> ctypes.CDLL | None:
    """Those that were loaded."""
    return _library


def run_kernel(name: str, *given: torch.Tensor | int | float | None) -> None:
    """Call one of those that were loaded: tensors by their memory, whole numbers as 64 bits, others as 32.

    None is no memory.
    """
    ours = kernels()
    assert ours is not None
    arguments: list[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float] = []
    for one in given:
        if one is None or isinstance(one, torch.Tensor):
            arguments.append(ctypes.c_void_p(None if one is None else one.data_ptr()))
        else:
            arguments.append(ctypes.c_int64(one) if isinstance(one, int) else ctypes.c_float(one))
    getattr(ours, name)(*arguments)


def load_kernels(folder: Path) -> Path | None:
    """Load the kernels that ``folder`` keeps, built if need be: that takes some seconds. None if they cannot be had."""
    global _library
    name = folder / f"{kernels_name()}.so"
    with _lock:
        while _library is None and name not in _cannot:
            found = False
            try:
                found = name.exists()
                if not found:
                    _build(name)
                # For all: compiled steps call them too.
                _library = ctypes.CDLL(str(name), mode=ctypes.RTLD_GLOBAL)
            except (OSError, subprocess.SubprocessError) as error:
                said = (getattr(error, "stderr", b"") or b"").decode(errors="replace").strip().splitlines()
                log.info("models are computed without kernels of our own: %s", said[-1] if said else error)
                if found:  # damaged: built again
                    with suppress(OSError):
                        name.unlink()
                        continue
                _cannot.add(name)
        with suppress(OSError):
            os.utime(name)  # what is old is deleted
        return name if _library is not None else None


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    names = (os.environ.get("CXX", "g++"), "c++", "clang++")
    return next((name for name in names if shutil.which(name)), None)


def _processor() -> str:
    """What the processor can do."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    return platform.machine()


def kernels_name() -> str:
    """Changes with all that they depend on."""
    parts = (torch.__version__, _processor(), *_FLAGS, *(file.read_text() for file in _SOURCES))
    return f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}-kernels"


def _build(library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(".half", dir=library.parent)
    os.close(handle)
    half = Path(name)
    command = [compiler() or "c++", *_FLAGS, *(str(file) for file in _SOURCES if file.suffix == ".cpp"), "-o", name]
    try:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        try:
            _, said = child.communicate(timeout=_PATIENCE_SECONDS)
        finally:
            if child.returncode is None:  # with the compiler's own children
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, command, stderr=said)
        with half.open("rb") as file:
            os.fsync(file.fileno())  # half a library would not be refused, but end the process
        half.rename(library)
    finally:
        half.unlink(missing_ok=True)
