"""Attention on a CPU, of any model of transformers that attends by ``sdpa``.

A kernel of ours reads what tokens see up to their own positions, in 32 bits, of heads of a multiple of 16 numbers; keys
and values may have 16. For others, what lies before a piece of a prompt is read without a mask, by all query heads that
share its keys at once, and the piece itself causally, in two halves; all are put together by their log-sums, as
FlashAttention does with blocks (Dao et al. 2022, 2205.14135). With a mask, and keys repeated for each head, that took
1.4 times as long.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from llmsvc.engine.kernels import kernels, run_kernel

NAME = "chunks"
PIECE = 16
"""Tokens from which on it pays to look at what is before a piece apart from the piece itself."""
HALF = 64
"""Tokens of a piece's half from which on it pays to read it in two."""
Pair = list[torch.Tensor]
Seen = tuple[torch.Tensor, torch.Tensor]
"""What was read, (1, heads, new, size), and the logarithm of the sum of its weights, (1, heads, new)."""
OTHERS = ("softcap", "s_aux", "position_bias")


def attend_by_chunks(model: Any) -> None:
    """Let a model's attention be this, where it would be ``sdpa``. Other passes than marked ones stay what they are."""
    attend(model, NAME, attention)


def attend(model: Any, name: str, function: Callable[..., Any]) -> bool:
    """Let a model attend by a function where it would by ``sdpa``; False for one whose attention is its own."""
    config = model.config.get_text_config()
    if config._attn_implementation not in ("sdpa", name):
        return False
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, sdpa_mask)  # for passes of others, such as embeddings
    config._attn_implementation = model.config._attn_implementation = name
    return True


def mark(mask: torch.Tensor, positions: torch.Tensor) -> None:
    """Say that ``mask``, (rows, 1, new, length), allows what is up to ``positions``, (rows, new): neighbours.

    Its ``reads`` then count how often the kernel read by it.
    """
    mask.positions, mask.reads = positions, 0  # type: ignore[attr-defined]


def attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers' ``AttentionInterface``."""
    positions: Any = getattr(attention_mask, "positions", None)
    odd = positions is None or key.shape[3] != value.shape[3] or any(options.get(name) is not None for name in OTHERS)
    if not odd and _by_kernel(query, key, value, positions):
        attention_mask.reads += 1
        return attend_up_to(query, key, value, positions, options.get("scaling")), None
    key, value = (part.to(query.dtype) for part in (key, value))
    rows, _, new, _ = query.shape
    if odd or rows > 1 or new < PIECE:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return plain
    start = int(positions[0, 0])
    own = [part[:, :, start : start + new] for part in (key, value)]
    before = [part[:, :, :start] for part in (key, value)] if start else None
    return attend_parts(query, own, before, options.get("scaling")), None


def fits_kernel(size: int, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the kernel can read keys and values on a CPU, with this head size and of this type, in 32 bits or 16."""
    ours = kernels()
    if ours is None or size % 16 or dtype not in (torch.float32, torch.float16):
        return False
    return bool(dtype == torch.float32 or ours.llmsvc_has_halves()) and _is_right(dtype)


@functools.cache
@torch.inference_mode()
def _is_right(dtype: torch.dtype) -> bool:
    """Whether the kernel reads what torch reads, on this processor."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    query, key, value = some(2, 7, 37, 80), some(2, 1, 653, 80).to(dtype), some(2, 1, 653, 80).to(dtype)
    positions = torch.arange(37) + torch.tensor([[600], [101]])
    mask = torch.arange(653) <= positions[:, None, :, None]
    keys, values = (part.double().expand(-1, 7, -1, -1) for part in (key, value))
    exact = torch.nn.functional.scaled_dot_product_attention(query.double(), keys, values, attn_mask=mask).transpose(
        1, 2
    )
    found = attend_up_to(query, key, value, positions, None)
    last = attend_up_to(query[:, :, -1:], key, value, positions[:, -1:].contiguous(), None)
    flat, slots = query.transpose(0, 1).reshape(1, 7, 74, 80), torch.arange(2).repeat_interleave(37)[None]
    joined = attend_up_to(flat, key, value, positions.view(1, 74), None, slots)
    near = torch.allclose(found, exact.float(), atol=1e-4) and torch.allclose(last, exact[:, -1:].float(), atol=1e-4)
    return near and torch.equal(joined.view(found.shape), found)


def _by_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor) -> bool:
    rows, _, new, size = query.shape
    return (
        fits_kernel(size, key.dtype)
        and query.device.type == "cpu"
        and query.dtype == torch.float32
        and key.dtype == value.dtype
        and positions.shape == (rows, new)
        and query.stride(3) == 1
        and key.shape == value.shape
        and key.shape[0] == rows
        and key.stride() == value.stride()
        and key.stride()[2:] == (size, 1)
    )


def attend_up_to(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    positions: torch.Tensor,
    scale: float | None,
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """What tokens see up to their ``positions``, (rows, new), by the kernel: (rows, new, heads, size).

    ``query``: (rows, heads, new, size); keys and values, (slots, shared heads, length, size), are of one layout, in 32
    bits or 16. ``slots``, (rows, new): whose keys each token reads; by default its row's.
    """
    positions, slots = positions.contiguous(), None if slots is None else slots.contiguous()
    rows, heads, new, size = query.shape
    out = query.new_empty(rows, new, heads, size)
    sizes = (rows, heads, key.shape[1], new, size, *query.stride()[:3], *key.stride()[:2])
    factor = float(size**-0.5 if scale is None else scale)
    run_kernel("llmsvc_attend", query, key, value, positions, slots, out, factor, 8 * key.element_size(), *sizes)
    return out


def attend_parts(query: torch.Tensor, own: Pair, before: Pair | None, scale: float | None) -> torch.Tensor:
    """What a piece sees of itself and of what is ``before`` it, shape (1, new, heads, size).

    ``query``: (1, heads, new, size); keys and values may have fewer heads.
    """
    new = query.shape[2]
    half = new // 2 if new >= 2 * HALF else new
    out, log_sum = _causal(query[:, :, :half], [part[:, :, :half] for part in own], scale)
    if half < new:  # a causal product of its own computes the half that nobody sees as well
        second = query[:, :, half:]
        later = _causal(second, [part[:, :, half:] for part in own], scale)
        later = _join(later, _all(second, [part[:, :, :half] for part in own], scale))
        out, log_sum = torch.cat([out, later[0]], 2), torch.cat([log_sum, later[1]], 2)
    if before is not None:
        out, _ = _join((out, log_sum), _all(query, before, scale))
    return out.transpose(1, 2).contiguous()


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _causal(query: torch.Tensor, keys: Pair, scale: float | None) -> Seen:
    keys = [part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in keys]
    out, log_sum = _flash(query, *keys, 0.0, True, scale=scale)
    return out, log_sum


def _all(query: torch.Tensor, keys: Pair, scale: float | None) -> Seen:
    _, heads, new, size = query.shape
    out, log_sum = _flash(query.reshape(1, keys[0].shape[1], -1, size), *keys, scale=scale)
    return out.reshape(1, heads, new, size), log_sum.reshape(1, heads, new)


def _join(one: Seen, other: Seen) -> Seen:
    share = torch.sigmoid(one[1] - other[1])[..., None].to(one[0].dtype)
    return torch.lerp(other[0], one[0], share), torch.logaddexp(one[1], other[1])
