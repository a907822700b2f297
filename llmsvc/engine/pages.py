"""A KV cache in pages, for a GPU: a slot takes memory for what it holds, and slots that begin alike share pages.

Pages and their table are those of PagedAttention (Kwon et al. 2023). It is a transformers ``Cache``, so any
decoder-only model of the library writes it unmodified. Two kinds of pass touch it: one reads a piece of one slot's text
and sees its keys gathered in order; the other computes tokens of many slots, and its attention follows the table.
"""

from dataclasses import dataclass
from typing import Any

import torch

from llmsvc.engine.cache.placed import PlacedCache, PlacedLayer
from llmsvc.engine.paged_attention import PAGE, store

SCRATCH = 0
"""The page that what is computed only to fill up a pass writes to."""


class OutOfPages(MemoryError):
    """All pages are taken."""


class PageTable:
    """Which pages hold each slot's positions, in order. Knows numbers, no tensors.

    A page may belong to several slots until one of them writes to it, which gets a copy then.
    """

    def __init__(self, slots: int, pages: int) -> None:
        """``pages``: with the scratch page, which nobody owns."""
        self.pages: list[list[int]] = [[] for _ in range(slots)]
        self.changed: set[int] = set()
        """Slots that hold other pages than before."""
        self._owners = [0] * pages
        self._free = [page for page in reversed(range(pages)) if page != SCRATCH]

    @property
    def free(self) -> int:
        return len(self._free)

    def add(self, pages: int) -> None:
        """There are so many more."""
        self._free = [*reversed(range(len(self._owners), len(self._owners) + pages)), *self._free]
        self._owners += [0] * pages

    def share(self, source: int, slot: int, tokens: int) -> None:
        """Make the first ``tokens`` of ``slot`` those of ``source``."""
        shared = self.pages[source][: pages_of(tokens)]
        for page in shared:
            self._owners[page] += 1
        self.drop(slot)
        self.pages[slot] = shared
        self.changed.add(slot)

    def drop(self, slot: int, tokens: int = 0) -> None:
        """Forget what a slot holds behind its first ``tokens``."""
        kept = pages_of(tokens)
        for page in self.pages[slot][kept:]:
            self._release(page)
        del self.pages[slot][kept:]

    def wanted(self, slot: int, start: int, end: int) -> int:
        """How many free pages ``write`` would take."""
        held = self.pages[slot]
        shared = sum(self._owners[page] > 1 for page in held[start // PAGE : pages_of(end)])
        return max(pages_of(end) - len(held), 0) + shared

    def write(self, slot: int, start: int, end: int) -> list[tuple[int, int]]:
        """Let ``slot`` write the positions [start, end), behind which it holds nothing any more.

        Returns (from, to): pages whose contents have to be copied first. Raises OutOfPages and changes nothing.
        """
        if self.wanted(slot, start, end) > self.free:
            raise OutOfPages("the KV cache is full")
        if pages_of(end) < len(self.pages[slot]):
            self.drop(slot, end)
        held, copies = self.pages[slot], []
        for place in range(start // PAGE, len(held)):
            if self._owners[page := held[place]] > 1:
                held[place] = self._take()
                self._release(page)
                self.changed.add(slot)
                if place * PAGE < start:
                    copies.append((page, held[place]))
        while len(held) < pages_of(end):
            held.append(self._take())
            self.changed.add(slot)
        return copies

    def _take(self) -> int:
        page = self._free.pop()
        self._owners[page] = 1
        return page

    def _release(self, page: int) -> None:
        self._owners[page] -= 1
        if not self._owners[page]:
            self._free.append(page)


def pages_of(tokens: int) -> int:
    """How many pages so many positions lie in."""
    return -(-tokens // PAGE)


@dataclass
class Pass:
    """Which part of the cache one forward pass touches.

    ``pages`` and ``offsets``: (tokens,), where each new token is written. ``read``: the pages of the one slot that is
    read, in order; None when attention follows the table by itself. ``length``: how many positions of it are read.
    """

    pages: torch.Tensor | None = None
    offsets: torch.Tensor | None = None
    read: torch.Tensor | None = None
    length: int = 0


class PagedLayer(PlacedLayer):
    """Keys and values of one layer, each of shape (pages, heads, PAGE, head size)."""

    def __init__(self, cache: "PagedCache") -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # Zeros, not garbage: a masked NaN would still poison the attention's weighted sum.
        self.keys, self.values = (
            like.new_zeros(self._cache.pages, like.shape[1], PAGE, like.shape[3]) for like in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (1, heads, tokens, size); return what may be read: (1, heads, length, size), or all pages."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        now = self._cache.now
        assert now.pages is not None
        assert now.offsets is not None
        store(self.keys, self.values, key_states[0], value_states[0], now.pages, now.offsets)
        if now.read is None:
            return self.keys, self.values
        return self._gathered(self.keys, now.read, now.length), self._gathered(self.values, now.read, now.length)

    @staticmethod
    def _gathered(held: torch.Tensor, pages: torch.Tensor, length: int) -> torch.Tensor:
        return held[pages].transpose(0, 1).flatten(1, 2)[None, :, :length]

    def grow(self, pages: int) -> None:
        self.keys = torch.cat([self.keys, self.keys.new_zeros(pages, *self.keys.shape[1:])])
        self.values = torch.cat([self.values, self.values.new_zeros(pages, *self.values.shape[1:])])

    def copy(self, pages: torch.Tensor, to: torch.Tensor) -> None:
        self.keys[to] = self.keys[pages]
        self.values[to] = self.values[pages]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.now.length, 0


class PagedCache(PlacedCache):
    """Pages of every layer. Set ``now`` before each forward pass."""

    def __init__(self, layers: int, pages: int) -> None:
        self.now, self.pages = Pass(), pages
        super().__init__(layers=[PagedLayer(self) for _ in range(layers)])

    def grow(self, pages: int) -> None:
        """Have so many more."""
        for layer in self.used():
            layer.grow(pages)
        self.pages += pages

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Copy pages: (from, to)."""
        for layer in self.used():
            layer.copy(*torch.tensor(pairs, device=layer.keys.device).unbind(1))
