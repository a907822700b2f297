# mypy: disable-error-code="untyped-decorator, no-untyped-def, import-not-found"
"""Attention of many tokens, each of which reads the pages of its own slot: kernels in Triton, which comes with torch.

Keys are read in blocks with a running maximum and sum (FlashAttention, Dao et al. 2022), by several programs for each
token when there are few tokens (Flash-Decoding, Dao et al. 2023); heads that share keys share a program.
"""

from typing import Any

import torch
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llmsvc.engine.chunk_attention import OTHERS

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs comes without
    triton = None

PAGE = 64
"""Positions in a page of the KV cache."""
_PROGRAMS = 256
"""So many keep a GPU busy."""
_MOST_SPLITS = 32


def paged_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers' ``AttentionInterface``.

    With an integer "mask", (1, 1, tokens, 2 + places): up to where each token looks, from where on, and its slot's
    pages. ``query`` is (1, heads, tokens, size) then, ``key`` and ``value`` are (pages, heads, PAGE, size). With any
    other mask it is attention as usual, and goes without the mask where that is marked as one of a piece of a text.
    Raises NotImplementedError for what it cannot do.
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        if _is_piece(query, key, value, attention_mask, options):
            causal = causal_lower_right(query.shape[2], key.shape[2])
            piece = scaled_dot_product_attention(
                query, key, value, causal, scale=options.get("scaling"), enable_gqa=True
            )
            return piece.transpose(1, 2).contiguous(), None
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return found
    if odd := [name for name in ("softcap", "s_aux") if options.get(name) is not None]:
        raise NotImplementedError(f"attention with {odd}")
    scale = query.shape[-1] ** -0.5 if options.get("scaling") is None else options["scaling"]
    rows = query[0].transpose(0, 1)
    attend = _kernels if query.is_cuda else _plain
    return attend(rows, key, value, attention_mask[0, 0], scale)[None], None


def _is_piece(query: Any, key: Any, value: Any, mask: Any, options: Any) -> bool:
    """Whether a kernel can take it that needs no mask (FlashAttention 2, Dao 2023)."""
    if (
        not query.is_cuda
        or getattr(mask, "positions", None) is None
        or any(options.get(name) is not None for name in OTHERS)
    ):
        return False
    return can_use_flash_attention(SDPAParams(query, key, value, None, 0.0, False, True))


def store(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    pages: torch.Tensor,
    offsets: torch.Tensor,
) -> None:
    """Write (heads, tokens, size) into (pages, heads, PAGE, size), each token at its page and offset."""
    if triton is None or not keys.is_cuda or new_keys.stride(2) != 1 or new_values.stride(2) != 1:
        keys[pages, :, offsets] = new_keys.transpose(0, 1)
        values[pages, :, offsets] = new_values.transpose(0, 1)
        return
    heads, tokens, size = new_keys.shape
    both = max(size, new_values.shape[2])
    _store[(tokens, heads)](
        keys, values, new_keys, new_values, pages, offsets,
        new_keys.stride(0), new_keys.stride(1), new_values.stride(0), new_values.stride(1),
        PAGE=PAGE, KEY=size, VALUE=new_values.shape[2], WIDTH=triton.next_power_of_2(both), num_warps=1,
    )  # fmt: skip


def _plain(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: torch.Tensor, scale: float
) -> torch.Tensor:
    """The same without kernels: (tokens, heads, size)."""
    heads, out = keys.shape[1], []
    for row, (length, start, *pages) in zip(query, table.tolist(), strict=True):
        held = torch.tensor(pages[: -(-length // PAGE)])
        key, value = (one[held].transpose(0, 1).flatten(1, 2)[:, start:length].float() for one in (keys, values))
        grouped = row.unflatten(0, (heads, -1)).float() * scale
        out.append(((grouped @ key.mT).softmax(-1) @ value).flatten(0, 1).to(query.dtype))
    return torch.stack(out)


def _kernels(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: torch.Tensor, scale: float
) -> torch.Tensor:
    if values.shape[3] != keys.shape[3]:
        raise NotImplementedError("values of another size than keys")
    (tokens, heads, size), shared = query.shape, keys.shape[1]
    splits = 1
    while splits < _MOST_SPLITS and 2 * splits * tokens * shared <= _PROGRAMS:
        splits *= 2
    out = torch.empty(tokens, heads, size, dtype=query.dtype, device=query.device)
    parts = torch.empty(tokens, heads, splits, size, dtype=torch.float32, device=query.device)
    sums = torch.empty(tokens, heads, splits, 2, dtype=torch.float32, device=query.device)
    shape = {"GROUP": heads // shared, "SIZE": size, "PAGE": PAGE, "SPLITS": splits}
    width = max(16, triton.next_power_of_2(size))
    _attend[(tokens, shared, splits)](
        query, keys, values, table, out, parts, sums, scale,
        query.stride(0), query.stride(1), table.stride(0), heads,
        **shape, LANES=max(16, triton.next_power_of_2(heads // shared)), WIDTH=width, num_warps=4,
    )  # fmt: skip
    if splits > 1:
        _join[(tokens, heads)](parts, sums, out, heads, SIZE=size, WIDTH=width, SPLITS=splits, num_warps=4)
    return out


if triton is not None:

    @triton.jit
    def _store(
        keys, values, new_keys, new_values, pages, offsets, key_head, key_token, value_head, value_token,
        PAGE: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr, WIDTH: tl.constexpr,
    ):  # fmt: skip
        """One token's key and value of one head."""
        token, head, wide = tl.program_id(0), tl.program_id(1), tl.arange(0, WIDTH)
        page = tl.load(pages + token).to(tl.int64)
        at = (page * tl.num_programs(1) + head) * PAGE + tl.load(offsets + token)
        key = tl.load(new_keys + head * key_head + token * key_token + wide, mask=wide < KEY)
        value = tl.load(new_values + head * value_head + token * value_token + wide, mask=wide < VALUE)
        tl.store(keys + at * KEY + wide, key, mask=wide < KEY)
        tl.store(values + at * VALUE + wide, value, mask=wide < VALUE)

    @triton.jit
    def _attend(
        query, keys, values, table, out, parts, sums, scale, query_row, query_head, table_row, heads,
        GROUP: tl.constexpr, SIZE: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr,
        LANES: tl.constexpr, WIDTH: tl.constexpr,
    ):  # fmt: skip
        """One token, one head of keys, one part of its pages: a weighted sum of values, its maximum and its sum."""
        row, shared, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        length = tl.load(table + row * table_row)
        start = tl.load(table + row * table_row + 1)
        first, last = start // PAGE, (length + PAGE - 1) // PAGE
        share = (last - first + SPLITS - 1) // SPLITS
        begin = first + split * share
        end = tl.minimum(begin + share, last)
        lane, wide, place = tl.arange(0, LANES), tl.arange(0, WIDTH), tl.arange(0, PAGE)
        head = shared * GROUP + lane
        there = (lane < GROUP)[:, None] & (wide < SIZE)[None, :]
        q = tl.load(query + row * query_row + head[:, None] * query_head + wide[None, :], mask=there, other=0.0)
        most = tl.full((LANES,), -1e30, tl.float32)
        total = tl.zeros((LANES,), tl.float32)
        found = tl.zeros((LANES, WIDTH), tl.float32)
        for number in range(begin, end):
            page = tl.load(table + row * table_row + 2 + number).to(tl.int64)
            at = (page * (tl.num_programs(1)) + shared) * PAGE * SIZE + place[:, None] * SIZE + wide[None, :]
            inside = (wide < SIZE)[None, :] & (place < PAGE)[:, None]
            k = tl.load(keys + at, mask=inside, other=0.0)
            v = tl.load(values + at, mask=inside, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            position = number * PAGE + place
            scores = tl.where(((position < length) & (position >= start))[None, :], scores, -1e30)
            higher = tl.maximum(most, tl.max(scores, 1))
            fade = tl.exp(most - higher)
            weights = tl.exp(scores - higher[:, None])
            total = total * fade + tl.sum(weights, 1)
            found = found * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
            most = higher
        if SPLITS == 1:
            to = out + (row * heads + head[:, None]) * SIZE + wide[None, :]
            tl.store(to, (found / total[:, None]).to(out.dtype.element_ty), mask=there)
        else:
            part = (row * heads + head) * SPLITS + split
            tl.store(parts + part[:, None] * SIZE + wide[None, :], found, mask=there)
            tl.store(sums + part * 2, most, mask=lane < GROUP)
            tl.store(sums + part * 2 + 1, total, mask=lane < GROUP)

    @triton.jit
    def _join(parts, sums, out, heads, SIZE: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
        """Put together what the parts of one token and head have found; an empty part has the sum 0."""
        at = tl.program_id(0) * heads + tl.program_id(1)
        split, wide = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
        most = tl.load(sums + (at * SPLITS + split) * 2)
        total = tl.load(sums + (at * SPLITS + split) * 2 + 1)
        weight = tl.exp(most - tl.max(most, 0))
        there = (wide < SIZE)[None, :] & (split < SPLITS)[:, None]
        found = tl.load(parts + (at * SPLITS + split)[:, None] * SIZE + wide[None, :], mask=there, other=0.0)
        whole = tl.sum(found * weight[:, None], 0) / tl.sum(total * weight, 0)
        tl.store(out + at * SIZE + wide, whole.to(out.dtype.element_ty), mask=wide < SIZE)
