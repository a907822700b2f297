"""In which type keys and values are kept."""

from typing import Any

import torch

from llmsvc.engine.cache.kinds import FULL, kinds_of
from llmsvc.engine.cache.probe import pass_over_one
from llmsvc.engine.chunk_attention import NAME, attend_by_chunks, fits_kernel
from llmsvc.engine.compute import compute_if_idle

_KEPT = "_keys_and_values_kept_in"


def kept_in(model: Any) -> torch.dtype:
    """What slots keep a model's keys and values in: 16 bits, as llama.cpp does, where our kernel reads all of them."""
    found: torch.dtype | None = model.__dict__.get(_KEPT)
    if found is None:
        found = model.dtype
        plain = model.device.type == "cpu" and found == torch.float32 and _is_plain(model)
        if plain and compute_if_idle(_all_by_kernel, model):
            found = torch.float16
        setattr(model, _KEPT, found)
    return found


def _is_plain(model: Any) -> bool:
    config = model.config.get_text_config()
    if config._attn_implementation not in ("sdpa", NAME):
        return False
    return {kind.name for kind in kinds_of(config)} == {FULL}


def _all_by_kernel(model: Any) -> bool:
    """Whether a token is attended to by the kernel in all layers, of 16 bits.

    Some models attend by themselves, or keep what they make keys of.
    """
    attend_by_chunks(model)
    try:
        cache, mask = pass_over_one(model, kinds_of(model.config.get_text_config()), torch.float16)
    except Exception:
        return False
    layers = cache.used()
    fits = all(fits_kernel(layer.keys.shape[3], torch.float16) for layer in layers)
    return fits and bool(layers) and getattr(mask, "reads", 0) >= len(layers)
