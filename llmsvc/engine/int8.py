"""Linear layers with 8-bit weights and activations that keep 16 bits, for CPUs.

Weights: symmetric, one scale for each output channel (as LLM.int8(), Dettmers et al. 2022, without its outliers).
Activations: each row is scaled to 16-bit integers, which are split into two 8-bit halves; both are multiplied in one
integer product, whose sums are exact. So a row's result does not hang on what else is in the batch, nor on how a prompt
was cut into chunks, as it does in bf16; and it takes the processor's fastest instructions.
"""

import logging
from collections.abc import Callable

import torch
from torch import nn

from llmsvc.engine.compute import compute_if_idle

log = logging.getLogger(__name__)


_AT_ONCE = 2**18
"""Weights that are rounded at once: what is made of them on the way stays in a core's cache."""


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 values of shape (out, in) and scales of shape (out,); ``values * scales[:, None]`` is nearly ``weight``."""
    values = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[0], dtype=torch.float32)  # another load may have changed the default meanwhile
    rows = max(1, _AT_ONCE // weight.shape[1])
    for start in range(0, weight.shape[0], rows):
        part = weight[start : start + rows].float()
        some = torch.div(part.abs().amax(1).clamp_(min=1e-12), 127, out=scales[start : start + rows])
        values[start : start + rows] = (part / some[:, None]).round_()
    return values, scales


def halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of shape (rows, width) as int8 of shape (2 * rows, width), high halves first, and each row's step (rows, 1).

    ``step * (256 * high + low)`` is ``x`` to 16 bits of the row's largest number.
    """
    step = x.abs().amax(1, keepdim=True).clamp_(min=1e-30).div_(32512)  # 127 * 256: both halves fit
    whole = x.div(step).round_()
    high = whole.div(256).round_()
    low = whole.sub_(high, alpha=256).clamp_(max=127)
    return torch.cat([high.to(torch.int8), low.to(torch.int8)]), step


class Int8Linear(nn.Module):
    """Takes the place of a linear layer."""

    values: torch.Tensor
    scales: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        values, scales = compute_if_idle(quantize, linear.weight.detach())
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, step = halves(x.reshape(-1, x.shape[-1]).float())
        product = torch._int_mm(rows, self.values.t()).float()
        high, low = product[: step.shape[0]], product[step.shape[0] :]
        out = low.add_(high, alpha=256).mul_(step).mul_(self.scales)
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], -1).to(x.dtype)


@torch.no_grad()
def quantize_linears(model: nn.Module, tell: Callable[[float], None] = lambda share: None) -> bool:
    """Put an Int8Linear in the place of every linear layer. False, and nothing is changed, where this CPU cannot.

    ``tell`` is told before each which share is done; what it raises ends it.
    """
    if not compute_if_idle(_works):
        return False
    replace_linears(model, Int8Linear, tell)
    return True


def replace_linears(
    model: nn.Module, make: Callable[[nn.Linear], nn.Module], tell: Callable[[float], None] = lambda share: None
) -> None:
    """Put what ``make`` makes of a linear layer in the place of each."""
    # Only names are kept: a list of the layers would hold all of them in memory until the last is replaced.
    paths = [path for path, module in model.named_modules(remove_duplicate=False) if type(module) is nn.Linear]
    for number, path in enumerate(paths):
        tell(number / len(paths))
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, make(model.get_submodule(path)))  # type: ignore[arg-type]


@torch.no_grad()
def _works() -> bool:
    """Whether an Int8Linear computes what it should here: some CPUs' instructions saturate."""
    try:
        generator = torch.Generator().manual_seed(0)
        linear = nn.Linear(256, 64)
        linear.weight.data = torch.randn(64, 256, generator=generator)
        x = torch.randn(5, 256, generator=generator)
        x[0], x[:, 3] = 3.0, 40.0
        layer = Int8Linear(linear)
        exact = x.double() @ (layer.values.double() * layer.scales.double()[:, None]).t() + linear.bias.double()
        error = float((layer(x) - exact).abs().max() / exact.abs().max())
    except Exception as error_:
        log.info("no 8-bit products here: %s", error_)
        return False
    return error < 1e-3
