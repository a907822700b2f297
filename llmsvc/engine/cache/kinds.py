"""Which kinds of layers a model has, asked of its configuration as transformers' own cache asks it."""

from dataclasses import dataclass
from typing import Any

from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, get_layer_types_and_kwargs

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
STATES = ("linear_attention", "conv")
"""Layers that have a state and no keys."""
BOTH = {"hybrid": FULL, "hybrid_sliding": SLIDING}
"""Layers with a state and with keys, and how these are attended to."""
NONE = "dummy"
"""Layers that keep nothing: they read another layer's keys, or are no attention."""
KNOWN = frozenset((FULL, SLIDING, CHUNKED, NONE, *STATES, *BOTH))
"""Kinds of which many sequences are kept side by side."""


@dataclass(frozen=True)
class Kind:
    """One layer. ``window``: how far it looks back, or the size of its chunks."""

    name: str
    window: int | None = None
    states: int = 0
    """How many convolution states it has, with as many recurrent ones at most."""

    @property
    def attention(self) -> str:
        """Which tokens its keys are attended to by: FULL, SLIDING, CHUNKED, or none."""
        return BOTH.get(self.name, self.name if self.name in (FULL, SLIDING, CHUNKED) else "")


def kinds_of(config: Any) -> tuple[Kind, ...]:
    """The kind of each layer of a text configuration. Raises what the library raises for one it cannot tell."""
    names, details = get_layer_types_and_kwargs(config)
    found = []
    for name, detail in zip(names, details, strict=True):
        if name not in DYNAMIC_LAYER_TYPE_MAPPING:
            raise ValueError(f"layers of the kind {name} are not known")
        states = detail.get("number_of_states", 0) if name in STATES or name in BOTH else 0
        found.append(Kind(name, detail.get("sliding_window"), states))
    return tuple(found)


def kv_shape(config: Any) -> tuple[int, int, int]:
    """Layers, heads of keys and values, and head size of a model whose layers are alike, from its text config."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, size
