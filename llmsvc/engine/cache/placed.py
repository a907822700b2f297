"""Caches that are told where each token is written, whoever's it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

Piece = tuple[int, Sequence[int], int]
"""A slot, tokens, and the position of the first of them."""


@dataclass
class Step:
    """Which part of the cache one forward pass touches.

    ``first``/``last``: slots [first, last) are read; ``slots`` and ``positions``: where each new token is written, each
    (rows, new tokens) or wide enough by itself; ``length``: how many positions of each slot the pass may read;
    ``capacity``: and write. ``kept``: which of the rows are asked for, where not all are.
    """

    first: int = 0
    last: int = 0
    slots: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    length: int = 0
    capacity: int = 0
    start: int = 0
    """How many tokens were there before, in a pass over one slot."""
    begins: bool = False
    """Whether the new tokens are the first of their slot."""
    kept: torch.Tensor | None = None


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
