"""A KV cache of fixed slots, one sequence in each, at different positions.

It is a transformers ``Cache``, so any decoder-only model of the library writes and reads it unmodified.
"""

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from llmsvc.engine.chunk_attention import NAME, attend_by_chunks, fits_kernel, mark
from llmsvc.engine.compute import compute_if_idle

Piece = tuple[int, Sequence[int], int]
"""A slot, tokens, and the position of the first of them."""
GROWTH = 256  # tokens; where memory is not given by the page, capacity grows in such steps


def kv_shape(config: Any) -> tuple[int, int, int]:
    """Layers, heads of keys and values, and head size of a model, from its text config."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, size


def sliding_window(config: Any) -> int | None:
    """How far back some of a model's layers look, from its text config; None where all look at everything."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)


class Masks:
    """Boolean masks as a model's attention takes them."""

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self._kinds, self._window = list(getattr(config, "layer_types", None) or ()), sliding_window(config)
        # transformers' own attention, unlike torch's, adds the mask to the scores.
        self._added = model.dtype if config._attn_implementation == "eager" else None

    def by_kind(self, mask: Callable[[int | None], torch.Tensor]) -> Any:
        """``mask`` makes one for a window or, with None, for all that is before; some models take several."""
        if self._window is None:
            return mask(None)
        if len(set(self._kinds)) > 1:  # such models take a mask for each kind of layer
            return {"full_attention": mask(None), "sliding_attention": mask(self._window)}
        return mask(None if self._kinds and self._kinds[0] == "full_attention" else self._window)

    def allowing(self, query: torch.Tensor, length: int, last: int) -> Any:
        """Where tokens at the positions ``query``, of shape (..., new, 1), may look: (..., new, length).

        ``last``: the furthest of these positions.
        """
        keys = torch.arange(length, device=query.device)

        def mask(window: int | None) -> torch.Tensor:
            allowed = keys <= query
            if window is not None:
                allowed = allowed & (keys > query - window)
            if self._added is None:
                if window is None or last < window:
                    mark(allowed, query.view(-1, query.shape[-2]))
                return allowed
            lowest = torch.finfo(self._added).min
            return torch.zeros_like(allowed, dtype=self._added).masked_fill(~allowed, lowest)

        return self.by_kind(mask)


@dataclass
class Step:
    """Which part of the cache one forward pass touches.

    ``first``/``last``: slots [first, last) are read; ``slots`` and ``positions``: where each new token is written, each
    (rows, new tokens) or wide enough by itself; ``length``: how many positions of each slot the pass may read;
    ``capacity``: and write.
    """

    first: int = 0
    last: int = 0
    slots: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    length: int = 0
    capacity: int = 0


class PlacedLayer(CacheLayerMixin):
    """A layer that is told where each token is written."""

    is_compileable = False
    is_sliding = False

    def get_seq_length(self) -> int:
        return 0  # positions are always given by the runner

    def get_max_length(self) -> int:
        return -1


class PlacedCache(Cache):
    """Of such layers."""

    def used(self) -> list[Any]:
        """The layers that hold anything: some models let several look into one."""
        return [layer for layer in self.layers if layer.is_initialized]


class SlotLayer(PlacedLayer):
    """Keys and values of one layer, each of shape (slots, heads, capacity, head size), in ``dtype`` or as they come.

    On a CPU the capacity is the whole window, in memory that the system gives page by page as it is written to.
    """

    def __init__(self, slots: int, window: int, step: Step, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self._slots, self._window, self._step, self._dtype = slots, window, step, dtype
        self._pages: list[mmap.mmap] = []

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
        shape = (self._slots, heads, self._window, size)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        pages = mmap.mmap(-1, prod(shape) * dtype.itemsize, flags=flags)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # or a short text would take two megabytes in each head
            pages.madvise(mmap.MADV_NOHUGEPAGE)
        self._pages.append(pages)
        return torch.frombuffer(pages, dtype=dtype).view(shape)

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

    def copy(self, source: int, slot: int, tokens: int) -> None:
        for held in (self.keys, self.values):
            held[slot, :, :tokens] = held[source, :, :tokens]

    def drop(self, slot: int) -> None:
        """Give a slot's memory back to the system, where it is held by the page."""
        for pages in self._pages:
            size = len(pages) // self._slots
            start = -(-slot * size // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (slot + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE
            if end > start:
                pages.madvise(mmap.MADV_DONTNEED, start, end - start)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._step.length, 0


class SlotCache(PlacedCache):
    """``slots`` sequences of up to ``window`` tokens in every layer. ``aim`` it before each forward pass."""

    def __init__(self, layers: int, slots: int, window: int, dtype: torch.dtype | None = None) -> None:
        self.step = Step()
        super().__init__(layers=[SlotLayer(slots, window, self.step, dtype) for _ in range(layers)])

    def aim(self, first: int, last: int, positions: torch.Tensor, length: int, capacity: int) -> None:
        """Let the next pass be over the slots [first, last), whose new tokens are written at ``positions``."""
        step = self.step
        step.first, step.last, step.positions, step.length, step.capacity = first, last, positions, length, capacity
        step.slots = torch.arange(first, last, device=positions.device)[:, None]

    def copy(self, source: int, slot: int, tokens: int) -> None:
        """Copy the keys and values of the first ``tokens`` positions from one slot to another."""
        for layer in self.used():
            layer.copy(source, slot, tokens)

    def drop(self, slot: int) -> None:
        """Give a slot's memory back."""
        for layer in self.used():
            layer.drop(slot)

    def all(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values of all slots, by layer, each (slots, heads, capacity, head size)."""
        layers = self.used()
        return [layer.keys for layer in layers], [layer.values for layer in layers]


_KEPT = "_keys_and_values_kept_in"


def kept_in(model: Any) -> torch.dtype:
    """What slots keep a model's keys and values in: 16 bits, as llama.cpp does, where our kernel reads all of them."""
    if (found := model.__dict__.get(_KEPT)) is None:
        config, found = model.config.get_text_config(), model.dtype
        plain = config._attn_implementation in ("sdpa", NAME) and not sliding_window(config)
        if model.device.type == "cpu" and found == torch.float32 and plain:
            _, _, size = kv_shape(config)
            if fits_kernel(size, torch.float16) and compute_if_idle(_all_by_kernel, model):
                found = torch.float16
        setattr(model, _KEPT, found)
    return found  # type: ignore[no-any-return]


@torch.inference_mode()
def _all_by_kernel(model: Any) -> bool:
    """Whether a token is attended to by the kernel in all layers, of 16 bits.

    Some models attend by themselves, or keep what they make keys of.
    """
    attend_by_chunks(model)
    first = torch.zeros(1, 1, dtype=torch.long)
    cache = SlotCache(model.config.get_text_config().num_hidden_layers, 1, 1, torch.float16)
    cache.aim(0, 1, first, 1, 1)
    mask = Masks(model).allowing(first[:, None, :, None], 1, 0)
    try:
        model(
            input_ids=first,
            attention_mask=mask,
            position_ids=first,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    except Exception:
        return False
    return bool(cache.used()) and getattr(mask, "reads", 0) >= len(cache.used())
