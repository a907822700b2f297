"""How rows are multiplied with 8-bit weights on a CPU: three ways, of which each processor is given its fastest.

``kernel``: ours, cpp/int8.cpp. It rounds each row to integers of 15 to 16 bits, widens weights and sums the products as
integers. ``integers``: the processor's own 8-bit products, where it has fast ones (VNNI, AMX; without, torch computes
them one by one). Rows are rounded to 16 bits, which are split into two 8-bit halves; both are multiplied in one
product, whose sums are exact too. Of these two a row's result does not hang on what else is in the batch, nor on how a
prompt was cut into chunks. ``widened``, where there is no kernel: weights are widened before an ordinary product.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from llmsvc.engine.compute import busy, compute_if_idle
from llmsvc.engine.kernels import load_kernels, run_kernel

log = logging.getLogger(__name__)

_WIDENED_AT_ONCE = 2**20
"""Weights; more would be memory that the system clears anew each time."""
_HANDICAPS = {"kernel": 1.0, "integers": 1.0, "widened": 2.0}
"""How many times as long a way is taken to be: the last hangs on what is computed beside."""
_HOPELESS = 8
"""A way that takes so many times as long for few rows is not tried with many."""

_lock = threading.Lock()


def halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of shape (rows, width) as int8 of shape (2 * rows, width), high halves first, and each row's step (rows, 1).

    ``step * (256 * high + low)`` is ``x`` to 16 bits of the row's largest number.
    """
    step = x.abs().amax(1, keepdim=True).clamp_(min=1e-30).div_(32512)  # 127 * 256: both halves fit
    whole = x.div(step).round_()
    high = whole.div(256).round_()
    low = whole.sub_(high, alpha=256).clamp_(max=127)
    return torch.cat([high.to(torch.int8), low.to(torch.int8)]), step


def _by_kernel(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    x, width = x.contiguous(), x.shape[1]
    channels = values.shape[0] if values.dim() == 2 else 16 * values.shape[0]
    out = x.new_empty(x.shape[0], channels)  # not of the default type, which another thread's load may have changed
    run_kernel("llmsvc_int8_linear", x, values, scales, out, x.shape[0], width, channels)
    return out


def _by_integers(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    both, step = halves(x)
    product = torch._int_mm(both, values.t()).float()
    high, low = product[: step.shape[0]], product[step.shape[0] :]
    return low.add_(high, alpha=256).mul_(step).mul_(scales)


def _by_widening(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    parts = torch.split(values, max(1, _WIDENED_AT_ONCE // values.shape[1]))
    products = [x @ part.float().t() for part in parts]
    return (products[0] if len(products) == 1 else torch.cat(products, 1)).mul_(scales)


WAYS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "kernel": _by_kernel,
    "integers": _by_integers,
    "widened": _by_widening,
}
"""Rows (rows, width) in 32 bits, values (channels, width) and scales (channels): to rows (rows, channels)."""


@torch.no_grad()
def choose(folder: Path | None) -> str:
    """The way for this processor, measured once.

    ``folder`` keeps the kernel and what was chosen; None: no kernel is made.
    """
    with _lock:
        library = folder and load_kernels(folder)
        if library is None:
            return compute_if_idle(_measured, ["integers", "widened"])
        parts = (library.name, torch.get_num_threads(), Path(__file__).read_text())
        memory = library.with_name(f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}-way.json")
        with suppress(OSError, ValueError, TypeError):
            chosen = json.loads(memory.read_text())
            if chosen in WAYS and _is_right(chosen):
                memory.touch()  # what is old is deleted
                return str(chosen)
        alone = not busy()
        chosen = compute_if_idle(_measured, ["kernel", "integers"])
        if alone:  # else it is measured again next time
            with suppress(OSError):
                memory.write_text(json.dumps(chosen))
        return chosen


def _sample(rows: int, width: int, channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, values and scales, in 32 bits whatever another thread's load has made the default type."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (channels, width), generator=generator, dtype=torch.int8)
    scales = torch.rand(channels, generator=generator, dtype=torch.float32)
    return torch.randn(rows, width, generator=generator, dtype=torch.float32), values, scales


def _is_right(way: str) -> bool:
    """Whether a way computes what it should here: some CPUs' instructions saturate."""
    x, values, scales = _sample(71, 1301, 67)
    x[:, 3], x[0], values[0] = 40.0, 3.0, 127  # of which one sum is as large as they get
    try:
        for some in (x[:1], x[:6], x):
            exact = some.double() @ (values.double() * scales.double()[:, None]).t()
            found = WAYS[way](some, values, scales)
            if not float((found - exact).abs().max() / exact.abs().max()) < 1e-3:
                return False
    except Exception as error:
        log.info("no 8-bit products here: %s", error)
        return False
    return True


def _measured(ways: list[str]) -> str:
    """The fastest of those that are right, where as many tokens are written, 16 at once, as are read."""
    ways = [way for way in ways if _is_right(way)] or ["widened"]
    few = _seconds(ways, 16)
    many = _seconds([way for way in ways if few[way] < _HOPELESS * min(few.values())], 256)
    return min(many, key=lambda way: 16 * few[way] + many[way])


def _seconds(ways: list[str], rows: int) -> dict[str, float]:
    """What each takes, times its handicap; in turns, or a busy moment would hit one of them."""
    sample = _sample(rows, 1024, 1024)
    took = dict.fromkeys(ways, float("inf"))
    for _ in range(5):
        for way in ways:
            start = time.perf_counter()
            WAYS[way](*sample)
            took[way] = min(took[way], time.perf_counter() - start)
    return {way: _HANDICAPS[way] * seconds for way, seconds in took.items()}
