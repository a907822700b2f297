"""A KV cache of fixed slots, one sequence in each, at different positions.

It is a transformers ``Cache``, so any decoder-only model of the library writes and reads it unmodified.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

GROWTH = 256  # tokens; capacity grows in such steps up to the window


@dataclass
class Step:
    """Which part of the cache one forward pass touches.

    ``first``/``last``: slots [first, last); ``positions``: (last - first, new tokens), where each new
    token is written; ``length``: how many positions of each slot the pass may read.
    """

    first: int = 0
    last: int = 0
    positions: torch.Tensor | None = None
    length: int = 0


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, each of shape (slots, heads, capacity, head size)."""

    is_compileable = False
    is_sliding = False

    def __init__(self, slots: int, step: Step) -> None:
        super().__init__()
        self._slots, self._step = slots, step

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys = self._empty(key_states)
        self.values = self._empty(value_states)
        self.is_initialized = True

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros, not garbage: a masked NaN would still poison the attention's weighted sum.
        return like.new_zeros(self._slots, like.shape[1], GROWTH, like.shape[3])

    def _grow(self, length: int) -> None:
        missing = -(-(length - self.keys.shape[2]) // GROWTH) * GROWTH
        if missing > 0:
            self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, missing))
            self.values = torch.nn.functional.pad(self.values, (0, 0, 0, missing))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (rows, heads, new, size) at each row's positions; return views of all that may be read."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        step = self._step
        assert step.positions is not None
        self._grow(step.length)
        rows = torch.arange(step.first, step.last, device=key_states.device)[:, None]
        self.keys[rows, :, step.positions] = key_states.transpose(1, 2)
        self.values[rows, :, step.positions] = value_states.transpose(1, 2)
        part = slice(step.first, step.last)
        return self.keys[part, :, : step.length], self.values[part, :, : step.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._step.length, 0

    def get_seq_length(self) -> int:
        return 0  # positions are always given by the runner

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """``slots`` sequences in every layer. Set ``step`` before each forward pass."""

    def __init__(self, layers: int, slots: int) -> None:
        self.step = Step()
        super().__init__(layers=[SlotLayer(slots, self.step) for _ in range(layers)])

    def copy(self, source: int, slot: int, tokens: int) -> None:
        """Copy the keys and values of the first ``tokens`` positions from one slot to another."""
        for layer in self.layers:
            if not layer.is_initialized:  # it looks into another layer's
                continue
            layer.keys[slot, :, :tokens] = layer.keys[source, :, :tokens]
            layer.values[slot, :, :tokens] = layer.values[source, :, :tokens]
