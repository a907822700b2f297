"""Brings a model's compiled steps, while the model serves without them."""

import hashlib
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from llmsvc.engine.cache.placed import Piece
from llmsvc.engine.compiled import CompiledStep, library_name, ways_of, why_not
from llmsvc.engine.compute import compute
from llmsvc.engine.paged_runner import says_the_same
from llmsvc.engine.slot_runner import SlotRunner

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_ROWS = {"one": (1,), "chunk": (2, 8, 32), "fill": ()}
"""The kinds of steps, in the order in which they are made, and for how many slots at once each is measured."""
_PIECE = 256
"""Tokens of a prompt with which steps are compared, and of those that are there before."""
_PATIENCE_SECONDS = 120
_KEPT_SECONDS = 60 * 86_400


class _Refused(Exception):
    """A step that is not to be used, nor tried again."""


class _Closing(Exception):
    """Nobody needs the steps any more."""


class _Background:
    """What is done on a thread of its own while a model serves."""

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._run, name="warmup", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether all that can be made is."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def _run(self) -> None:
        raise NotImplementedError


class Warmup(_Background):
    """One thread: compile in a child process what the disk does not have yet, check it, measure it, hand it over.

    ``install`` is called on that thread with all steps that are to be taken. One that differs from what the model says,
    or that is slower, is never handed over. Comparing takes all cores for moments, so it waits while ``busy`` says that
    somebody is served. The disk remembers the steps and what became of them: one that was found good is taken at once.
    """

    def __init__(
        self,
        model: Any,
        slots: int,
        folder: Path,
        install: Callable[[dict[str, CompiledStep]], None],
        busy: Callable[[], int],
    ) -> None:
        self._model, self._folder, self._install, self._busy = model, folder, install, busy
        self._slots = min(slots, max(_ROWS["chunk"]))
        self._runner = compute(SlotRunner, model, self._slots, 4 * _PIECE)
        self._steps: dict[str, CompiledStep] = {}
        self._patience = 0.0
        self._closing = threading.Event()
        self._begin()

    def close(self) -> None:
        """Give up what is not ready, and wait for the end of the thread and its child."""
        self._closing.set()
        super().close()
        for step in self._steps.values():
            step.close()

    def _run(self) -> None:
        try:
            if reason := why_not(self._model):
                return log.info("the model is served without compiled steps: %s", reason)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._forget()
            for kind in _ROWS:
                library = self._folder / library_name(self._model, kind)
                if step := self._step(library, kind):
                    self._steps[kind] = step
                    self._install(dict(self._steps))
        except _Closing:
            pass
        except Exception:
            log.warning("the model is served without a compiled step", exc_info=True)
        finally:
            self._runner.reset()
        return None

    def _forget(self) -> None:
        """Delete what no model used for long: of other models, or of earlier versions."""
        for file in self._folder.iterdir():
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > _KEPT_SECONDS:
                    file.unlink()

    def _step(self, library: Path, kind: str) -> CompiledStep | None:
        """A step that says what the model says and is faster, from the disk or built; None when there is none."""
        refused, good = library.with_suffix(".refused"), library.with_suffix(".good")
        step = None
        try:
            if refused.exists():
                raise _Refused(refused.read_text())
            if not library.exists():
                self._build(kind, library)
            sum_ = hashlib.sha256(library.read_bytes()).hexdigest()
            step = CompiledStep(library, self._model)
            if not good.exists() or good.read_text() != sum_:
                self._patience = time.monotonic() + _PATIENCE_SECONDS
                if not self._agrees(kind, step):
                    raise _Refused("it computes something else")
                if not self._is_faster(kind, step):
                    raise _Refused("it is slower here")
            with suppress(OSError):  # on a full disk it is compared again next time
                good.write_text(sum_)  # anew each time: what is old is deleted
                os.utime(library)
            return step
        except _Closing:
            if step is not None:
                step.close()
            raise
        except _Refused as error:
            if not refused.exists():
                refused.write_text(str(error))
            log.warning("the model goes without its compiled step “%s”: %s", kind, error)
        except (OSError, RuntimeError, ValueError, AttributeError) as error:  # damaged: made again at the next start
            log.warning("the compiled step “%s” cannot be used: %s", kind, error)
        if step is not None:
            step.close()
        library.unlink(missing_ok=True)
        return None

    def _build(self, kind: str, library: Path) -> None:
        """Raises _Refused when it cannot be compiled."""
        with tempfile.TemporaryDirectory() as work, tempfile.TemporaryFile() as output:
            self._model.config.save_pretrained(work)
            command = [
                sys.executable,
                "-m",
                "llmsvc.engine.compiled",
                work,
                kind,
                str(library),
                *ways_of(self._model, kind),
            ]
            env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{work}/inductor"}
            started = time.monotonic()
            child = subprocess.Popen(
                command, cwd=_ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                while child.poll() is None:
                    self._pause(0.2)
            finally:
                if child.poll() is None:  # with the compilers that it started
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
            if child.returncode:
                output.seek(0)
                last = output.read().decode(errors="replace").strip().splitlines()[-1:]
                raise _Refused(f"compiling failed: {''.join(last)[:300]}")
            log.info("compiled the step “%s” in %.0f s", kind, time.monotonic() - started)

    def _pause(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise _Closing

    def _quiet(self) -> None:
        """Wait until nobody is served, but not for ever."""
        self._pause(0)
        while self._busy() and time.monotonic() < self._patience:
            self._pause(0.2)

    def _agrees(self, kind: str, step: CompiledStep) -> bool:
        """Whether a step says what the model says, for rows of different lengths."""
        rows = min(3, self._slots) if kind == "chunk" else 1
        found: list[torch.Tensor] = []
        choices: tuple[dict[str, CompiledStep], ...] = ({}, {kind: step})
        for compiled in choices:
            self._runner.use(compiled)
            lengths = [_PIECE + 6 + 7 * slot for slot in range(rows)]
            ends: list[Piece] = []
            for slot, length in enumerate(lengths):
                tokens = [(7 * slot + n) % 250 for n in range(length)]
                for start, end in pairwise((0, 100, _PIECE, length - 2)):
                    self._quiet()
                    compute(self._runner.prefill, slot, tokens[start:end], start, 0)
                ends.append((slot, tokens[-2:], length - 2))
            self._quiet()
            if "chunk" in compiled:
                found += compute(self._runner.decode, {}, lengths, ends).clone()  # the next pass takes their memory
            else:
                found += [compute(self._runner.prefill, *end)[0].clone() for end in ends]
            for n in range(3):
                self._quiet()
                last = {s: s + n for s in range(rows)}
                found += compute(self._runner.decode, last, [x + n for x in lengths]).clone()
        # Activations of 8 bits make much of the last bit, which is another in another order of sums.
        return compute(_near, found, 0.1 if getattr(self._model.config, "weights_of_4_bits", ()) else 5e-3)

    def _is_faster(self, kind: str, step: CompiledStep) -> bool:
        """Whether it takes less time than the model itself, over all that it does together."""
        tried: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (self._runner.decode, (dict.fromkeys(range(rows), 0), [_PIECE] * self._slots))
            for rows in sorted({min(rows, self._slots) for rows in _ROWS[kind]})
            if kind == "one" or rows > 1
        ]
        if kind != "one":
            tried.append((self._runner.prefill, (0, [0] * _PIECE, _PIECE, int(kind == "chunk"))))
        seconds: dict[tuple[int, bool], list[float]] = {
            (n, mine): [] for n in range(len(tried)) for mine in (False, True)
        }
        self._runner.plain()
        for slot in range(self._slots):
            self._quiet()
            compute(self._runner.prefill, slot, [0], 0)
        for _ in range(5):
            for (number, mine), times in seconds.items():
                self._quiet()
                self._runner.use({kind: step} if mine else {})
                function, given = tried[number]
                start = time.perf_counter()
                compute(function, *given)
                times.append(time.perf_counter() - start)
        took = {which: statistics.median(times) for which, times in seconds.items()}
        return sum(took[n, True] / took[n, False] for n in range(len(tried))) < len(tried)


def keep_kernels(folder: Path) -> None:
    """Let torch and Triton keep what they compile there, unless it was said where; before the first is compiled."""
    for name, place in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        os.environ.setdefault(name, str(folder / place))


class PagedWarmup(_Background):
    """One thread: compile what recorded passes need, and try such passes, while a GPU's model serves without them.

    ``follows`` waits until the model serves, and says whether there is anything to record. ``install`` is called on
    that thread when recorded passes say what the model says.
    """

    def __init__(self, model: Any, follows: Callable[[], bool], install: Callable[[], None]) -> None:
        self._model, self._follows, self._install = model, follows, install
        self._begin()

    def _run(self) -> None:
        try:
            if not self._follows():
                return None
            if not says_the_same(self._model, True):
                return log.warning("the model goes without recorded passes: they compute something else")
            self._install()
        except Exception as error:
            log.warning("the model goes without recorded passes: %s", error)
        return None


def _near(found: list[torch.Tensor], share: float) -> bool:
    """Whether the second half of what was found is the first, up to a share of its largest number."""
    half = len(found) // 2
    mine, theirs = torch.stack(found[:half]), torch.stack(found[half:])
    return bool((mine - theirs).abs().max() <= share * mine.abs().max() + 1e-4)
