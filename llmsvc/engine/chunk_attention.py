"""Attention of a piece of a prompt on a CPU, of any model of transformers that attends by ``sdpa``.

What lies before the piece is read without a mask, by all query heads that share its keys at once, and the piece itself
causally, in two halves; all are put together by their log-sums, as FlashAttention does with blocks (Dao et al. 2022,
2205.14135). With a mask, and keys repeated for each head, it took 1.4 times as long. What a single token sees, a kernel
of ours reads, where there is one.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from llmsvc.engine.kernels import kernels

NAME = "chunks"
HALF = 64
"""Tokens of a piece's half from which on it pays to read it in two, where it is not compiled."""
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


def mark(mask: torch.Tensor, start: int) -> None:
    """Say that ``mask``, of shape (1, 1, new, length), allows all before ``start``, and is causal from there on."""
    mask.start = start  # type: ignore[attr-defined]


def attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers' ``AttentionInterface``."""
    start = getattr(attention_mask, "start", None)
    odd = key.shape[3] != value.shape[3] or any(options.get(name) is not None for name in OTHERS)
    if not odd and query.shape[2] == 1 and _by_kernel(query, key, value, attention_mask):
        return attend_one(query, key, value, attention_mask, options.get("scaling")), None
    if start is None or odd:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return plain
    new = query.shape[2]
    own = [part[:, :, start : start + new] for part in (key, value)]
    before = [part[:, :, :start] for part in (key, value)] if start else None
    return attend_parts(query, own, before, options.get("scaling"), halve=new >= 2 * HALF), None


def fits_kernel(size: int) -> bool:
    """Whether single tokens of a model on a CPU, with this head size, can be read by the kernel."""
    return kernels() is not None and size % 16 == 0 and _is_right()


@functools.cache
@torch.inference_mode()
def _is_right() -> bool:
    """Whether the kernel reads what torch reads, on this processor."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32)

    query, key, value = some(2, 7, 1, 80), some(2, 1, 133, 80), some(2, 1, 133, 80)
    mask = some(2, 1, 1, 133) > -1
    keys, values = (part.double().expand(-1, 7, -1, -1) for part in (key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(query.double(), keys, values, attn_mask=mask)
    return torch.allclose(attend_one(query, key, value, mask, None), expected.transpose(1, 2).float(), atol=1e-4)


def _by_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any) -> bool:
    rows, _, _, size = query.shape
    return (
        fits_kernel(size)
        and query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype == torch.float32
        and mask is not None
        and mask.dtype == torch.bool
        and mask.shape == (rows, 1, 1, key.shape[2])
        and key.shape == value.shape
        and key.shape[0] == rows
        and key.stride() == value.stride()
        and key.stride()[2:] == (size, 1)
    )


def attend_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """What one token in each row sees where ``mask``, (rows, 1, 1, length), is true: (rows, 1, heads, size)."""
    ours, query, mask = kernels(), query.contiguous(), mask.contiguous()
    assert ours is not None
    rows, heads, _, size = query.shape
    out = query.new_empty(rows, 1, heads, size)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (query, key, value, mask, out))
    sizes = (rows, heads, key.shape[1], size, key.shape[2], key.stride(0), key.stride(1), mask.stride(0))
    ours.llmsvc_attend(
        *pointers, ctypes.c_float(size**-0.5 if scale is None else scale), *(ctypes.c_int64(number) for number in sizes)
    )
    return out


def attend_parts(
    query: torch.Tensor,
    own: Pair,
    before: Pair | None,
    scale: float | None,
    seen: torch.Tensor | None = None,
    *,
    halve: bool = True,
) -> torch.Tensor:
    """What a piece sees of itself and of what is ``before`` it, shape (1, new, heads, size).

    ``query``: (1, heads, new, size); keys and values may have fewer heads. ``seen``: whether it is to see those before
    it at all. ``halve``: read the piece in two: a causal product of its own computes the half that nobody sees as well.
    """
    new = query.shape[2]
    half = new // 2 if halve else new
    out, log_sum = _causal(query[:, :, :half], [part[:, :, :half] for part in own], scale)
    if halve:
        second = query[:, :, half:]
        later = _causal(second, [part[:, :, half:] for part in own], scale)
        later = _join(later, _all(second, [part[:, :, :half] for part in own], scale))
        out, log_sum = torch.cat([out, later[0]], 2), torch.cat([log_sum, later[1]], 2)
    if before is not None:
        both, _ = _join((out, log_sum), _all(query, before, scale))
        out = both if seen is None else torch.where(seen, both, out)
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
