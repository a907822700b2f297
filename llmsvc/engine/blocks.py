"""Weights that have 4 bits already: in each block of 32 columns no more than 16 values, at equal distances.

So are the weights of GGUF's types Q4_0, Q4_1 and Q4_K, whatever type they were unpacked to since: of each block a step
and a least value give them back, within what that type rounds (ggml-quants.c, dequantize_row_q4_1).
"""

import torch

from llmsvc.engine.kernels import kernels, run_kernel
from llmsvc.engine.products import WAYS

_COLUMNS, _CHANNELS = 32, 16
_FAR, _PARTS, _WORTH = 2.6, 254, 32760  # as in cpp/blocks.h
_AT_ONCE = 2**18
"""Weights that are looked at together: what is made of them on the way stays in a core's cache."""


def in_blocks(weight: torch.Tensor) -> torch.Tensor | None:
    """Records of blocks as the kernel wants them (cpp/blocks.h), uint8 of shape (channels / 16, blocks, 320).

    None for weights that have no 4 bits; weights around 0 seem to have them by chance in one of 10^19 blocks.
    """
    channels, width = weight.shape
    if channels % _CHANNELS or width % _COLUMNS or not weight.any():
        return None
    records = torch.empty(channels // _CHANNELS, width // _COLUMNS, 320, dtype=torch.uint8)
    found = torch.zeros(1, dtype=torch.int64)
    rows = max(1, _AT_ONCE // width // _CHANNELS) * _CHANNELS
    for start in (0, *range(0, channels, rows)):
        part = weight[start : start + (rows if found else _CHANNELS)].float().contiguous()  # most end with the first
        run_kernel("llmsvc_pack_blocks", part, records[start // _CHANNELS :], found, len(part), width)
        if not found:
            return None
    return records


def has_blocks() -> bool:
    """Whether the kernel that was loaded multiplies such weights, and rightly."""
    ours = kernels()
    if ours is None or not ours.llmsvc_has_blocks():
        return False
    generator = torch.Generator().manual_seed(0)
    records = torch.randint(256, (3, 37, 320), generator=generator, dtype=torch.uint8)
    scales = torch.randn(3, 37, 32, generator=generator, dtype=torch.float32)
    scales[:, 0], scales[:, 0, 16:] = 1.0, 0.0
    records[:, 0, :256] = 255  # one block whose sums are as large as they get
    records[:, :, 256:] = scales.half().view(torch.uint8)
    x = torch.randn(40, 37 * _COLUMNS, generator=generator, dtype=torch.float32)
    x[0, :_COLUMNS] = 3.0
    x[1::2, 64:96] *= 100  # blocks that get 16 bits
    x[1::2, -_COLUMNS:] *= 80
    exact = rounded(x).double() @ unpacked(records).double().t()
    found = [WAYS["kernel"](some, records, torch.empty(0)) for some in (x[:1], x[:3], x)]
    return all(bool(((one - exact[: len(one)]).abs().amax() < 1e-5 * exact.abs().amax()).all()) for one in found)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Rows as the kernel rounds them."""
    parts = x.view(len(x), -1, _COLUMNS)
    largest = parts.abs().amax(2, keepdim=True).clamp_(min=1e-30)
    unit = largest.amax(1, keepdim=True) / (127 * _WORTH)
    step = (largest / (127 * unit)).ceil_().clamp_(max=_WORTH) * unit
    scaled = parts * torch.ones_like(step).div_(step)
    whole = scaled.round()
    fine = largest.double() > _FAR / parts.shape[1] * largest.double().sum(1, keepdim=True)
    rest = scaled.sub_(whole).mul_(_PARTS).round_().div_(_PARTS).mul_(fine)
    worth: torch.Tensor = whole.add_(rest).mul_(step)
    return worth.view(x.shape)


def unpacked(records: torch.Tensor) -> torch.Tensor:
    """The weights, (channels, width), in 32 bits."""
    panels, count, _ = records.shape
    both = records[:, :, :256].view(panels, count, 4, _CHANNELS, 4)
    places = torch.stack([both & 15, both >> 4], 3).permute(0, 4, 1, 2, 3, 5).reshape(-1, count, _COLUMNS)
    scales = records[:, :, 256:].contiguous().view(torch.float16).view(panels, count, 2, _CHANNELS).float()
    step, least = scales.permute(2, 0, 3, 1).reshape(2, -1, count, 1)
    weights: torch.Tensor = places * step + least
    return weights.view(panels * _CHANNELS, -1)
