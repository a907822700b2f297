"""Chooses the next token of each row from its logits."""

from collections.abc import Sequence

import torch

from llmsvc.engine.request import SamplingParams

_NUCLEUS = 512
"""Of the likeliest tokens: a nucleus is nearly always smaller, and sorting a whole vocabulary costs 15 ms on a CPU."""


def sample(
    logits: torch.Tensor, params: Sequence[SamplingParams], generators: Sequence[torch.Generator | None]
) -> list[int]:
    """A token id for each row; -1 where the logits are no numbers.

    ``logits`` has shape (rows, vocabulary), with -inf where a token is not allowed. Filters run in the order of
    transformers' logits warpers: temperature, top-k, top-p (nucleus sampling, Holtzman et al. 2019), min-p (Nguyen et
    al. 2024). Each row takes one number from its own generator, so its choice does not hang on the others. The draw is
    a race (Gumbel-max; Yellott 1977) with a handicap for each token id: the last bits of a probability, which differ
    with what else was computed, decide next to nothing then; a cumulative sum would end at a neighbouring token.
    """
    chosen: list[int] = logits.argmax(-1).tolist()
    drawn = [row for row, own in enumerate(params) if own.temperature > 0]
    if not drawn:
        return chosen
    own, device = [params[row] for row in drawn], logits.device

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    probabilities = (logits[drawn].float() / column([p.temperature for p in own])).softmax(-1)
    size = probabilities.shape[-1]
    top_k = [min(p.top_k, size) if p.top_k > 0 else 0 for p in own]
    values, indices = probabilities.topk(min(max(_NUCLEUS, *top_k), size))
    keys = [torch.randint(2**62, (1, 1), generator=generators[row], device=device) for row in drawn]
    rest = column([p.min_p for p in own]), column([max(p.top_p, 1e-9) for p in own]), torch.cat(keys)
    found, enough = _draw(values, indices, column([k or size for k in top_k]), *rest)
    sound = torch.isfinite(values[:, 0]).tolist()
    whole = values.shape[1] == size
    for number, row in enumerate(drawn):
        chosen[row] = found[number] if sound[number] else -1
        if sound[number] and not (whole or top_k[number] or enough[number]):
            everything, order = probabilities[number].sort(descending=True)
            own_rest = (part[number : number + 1] for part in rest)
            (chosen[row],), _ = _draw(everything[None], order[None], column([size]), *own_rest)
    return chosen


def _draw(
    values: torch.Tensor,
    indices: torch.Tensor,
    top_k: torch.Tensor,
    min_p: torch.Tensor,
    top_p: torch.Tensor,
    keys: torch.Tensor,
) -> tuple[list[int], list[bool]]:
    """Token ids, and whether a row holds all that may be chosen without a top-k.

    ``values``: (rows, places), sorted probabilities of the tokens ``indices``; the others (rows, 1), ``keys`` drawn
    from all integers. The likeliest always stays.
    """
    left = values.masked_fill(torch.arange(values.shape[1], device=values.device) >= top_k, 0.0)
    # Top-p counts what top-k has left.
    share = left / torch.where(top_k <= values.shape[1], left.sum(-1, keepdim=True), 1.0)
    before = share.cumsum(-1) - share
    enough = (before[:, -1:] >= top_p) | (values[:, -1:] < min_p * values[:, :1])
    left = left.masked_fill((before >= top_p) & (top_p < 1), 0.0).masked_fill(values < min_p * values[:, :1], 0.0)
    places = (left / _exponential(indices, keys)).argmax(-1, keepdim=True)
    return indices.gather(1, places)[:, 0].tolist(), enough[:, 0].tolist()


def _exponential(ids: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """A number of mean 1, exponentially distributed, for each of ``ids``, the same for the same key: SplitMix64 (Steele
    et al. 2014) of both."""
    mixed = keys + (ids + 1) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << 64 - shift) - 1))) * factor
    uniform = (((mixed >> 12) & ((1 << 52) - 1)).double() + 0.5) / 2**52
    return -uniform.log()


def penalized(logits: torch.Tensor, penalty: float, seen: torch.Tensor) -> torch.Tensor:
    """``logits`` with those of the token ids in ``seen`` made less likely (CTRL, Keskar et al. 2019)."""
    found = logits[seen]
    return logits.index_copy(0, seen, torch.where(found < 0, found * penalty, found / penalty))


def make_generator(params: SamplingParams, device: torch.device) -> torch.Generator | None:
    """A seeded generator for a request that asked for one."""
    if params.seed is None:
        return None
    return torch.Generator(device=device).manual_seed(params.seed)
