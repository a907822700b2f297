"""What one token and one sequence take in a model's cache: a pass over a single token tells."""

import inspect
from typing import Any

import torch

from llmsvc.engine.cache.kinds import Kind
from llmsvc.engine.cache.masks import Masks
from llmsvc.engine.cache.slots import SlotCache


def cache_argument(model: Any) -> str:
    """The name of the argument by which a model takes its cache."""
    names = inspect.signature(model.forward).parameters
    return next((name for name in ("past_key_values", "cache_params") if name in names), "past_key_values")


@torch.inference_mode()
def pass_over_one(model: Any, kinds: tuple[Kind, ...], dtype: torch.dtype | None) -> tuple[SlotCache, Any]:
    """The cache behind a pass over one token, and the mask with which it was made. Raises what the model raises."""
    first = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    cache = SlotCache(kinds, 1, 1, dtype)
    cache.aim(0, 1, first, 1, 1, begins=True)
    mask = Masks(model, kinds).allowing(first[:, None, :, None], 1, 0)
    model(
        input_ids=first,
        attention_mask=mask,
        position_ids=first,
        use_cache=True,
        logits_to_keep=1,
        **{cache_argument(model): cache},
    )
    cache.commit()
    return cache, mask
