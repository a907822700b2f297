"""Chooses the next token of one row from its logits."""

import torch

from llmsvc.engine.request import SamplingParams

_NUCLEUS = 512


def sample(logits: torch.Tensor, params: SamplingParams, generator: torch.Generator | None) -> int:
    """Return a token id.

    ``logits`` has shape (vocabulary,), with -inf where a token is not allowed. Filters run in the order of
    transformers' logits warpers: temperature, top-k, top-p (nucleus sampling, Holtzman et al. 2019), min-p (Nguyen et
    al. 2024).
    """
    if params.temperature <= 0:
        return int(logits.argmax())
    probabilities = (logits.float() / params.temperature).softmax(-1)
    least = params.min_p * probabilities.max()
    if params.top_k <= 0 and params.top_p >= 1:
        return int(torch.multinomial(probabilities.masked_fill(probabilities < least, 0.0), 1, generator=generator))
    values, indices = _likeliest(probabilities, params)
    if params.top_p < 1:
        # Top-p counts what top-k has left. The likeliest token always stays.
        share = values / (values.sum() if params.top_k > 0 else 1.0)
        values = values.masked_fill((share.cumsum(-1) - share) >= max(params.top_p, 1e-9), 0.0)
    choice = torch.multinomial(values.masked_fill(values < least, 0.0), 1, generator=generator)
    return int(indices[choice])


def _likeliest(probabilities: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Enough of the likeliest tokens, sorted, to apply both filters."""
    size = probabilities.numel()
    if params.top_k > 0:
        return torch.topk(probabilities, min(params.top_k, size))
    # A nucleus is nearly always small, and sorting a whole vocabulary costs 15 ms on a CPU.
    few = torch.topk(probabilities, min(_NUCLEUS, size))
    return few if float(few.values.sum()) >= params.top_p else torch.sort(probabilities, descending=True)


def penalized(logits: torch.Tensor, penalty: float, seen: torch.Tensor) -> torch.Tensor:
    """``logits`` with those of the token ids in ``seen`` made less likely (CTRL, Keskar et al. 2019)."""
    found = logits[seen]
    return logits.index_copy(0, seen, torch.where(found < 0, found * penalty, found / penalty))


def make_generator(params: SamplingParams, device: torch.device) -> torch.Generator | None:
    """A seeded generator for a request that asked for one."""
    if params.seed is None:
        return None
    return torch.Generator(device=device).manual_seed(params.seed)
