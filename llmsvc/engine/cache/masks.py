"""Where tokens may look, as a model's attention takes it."""

from collections.abc import Callable
from typing import Any

import torch

from llmsvc.engine.cache.kinds import CHUNKED, SLIDING, STATES, Kind
from llmsvc.engine.chunk_attention import mark

Make = Callable[[str, int | None], torch.Tensor]


class Masks:
    """Masks of one model: a tensor where all of its layers look alike, else one by the kind of layer."""

    def __init__(self, model: Any, kinds: tuple[Kind, ...]) -> None:
        self._kinds = {kind.name: kind for kind in kinds if kind.attention}
        self._patterns = {(kind.attention, kind.window) for kind in self._kinds.values()}
        # transformers' own attention, unlike torch's, adds the mask to the scores.
        config = model.config.get_text_config()
        self._added = model.dtype if config._attn_implementation == "eager" else None

    def by_kind(self, make: Make) -> Any:
        """``make`` takes FULL, SLIDING or CHUNKED, and the window or the size of chunks."""
        if not self._patterns:  # nothing is padded, so states need none
            return None
        masks = {pattern: make(*pattern) for pattern in self._patterns}
        if len(masks) == 1:
            return next(iter(masks.values()))
        named: dict[str, Any] = dict.fromkeys(STATES)
        return named | {name: masks[kind.attention, kind.window] for name, kind in self._kinds.items()}

    def allowing(self, query: torch.Tensor, length: int, last: int) -> Any:
        """Where tokens at the positions ``query``, of shape (..., new, 1), may look: (..., new, length).

        ``last``: the furthest of these positions.
        """
        keys = torch.arange(length, device=query.device)

        def make(kind: str, window: int | None) -> torch.Tensor:
            allowed = keys <= query
            window = window or 0
            if kind == SLIDING:
                allowed = allowed & (keys > query - window)
            elif kind == CHUNKED:
                allowed = allowed & (keys // window == query // window)
            if self._added is None:
                if not window or last < window:
                    mark(allowed, query.view(-1, query.shape[-2]))
                return allowed
            lowest = torch.finfo(self._added).min
            return torch.zeros_like(allowed, dtype=self._added).masked_fill(~allowed, lowest)

        return self.by_kind(make)
