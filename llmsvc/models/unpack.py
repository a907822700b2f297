"""Packed weights made whole again, one at a time, in 32 bits. A function for each scheme of ``quantised.Packed``.

Each takes the pieces of one weight by the part they play. Checked against: GPTQModel (nn_modules/qlinear), AutoAWQ
(utils/packing_utils.py), compressed_tensors.compressors, transformers.integrations (finegrained_fp8, mxfp4),
mlx.core.quantize, and the OCP Microscaling formats.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from llmsvc.models.quantised import Packed, checkpoint_kind, group_of, mode_of, settings

Pieces = Mapping[str, torch.Tensor]

_FOURS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
"""What 4 bits are worth in E2M1."""
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where the numbers of an output channel stand in a word, by AutoAWQ."""


def unpack(packed: Packed, pieces: Pieces, config: dict[str, Any]) -> torch.Tensor:
    """The weight, of shape ``packed.shape`` unless the pieces know better. Raises ValueError for pieces that do not
    fit each other."""
    whole: torch.Tensor = _SCHEMES[packed.scheme](packed, pieces, config)
    return whole.contiguous()


def unbits(words: torch.Tensor, bits: int) -> torch.Tensor:
    """(…, n) words of 32 bits to (…, n * 32 // bits) numbers in uint8: each row is a stream of bits, lowest first."""
    octets = words.contiguous().view(torch.uint8)[..., None]
    if 8 % bits == 0:
        values: torch.Tensor = (octets >> torch.arange(0, 8, bits, dtype=torch.uint8)) & (2**bits - 1)
        return values.flatten(-2)
    stream = ((octets >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(-2)
    stream = _cut(stream[..., : stream.shape[-1] // bits * bits], bits)
    return (stream << torch.arange(bits, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def _cut(rows: torch.Tensor, size: int) -> torch.Tensor:
    """(…, n) to (…, n // size, size)."""
    return rows.reshape(*rows.shape[:-1], -1, size)


def _gptq(packed: Packed, pieces: Pieces, config: dict[str, Any]) -> torch.Tensor:
    """``main``: (in * bits / 32, out), ``scale``: (groups, out), ``zeros``: (groups, out * bits / 32)."""
    own, scale = settings(config), pieces["scale"].float()
    out, columns = packed.shape
    bits = pieces["main"].shape[0] * 32 // columns
    numbers = unbits(pieces["main"].t(), bits)
    if "zeros" not in pieces or (checkpoint_kind(config) == "auto-round" and own.get("sym")):
        zeros = torch.full_like(scale, 2 ** (bits - 1))
    else:
        stored = unbits(pieces["zeros"], bits)[:, :out].int()
        second = "gptq_v2" in (own.get("checkpoint_format"), own.get("format"))
        zeros = (stored if second else (stored + 1) & (2**bits - 1)).float()
    return _by_groups(numbers, zeros.t(), scale.t(), pieces.get("groups"))


def _by_groups(
    numbers: torch.Tensor, zeros: torch.Tensor, scale: torch.Tensor, index: torch.Tensor | None = None
) -> torch.Tensor:
    """``(numbers - zeros) * scale``, of shapes (rows, columns) and twice (rows, groups).

    ``index``: the group of each column, where it is not so many columns after the others.
    """
    values, groups = numbers.float(), scale.shape[1]
    regular = torch.arange(values.shape[1]) // -(-values.shape[1] // groups)
    if index is not None and index.numel() == values.shape[1] and not torch.equal(index.long(), regular):
        return values.sub_(zeros[:, index.long()]).mul_(scale[:, index.long()])
    if values.shape[1] % groups:
        return values.sub_(zeros[:, regular]).mul_(scale[:, regular])
    return _cut(values, values.shape[1] // groups).sub_(zeros[..., None]).mul_(scale[..., None]).flatten(-2)


def _awq(packed: Packed, pieces: Pieces, config: dict[str, Any]) -> torch.Tensor:
    """``main``: (in, out * bits / 32), ``scale``: (groups, out), ``zeros``: (groups, out * bits / 32)."""
    out = packed.shape[0]
    bits = pieces["main"].shape[1] * 32 // out
    order = torch.tensor(_AWQ_ORDER if bits == 4 else range(32 // bits))
    numbers, zeros = (
        _cut(unbits(pieces[part], bits), len(order))[..., order].flatten(-2) if part in pieces else None
        for part in ("main", "zeros")
    )
    assert numbers is not None
    scale = pieces["scale"].float()
    zero = zeros.float() if zeros is not None else torch.full_like(scale, 2 ** (bits - 1))
    return _by_groups(numbers.t(), zero.t(), scale.t())


def _integers(packed: Packed, pieces: Pieces, config: dict[str, Any]) -> torch.Tensor:
    """compressed-tensors' pack-quantized: rows of bits, each number above its least one."""
    main = pieces["main"]
    shape = tuple(pieces["shape"].tolist()) if "shape" in pieces else packed.shape
    bits = min(8, main.shape[-1] * 32 // shape[-1])
    if -(-shape[-1] * bits // 32) != main.shape[-1]:
        raise ValueError(f"{packed.name} has {main.shape[-1]} words in a row for {shape[-1]} numbers")
    numbers: torch.Tensor = unbits(main, bits)[..., : shape[-1]].float().sub_(2 ** (bits - 1))
    if "zeros" in pieces:
        zeros = pieces["zeros"]
        if zeros.dtype == torch.int32:  # packed along the rows
            zeros = unbits(zeros.transpose(-2, -1), bits).transpose(-2, -1)[..., : shape[-2], :].float() - 2 ** (
                bits - 1
            )
        numbers -= _spread(zeros.float(), shape, ())
    return numbers.mul_(_spread(pieces["scale"].float(), shape, ()))


def _scaled(packed: Packed, pieces: Pieces, config: dict[str, Any]) -> torch.Tensor:
    """Numbers of 8 bits with a scale for all, each row, each group of columns, or each block."""
    numbers, block = pieces["main"].float(), tuple(_block(config))
    if "zeros" in pieces:
        numbers = numbers - _spread(pieces["zeros"].float(), numbers.shape, block)
    numbers = numbers.mul_(_spread(_scale(pieces["scale"]), numbers.shape, block))
    return numbers * pieces["factor"].float() if "factor" in pieces else numbers


def _fours(packed: Packed, pieces: Pieces, config: dict[str, Any]) -> torch.Tensor:
    """NVFP4 and MXFP4: two numbers in a byte, the lower first."""
    numbers, scale = _nibbles(pieces["main"]), _scale(pieces["scale"])
    if "divisor" in pieces:
        scale = scale / pieces["divisor"].float()
    if "factor" in pieces:
        scale = scale * pieces["factor"].float()
    return numbers * _spread(scale, numbers.shape, ())


def _blocks(packed: Packed, pieces: Pieces, config: dict[str, Any]) -> torch.Tensor:
    """gpt-oss: (experts, out, groups, 16) bytes and (experts, out, groups) exponents to (experts, in, out)."""
    numbers = _nibbles(pieces["main"]) * _scale(pieces["scale"])[..., None]
    return numbers.flatten(-2).transpose(-2, -1)


def _affine(packed: Packed, pieces: Pieces, config: dict[str, Any]) -> torch.Tensor:
    """MLX: whole numbers times a scale plus a bias for each group, or numbers of 4 or 8 bits with a scale alone."""
    group, mode = group_of(packed.name, config), mode_of(packed.name, config)
    words, columns = pieces["main"], pieces["scale"].shape[-1] * group
    numbers = unbits(words, words.shape[-1] * 32 // columns)[..., :columns]
    if mode == "affine":
        grouped = _cut(numbers, group) * pieces["scale"].float()[..., None]
        return (grouped + pieces["biases"].float()[..., None]).flatten(-2)
    values = _FOURS[numbers.long()] if mode != "mxfp8" else numbers.to(torch.uint8).view(torch.float8_e4m3fn).float()
    small = pieces["scale"].view(torch.float8_e4m3fn).float() if mode == "nvfp4" else _scale(pieces["scale"])
    return (_cut(values, group) * small[..., None]).flatten(-2)


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    both = packed.contiguous().view(torch.uint8)
    return _FOURS[torch.stack([both & 15, both >> 4], -1).flatten(-2).int()]


def _scale(stored: torch.Tensor) -> torch.Tensor:
    """In 32 bits; bytes are exponents (E8M0)."""
    return torch.exp2(stored.float() - 127) if stored.dtype == torch.uint8 else stored.float()


def _block(config: dict[str, Any]) -> list[int]:
    """Rows and columns that share a scale, by the configuration; empty when it does not say."""
    own = settings(config)
    groups = (own.get("config_groups") or {}).values()
    sizes = [own.get("weight_block_size"), *((group.get("weights") or {}).get("block_structure") for group in groups)]
    return next((list(size) for size in sizes if isinstance(size, list | tuple) and len(size) == 2), [])


def _spread(scale: torch.Tensor, shape: tuple[int, ...] | torch.Size, block: tuple[int, ...]) -> torch.Tensor:
    """``scale`` as wide as a weight of this shape, so far as multiplying needs it. Raises ValueError."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.dim() < len(shape):  # a number for each row; of several matrices maybe for each of them
        scale = scale.reshape(*scale.shape, *[1] * (len(shape) - scale.dim()))
    for axis in range(len(shape)):
        size, many = shape[axis], scale.shape[axis]
        if many in (1, size):
            continue
        side = axis - len(shape)
        step = block[side] if len(block) == 2 and side >= -2 and -(-size // block[side]) == many else size // many
        if -(-size // step) != many:
            raise ValueError(f"{many} scales do not fit {size} numbers")
        scale = scale.repeat_interleave(step, axis).narrow(axis, 0, size)
    return scale


_SCHEMES: dict[str, Callable[[Packed, Pieces, dict[str, Any]], torch.Tensor]] = {
    "gptq": _gptq,
    "awq": _awq,
    "integers": _integers,
    "scaled": _scaled,
    "fours": _fours,
    "blocks": _blocks,
    "affine": _affine,
}
