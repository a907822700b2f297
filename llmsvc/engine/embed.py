"""A text as a vector: the mean of the model's last hidden states, of length 1.

As sentence-transformers pools where a model says nothing else (https://www.sbert.net).
"""

from collections.abc import Sequence
from typing import Any

import torch

from llmsvc.engine.cache.kinds import CHUNKED, FULL, NONE, SLIDING, kinds_of
from llmsvc.engine.compute import compute

CHUNK = 128
"""Tokens computed at a time: answers take their turn between two of them."""


def embed(model: Any, tokens: Sequence[int]) -> list[float]:
    """The vector of one text, shape (hidden size,). Call on a worker thread."""
    from transformers import DynamicCache

    pieces = _has_keys_alone(model)  # not every model goes on with a state behind several tokens
    cache = DynamicCache(config=model.config.get_text_config()) if pieces else None
    size, total = CHUNK if pieces else len(tokens), torch.zeros(())
    for start in range(0, len(tokens), size):
        part = tokens[start : start + size]
        if model.device.type == "cpu":
            total = compute(_sum, model, part, cache) + total
        else:
            total = _sum(model, part, cache) + total.to(model.device)
    vector: list[float] = torch.nn.functional.normalize(total, dim=0).tolist()
    return vector


def _has_keys_alone(model: Any) -> bool:
    """Whether all layers keep keys and values, or nothing."""
    try:
        kinds = kinds_of(model.config.get_text_config())
    except Exception:
        return False
    return {kind.name for kind in kinds} <= {FULL, SLIDING, CHUNKED, NONE}


@torch.inference_mode()
def _sum(model: Any, tokens: Sequence[int], cache: Any) -> torch.Tensor:
    """The sum of the states behind ``tokens``, which follow what is in ``cache``."""
    ids = torch.tensor([list(tokens)], device=model.device)
    kept = {} if cache is None else {"past_key_values": cache, "use_cache": True}
    states = model.base_model(input_ids=ids, **kept).last_hidden_state
    total: torch.Tensor = states[0].float().sum(0)
    return total
