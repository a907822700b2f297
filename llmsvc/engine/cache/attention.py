"""Keys and values of one layer, for fixed slots with one sequence in each."""

from math import prod
from typing import Any

import torch

from llmsvc.engine.cache.memory import by_the_page, give_back
from llmsvc.engine.cache.placed import PlacedLayer, Step

GROWTH = 256  # tokens; where memory is not given by the page, capacity grows in such steps


class SlotLayer(PlacedLayer):
    """Keys and values, each of shape (slots, heads, capacity, head size), in ``dtype`` or as they come.

    On a CPU the capacity is the whole window, in memory that the system gives page by page as it is written to.
    """

    def __init__(self, slots: int, window: int, step: Step, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self._slots, self._window, self._step, self._dtype = slots, window, step, dtype
        self.asked = False
        """Whether the model has asked how much there is already, which is not the same for all rows of a pass."""

    @classmethod
    def over(cls, step: Step, keys: torch.Tensor, values: torch.Tensor) -> "SlotLayer":
        """A layer over memory that is there already."""
        layer = cls(keys.shape[0], keys.shape[2], step)
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        return layer

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = self._empty(key_states), self._empty(value_states)
        self.is_initialized = True

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros, not garbage: a masked NaN would still poison the attention's weighted sum.
        heads, size, dtype = like.shape[1], like.shape[3], self._dtype or like.dtype
        if like.device.type != "cpu":
            return like.new_zeros(self._slots, heads, GROWTH, size, dtype=dtype)
        return by_the_page((self._slots, heads, self._window, size), dtype)

    def _grow(self, length: int) -> None:
        missing = -(-(length - self.keys.shape[2]) // GROWTH) * GROWTH
        if missing > 0:
            self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, missing))
            self.values = torch.nn.functional.pad(self.values, (0, 0, 0, missing))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (rows, heads, new, size) where the step says; return views of all that may be read."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        step = self._step
        assert step.positions is not None
        self._grow(step.capacity)
        self.keys[step.slots, :, step.positions] = self._fitting(key_states.transpose(1, 2))
        self.values[step.slots, :, step.positions] = self._fitting(value_states.transpose(1, 2))
        part = slice(step.first, step.last)
        return self.keys[part, :, : step.length], self.values[part, :, : step.length]

    def _fitting(self, states: torch.Tensor) -> torch.Tensor:
        if self.keys.dtype == states.dtype:
            return states
        most = torch.finfo(self.keys.dtype).max
        return states.clamp(-most, most).to(self.keys.dtype)  # not to infinity

    def token_bytes(self) -> int:
        """What a token takes."""
        return sum(prod(held.shape[1::2]) * held.element_size() for held in (self.keys, self.values))

    def copy(self, source: int, slot: int, tokens: int) -> None:
        """Make the first ``tokens`` of ``slot`` what they are in ``source``."""
        for held in (self.keys, self.values):
            held[slot, :, :tokens] = held[source, :, :tokens]

    def drop(self, slot: int) -> None:
        """Give a slot's memory back to the system, where it is held by the page."""
        give_back(self.keys, slot)
        give_back(self.values, slot)

    def get_seq_length(self) -> int:
        self.asked = True
        return self._step.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._step.length, 0
