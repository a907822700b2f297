"""How rows are multiplied with 8-bit weights on a CPU: three ways, of which each processor is given its fastest.

``kernel``: ours, int8.cpp, compiled for the processor at hand. It keeps the 32 bits of the rows and widens weights in
registers. ``integers``: the processor's own 8-bit products, where it has fast ones (VNNI, AMX; without, torch computes
them one by one). Each row is scaled to 16-bit integers, which are split into two 8-bit halves; both are multiplied in
one product, whose sums are exact. Of these two a row's result does not hang on what else is in the batch, nor on how a
prompt was cut into chunks. ``widened``, where there is no kernel: weights are widened before an ordinary product.
"""

import ctypes
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

log = logging.getLogger(__name__)

FEW = 64
"""Rows up to which a way is taken that was chosen for few of them."""
_SOURCE = Path(__file__).with_name("int8.cpp")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-fPIC", "-shared", "-std=c++17")
_WIDENED_AT_ONCE = 2**20
"""Weights; more would be memory that the system clears anew each time."""
_WORTH = 0.8
"""Another way has to take less than this share of the kernel's time, which hangs on nothing but a row itself."""
_HOPELESS = 8
"""A way that takes so many times as long for few rows is not tried with many."""

_kernel: ctypes.CDLL | None = None
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
    assert _kernel is not None
    x, (channels, width) = x.contiguous(), values.shape
    out = torch.empty(x.shape[0], channels)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, values, scales, out))
    _kernel.llmsvc_int8_linear(*pointers, *(ctypes.c_int64(size) for size in (x.shape[0], width, channels)))
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


@dataclass(frozen=True)
class Ways:
    """What was chosen for few rows and for many."""

    few: str
    many: str

    def multiply(self, x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return WAYS[self.few if x.shape[0] <= FEW else self.many](x, values, scales)


@torch.no_grad()
def choose(folder: Path | None) -> Ways:
    """The ways for this processor, measured once.

    ``folder`` keeps the kernel and what was chosen; None: no kernel is made.
    """
    with _lock:
        if folder is None or not _has_kernel(folder):
            return _measured(["integers", "widened"])
        memory = folder / f"{_name()}.json"
        with suppress(OSError, ValueError, TypeError):
            return Ways(**json.loads(memory.read_text()))
        chosen = _measured(["integers", "kernel"])
        with suppress(OSError):
            memory.write_text(json.dumps(asdict(chosen)))
        return chosen


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    names = (os.environ.get("CXX", "g++"), "c++", "clang++")
    return next((name for name in names if shutil.which(name)), None)


def processor() -> str:
    """What the processor can do."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    return platform.machine()


def _name() -> str:
    parts = (torch.__version__, torch.get_num_threads(), processor(), _SOURCE.read_text(), *_FLAGS)
    return f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}-product"


def _has_kernel(folder: Path) -> bool:
    """Load the kernel, built if need be: that takes a second."""
    global _kernel
    library = folder / f"{_name()}.so"
    for damaged in (False, True):
        if _kernel is not None:
            break
        try:
            if damaged or not library.exists():
                _build(library)
            # For all: compiled steps call it too.
            _kernel = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except (OSError, subprocess.SubprocessError) as error:
            log.info("the kernel for 8-bit weights cannot be had: %s", error)
    return _kernel is not None


def _build(library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    half = library.with_suffix(f".{os.getpid()}.so")
    try:
        command = [compiler() or "c++", *_FLAGS, str(_SOURCE), "-o", str(half)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        half.rename(library)
    finally:
        half.unlink(missing_ok=True)


def _is_right(way: str) -> bool:
    """Whether a way computes what it should here: some CPUs' instructions saturate."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (67, 259), generator=generator, dtype=torch.int8)
    scales = torch.rand(67, generator=generator)
    x = torch.randn(FEW + 7, 259, generator=generator)
    x[0], x[:, 3] = 3.0, 40.0
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


def _measured(ways: list[str]) -> Ways:
    """The faster of those that are right."""
    ways = [way for way in ways if _is_right(way)] or ["widened"]
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-127, 128, (1024, 1024), generator=generator, dtype=torch.int8)
    scales = torch.rand(1024, generator=generator)

    def seconds(way: str, rows: int) -> float:
        x, took = torch.randn(rows, 1024, generator=generator), []
        for _ in range(4):
            start = time.perf_counter()
            WAYS[way](x, values, scales)
            took.append(time.perf_counter() - start)
        return min(took) / (1 if way == "kernel" else _WORTH)

    few = {way: seconds(way, 16) for way in ways}
    best = min(few, key=few.__getitem__)
    many = {way: seconds(way, 256) for way in ways if few[way] < _HOPELESS * few[best]}
    return Ways(best, min(many, key=many.__getitem__))
