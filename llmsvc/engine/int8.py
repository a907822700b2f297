"""Linear layers with 8-bit weights for CPUs, and activations that keep 15 bits or more, or 8 beside weights of 4 bits.

Weights: symmetric, one scale for each output channel (as LLM.int8(), Dettmers et al. 2022, without its outliers). Those
that have 4 bits already keep them where our kernel is the fastest way (blocks.py).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmsvc.engine.blocks import has_blocks, in_blocks
from llmsvc.engine.compute import compute_if_idle
from llmsvc.engine.products import WAYS, choose

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


class Int8Linear(nn.Module):
    """Takes the place of a linear layer."""

    values: torch.Tensor
    """int8 of shape (out, in), or the records of weights of 4 bits."""
    scales: torch.Tensor
    """(out,), or none."""

    def __init__(self, linear: nn.Linear, way: str, blocks: bool = False) -> None:
        """``way``: of WAYS. ``blocks``: whether weights that have 4 bits are to keep them."""
        super().__init__()
        weight = linear.weight.detach()
        records = compute_if_idle(in_blocks, weight) if blocks else None
        values, scales = (
            (records, torch.empty(0, dtype=torch.float32)) if records is not None else compute_if_idle(quantize, weight)
        )
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.bias, self.way = linear.bias, way
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._widened: torch.Tensor | None = None

    @property
    def weight(self) -> "WidenedWeight":
        """(out, in): some models multiply by the weights of a layer themselves, as Mamba 1 does."""
        return WidenedWeight(self)

    def widened(self) -> torch.Tensor:
        """The weights in 32 bits, which are kept from then on."""
        if self._widened is None:  # another load may have changed the default type meanwhile
            self._widened = self._product(torch.eye(self.in_features, dtype=torch.float32)).T.contiguous()
        return self._widened

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        return WAYS[self.way](rows, self.values, self.scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self._product(x.reshape(-1, x.shape[-1]).float())
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], -1).to(x.dtype)


class WidenedWeight:
    """Stands for an Int8Linear's weights in 32 bits, which are made when they are used: most only ask for the type."""

    dtype = torch.float32

    def __init__(self, layer: Int8Linear) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer.widened(), name)

    def __matmul__(self, other: torch.Tensor) -> torch.Tensor:
        return self._layer.widened() @ other

    def __mul__(self, other: torch.Tensor) -> torch.Tensor:
        return self._layer.widened() * other

    def __getitem__(self, places: Any) -> torch.Tensor:
        return self._layer.widened()[places]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        """https://docs.pytorch.org/docs/stable/notes/extending.html#extending-torch-python-api"""
        widened = [part._layer.widened() if isinstance(part, cls) else part for part in given]
        return function(*widened, **(named or {}))


@torch.no_grad()
def quantize_linears(
    model: nn.Module,
    kernels: Path | None = None,
    tell: Callable[[float], None] = lambda share: None,
) -> None:
    """Put an Int8Linear in the place of every linear layer.

    ``kernels``: where a kernel for their products is kept; None: none is compiled. ``tell`` is told before each which
    share is done; what it raises ends it.
    """
    way = choose(kernels)
    replace_linears(model, partial(Int8Linear, way=way, blocks=way == "kernel" and has_blocks()), tell)
    coarse = [
        name for name, layer in model.named_modules() if isinstance(layer, Int8Linear) and layer.values.dim() == 3
    ]
    config: Any = model.config
    config.weights_of_4_bits = coarse  # what is compiled for a model depends on it


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
