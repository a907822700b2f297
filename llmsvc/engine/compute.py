"""The thread on which all models of a CPU compute.

libgomp, the OpenMP of torch's wheels, gives each thread that computes a team of its own, and the teams wait actively
for their next loop only while all of them together have no more threads than there are cores. With a second team each
of a step's hundreds of loops begins by waking threads that sleep: on 2 cores a step took 25 ms instead of 7.
https://github.com/gcc-mirror/gcc/blob/master/libgomp/env.c (gomp_throttled_spin_count_var)
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")

_thread = ThreadPoolExecutor(1, thread_name_prefix="compute")


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


def compute_if_idle(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call ``function`` on that thread if nobody computes there, else on this one: for work that must not wait."""
    return function(*arguments) if _asked else compute(function, *arguments)
