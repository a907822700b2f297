"""How many tokens a second a model is likely to write for one reader here, by what each token reads of the memory.

A token of a lone answer reads all weights that take part in it once, so that the speed of memory is what counts, or of
a processor that cannot follow it; and each layer costs something however small it is. Both shares were measured with
8-bit weights and our kernel on models of 50 to 900 MB (one core of an EPYC 9004): 3 % off (median), 17 % at most.
"""

import json
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmsvc.models.fields import completed
from llmsvc.models.forecast import Weights, read_bytes
from llmsvc.models.headers import Contents
from llmsvc.models.layers import depth

_BYTES, _ROUNDS = 1 << 28, 3
_OF_CORE, _OF_MEMORY = 0.34, 0.85
"""What products reach of the speed at which one core sums up numbers, and of that at which all together do."""
_WITHOUT_KERNEL = 0.42
"""How fast 8-bit products are where ours are not compiled."""
_LAYER_SECONDS = 0.00043
"""What a layer takes beside its products, when its steps are not compiled ahead of time."""


class Bandwidth:
    """How fast this machine reads weights; measured once, in half a second, and kept in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._measured = 0.0

    def known(self, device: str = "cpu") -> float:
        """Bytes a second; 0 while they have not been measured, and of a GPU."""
        if device != "cpu":
            return 0.0
        if not self._measured:
            with suppress(OSError, ValueError, KeyError, TypeError):
                kept = json.loads(self._file.read_text())
                if kept["cores"] == _cores():
                    self._measured = float(kept["bytes_per_second"])
        return self._measured

    def measured(self, device: str = "cpu") -> float:
        """The same, measured if need be: not for a thread that has to answer at once."""
        with self._lock:
            if device == "cpu" and not self.known():
                self._measured = measure()
                with suppress(OSError):  # then it is measured again after the next start
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                    self._file.write_text(json.dumps({"cores": _cores(), "bytes_per_second": self._measured}))
            return self.known(device)

    def prepare(self, device: str) -> None:
        """Have it measured in the background."""
        if device == "cpu" and not (self.known() or self._lock.locked()):
            threading.Thread(target=self.measured, name="bandwidth", daemon=True).start()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure() -> float:
    """Bytes of weights that all cores together multiply in a second."""
    import numpy

    parts = [numpy.ones(_BYTES // 8 // _cores()) for _ in range(_cores())]
    one, all_ = (max(_round(some) for _ in range(_ROUNDS)) for some in (parts[:1], parts))
    return min(_OF_CORE * one * len(parts), _OF_MEMORY * all_)


def _round(parts: Sequence[Any]) -> float:
    """Bytes that as many threads read in a second."""
    threads = [threading.Thread(target=part.sum) for part in parts]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return float(sum(part.nbytes for part in parts) / (time.perf_counter() - started))


def expected(contents: Contents, weights: Weights, bandwidth: float, kernel: bool) -> float:
    """Tokens a second; 0 where nothing can be said. ``bandwidth``: of ``Bandwidth``; ``kernel``: ours is used."""
    if not bandwidth:
        return 0.0
    share = _WITHOUT_KERNEL if weights.rounded and not kernel else 1.0
    layers = depth(completed(contents.config))
    return 1 / (read_bytes(contents, weights) / (share * bandwidth) + layers * _LAYER_SECONDS)
