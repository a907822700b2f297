"""The thread on which all models of a CPU compute, and how its helpers wait.

libgomp, the OpenMP of torch's wheels on Linux, gives each thread that computes a team of its own. Between a step's
hundreds of loops a team's threads spin, by default up to 300,000 times, and only 100 times once all teams together have
more threads than there are cores. The first is bad beside any other program: who spins for milliseconds has the core
that the thread it waits for was pushed from. The second is bad beside another team: each loop begins by waking threads.
https://github.com/gcc-mirror/gcc/blob/master/libgomp/env.c (gomp_spin_count_var, gomp_throttled_spin_count_var)
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

_thread = ThreadPoolExecutor(1, thread_name_prefix="compute")


def wait_briefly() -> None:
    """Have the threads of all teams spin 1,000 times: some microseconds. To be called before torch is imported.

    Not where somebody chose already, and only where torch brings libgomp: others take "active" for "always", and would
    keep the cores busy while nobody asks.
    """
    chosen = any(name.startswith(("OMP_WAIT_", "GOMP_SPIN", "KMP_")) for name in os.environ)
    if chosen or "omp" in os.environ.get("LD_PRELOAD", ""):
        return
    found = find_spec("torch")
    if any(list(Path(folder).glob("lib/libgomp*")) for folder in (found and found.submodule_search_locations) or ()):
        os.environ |= {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "1000"}


_asked, _lock = 0, threading.Lock()
"""How many calls wait for that thread, or for what it does."""


def compute(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call ``function`` on that thread and wait for it. Not to be called on that thread itself."""
    global _asked
    with _lock:
        _asked += 1
    try:
        return _thread.submit(function, *arguments).result()
    finally:
        with _lock:
            _asked -= 1


def busy() -> bool:
    """Whether somebody computes on that thread."""
    return _asked > 0


def compute_if_idle(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call ``function`` on that thread if nobody computes there, else on this one: for work that must not wait."""
    return function(*arguments) if busy() else compute(function, *arguments)


def at_once(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call ``function`` on this thread: for devices that compute by themselves."""
    return function(*arguments)
