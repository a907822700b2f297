"""Parses files behind everybody's back: a queue, and one short-lived child process for each file."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmsvc.files.limits import Limits

log = logging.getLogger(__name__)

_CHILD = Path(__file__).with_name("child.py")
_ROOT = Path(__file__).resolve().parents[2]
_TOO_LONG = "It takes too long to read. Split it, or save it anew."
_CRASHED = "The parser gave up: the file is damaged, or unpacks to more than the memory it may use. Save it anew."


@dataclass
class Job:
    """One file on its way. ``take`` is called on a worker thread with each message of the child."""

    id: str
    session_id: str
    path: Path
    name: str
    password: str = ""
    encoding: str = ""
    done: int = 0
    total: int = 0
    stopped: bool = False
    process: "subprocess.Popen[bytes] | None" = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def stop(self) -> None:
        """Kill the child, now or as soon as it is born."""
        with self.lock:
            self.stopped = True
            if self.process is not None:
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Outcome:
    state: str
    """ready, partial, needs OCR or failed."""
    error: str = ""
    locked: bool = False
    """It lacks a password."""


class Ingest:
    """A few at a time. Safe from any thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._workers = ThreadPoolExecutor(limits.at_once, "files")

    def submit(self, job: Job, begin: Callable[[], bool], take: Callable[[Any], None], end: Any) -> None:
        """Parse in turn: ``begin()`` (false: leave it), ``take(message)`` for pages and reports, ``end(Outcome)``.

        When the job is stopped, ``end`` is not called.
        """
        self._workers.submit(self._work, job, begin, take, end)

    def close(self) -> None:
        """Those that run must have been stopped."""
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _work(self, job: Job, begin: Callable[[], bool], take: Callable[[Any], None], end: Any) -> None:
        try:
            if not job.stopped and begin():
                outcome = self._parse(job, take)
                if not job.stopped:
                    end(outcome)
        except Exception:  # a disk that is full, a session that was deleted: the next file must have its turn
            log.warning("%s was not parsed", job.id, exc_info=True)
            if not job.stopped:
                with suppress(Exception):
                    end(Outcome("failed", "It could not be stored: the disk may be full. Free some space, try again."))

    def _parse(self, job: Job, take: Callable[[Any], None]) -> Outcome:
        last: dict[str, Any] = {}
        characters = 0
        with self._started(job) as process:
            alarm = threading.Timer(self._limits.wall, process.kill)
            alarm.start()
            try:
                for message in _messages(process.stdout):
                    characters += len(message.get("text", ""))
                    if job.stopped or "end" in message or characters > 2 * self._limits.characters:
                        last = message
                        break
                    take(message)
            finally:
                alarm.cancel()
                process.kill()
                process.wait()
        if "end" not in last:
            killed = process.returncode in (-signal.SIGXCPU, -signal.SIGKILL)
            last = {"end": "failed", "error": _TOO_LONG if killed else _CRASHED}
            if characters and job.total > 1:
                last["error"] += f" {job.done} of {job.total} parts were read."
        state = "partial" if last["end"] == "failed" and characters else last["end"]
        return Outcome(state, last["error"], last.get("locked", False))

    def _started(self, job: Job) -> "subprocess.Popen[bytes]":
        with job.lock:
            # Isolated: nothing of the environment, of the working directory or of our own files goes in.
            job.process = subprocess.Popen(
                [sys.executable, "-I", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                process_group=0,  # no session of its own: Linux shares cores among those before it looks at who is nice
            )
            if job.stopped:
                job.process.kill()
        order = {
            "root": str(_ROOT),
            "path": str(job.path),
            "name": job.name,
            "password": job.password,
            "encoding": job.encoding,
            "limits": asdict(self._limits),
        }
        with suppress(BrokenPipeError):
            assert job.process.stdin is not None
            job.process.stdin.write(json.dumps(order).encode() + b"\n")
            job.process.stdin.close()
        return job.process


def _messages(stream: Any) -> Iterator[dict[str, Any]]:
    """Without a last one that was cut."""
    for line in stream:
        if line.endswith(b"\n"):
            yield json.loads(line)
