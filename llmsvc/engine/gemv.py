# mypy: disable-error-code="untyped-decorator, no-untyped-def, import-not-found"
"""Linear layers for one token on a GPU: their weights are read once, as fast as the memory gives them.

A library's matrix product cuts small ones into parts and adds these up in a kernel of its own, and reaches 40 to 80 %
of that speed with the shapes of attention.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs comes without
    triton = None


def can(linear: Any) -> bool:
    """Whether a module is a linear layer that can be computed here."""
    if triton is None or type(linear) is not nn.Linear:
        return False
    weight = linear.weight
    return weight.is_cuda and weight.is_contiguous() and weight.dtype in (torch.bfloat16, torch.float16)


def quicker(module: Any) -> list[tuple[Any, Callable[..., Any]]]:
    """Of a module and its children, those that are better computed by what is given with them."""
    mlp: list[Any] = [getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down")]
    if all(can(part) and part.bias is None for part in mlp) and _is_silu(getattr(module, "act_fn", None)):
        return [(module, lambda x: several(mlp[2:], gated(mlp[0], mlp[1], x))[0])]
    attention: list[Any] = [getattr(module, f"{name}_proj", None) for name in "qkv"]
    if all(map(can, attention)) and len({(part.in_features, part.bias is None) for part in attention}) == 1:
        together = _Together(attention)
        return [(part, together.taker(number)) for number, part in enumerate(attention)]
    return [(module, lambda x: several([module], x)[0])] if can(module) else []


def _is_silu(function: Any) -> bool:
    return isinstance(function, nn.SiLU) or type(function).__name__ == "SiLUActivation"


class _Together:
    """Layers of one input, of which the first is asked first: all are computed then."""

    def __init__(self, linears: list[Any]) -> None:
        self._linears = linears
        self._given: torch.Tensor | None = None
        self._found: Sequence[torch.Tensor] = ()

    def taker(self, number: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def take(x: torch.Tensor) -> torch.Tensor:
            if number == 0:
                self._given, self._found = x, several(self._linears, x)
            return self._found[number] if x is self._given else several([self._linears[number]], x)[0]

        return take


def several(linears: Sequence[Any], x: torch.Tensor) -> Any:
    """What up to three layers make of ``x``, of shape (1, ..., width)."""
    sizes, width = [one.out_features for one in linears], x.shape[-1]
    out: Any = torch.empty(*x.shape[:-1], sum(sizes), dtype=x.dtype, device=x.device)
    three, counts = [*linears, linears[0], linears[0]][:3], [*sizes, 0, 0][:3]
    weights = [one.weight for one in three]
    biases = [one.weight if one.bias is None else one.bias for one in three]

    def grid(options: dict[str, int]) -> tuple[int]:
        return (sum(triton.cdiv(count, options["ROWS"]) for count in counts),)

    has_bias = linears[0].bias is not None
    _several[grid](x.contiguous(), *weights, *biases, out, *counts, sum(sizes), width, BIAS=has_bias)
    return out.split(sizes, -1)


def gated(gate: Any, up: Any, x: torch.Tensor) -> torch.Tensor:
    """``silu(gate(x)) * up(x)`` for ``x`` of shape (1, ..., width)."""
    outputs, width = gate.weight.shape
    out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)

    def grid(options: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(outputs, options["ROWS"]),)

    _gated[grid](x.contiguous(), gate.weight, up.weight, out, outputs, width)
    return out


if triton is not None:
    _CHOICES = [(1, 1024, 4), (2, 1024, 4), (4, 512, 4), (4, 1024, 4), (8, 512, 4), (8, 1024, 8), (16, 256, 4)]
    _CONFIGS = [triton.Config({"ROWS": r, "STEP": s}, num_warps=w) for r, s, w in _CHOICES]

    @triton.jit
    def _product(x, weight, rows, outputs, width, ROWS: tl.constexpr, STEP: tl.constexpr):
        """Of some rows of a matrix with ``x``."""
        total = tl.zeros((ROWS, STEP), tl.float32)
        for start in range(0, width, STEP):
            at = start + tl.arange(0, STEP)
            inside = (rows < outputs)[:, None] & (at < width)[None, :]
            part = tl.load(weight + rows[:, None] * width + at[None, :], mask=inside, other=0.0)
            given = tl.load(x + at, mask=at < width, other=0.0)
            total += part.to(tl.float32) * given.to(tl.float32)[None, :]
        return tl.sum(total, 1)

    @triton.autotune(_CONFIGS, ["total", "width"])
    @triton.jit
    def _several(
        x, first, second, third, bias, bias2, bias3, out, count, count2, count3, total, width,
        BIAS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    ):  # fmt: skip
        block = tl.program_id(0)
        blocks, blocks2 = tl.cdiv(count, ROWS), tl.cdiv(count2, ROWS)
        weight, added, outputs, to = first, bias, count, out
        if block >= blocks + blocks2:
            weight, added, outputs, to = third, bias3, count3, out + count + count2
            block -= blocks + blocks2
        elif block >= blocks:
            weight, added, outputs, to = second, bias2, count2, out + count
            block -= blocks
        rows = (block * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        found = _product(x, weight, rows, outputs, width, ROWS, STEP)
        if BIAS:
            found += tl.load(added + rows, mask=rows < outputs, other=0.0).to(tl.float32)
        tl.store(to + rows, found.to(out.dtype.element_ty), mask=rows < outputs)

    @triton.autotune(_CONFIGS, ["outputs", "width"])
    @triton.jit
    def _gated(x, gate, up, out, outputs, width, ROWS: tl.constexpr, STEP: tl.constexpr):
        rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        open_ = _product(x, gate, rows, outputs, width, ROWS, STEP)
        found = open_ * tl.sigmoid(open_) * _product(x, up, rows, outputs, width, ROWS, STEP)
        tl.store(out + rows, found.to(out.dtype.element_ty), mask=rows < outputs)
