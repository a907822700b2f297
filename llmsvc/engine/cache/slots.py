"""A cache of fixed slots, one sequence in each, at different positions."""

from typing import Any

import torch
from transformers.cache_utils import DummyLayer

from llmsvc.engine.cache.attention import SlotLayer
from llmsvc.engine.cache.kinds import BOTH, NONE, STATES, Kind
from llmsvc.engine.cache.placed import PlacedCache, Step
from llmsvc.engine.cache.state import Snapshot, StateAndAttentionLayer, StateLayer


class SlotCache(PlacedCache):
    """``slots`` sequences of up to ``window`` tokens in every layer.

    ``aim`` it before each forward pass, ``commit`` what the pass has left.
    """

    def __init__(self, kinds: tuple[Kind, ...], slots: int, window: int, dtype: torch.dtype | None = None) -> None:
        self.step = Step()

        def layer(kind: Kind) -> Any:
            if kind.name in STATES:
                return StateLayer(slots, self.step, kind.states)
            if kind.name in BOTH:
                return StateAndAttentionLayer(slots, window, self.step, kind.states, dtype)
            return DummyLayer() if kind.name == NONE else SlotLayer(slots, window, self.step, dtype)

        super().__init__(layers=[layer(kind) for kind in kinds])
        self._stateful = [layer for layer in self.layers if isinstance(layer, StateLayer)]

    def used(self) -> list[Any]:
        """The layers that hold anything: some models let several look into one."""
        known = (layer for layer in self.layers if not isinstance(layer, DummyLayer))
        return [layer for layer in known if layer.is_initialized]

    def aim(
        self,
        first: int,
        last: int,
        positions: torch.Tensor,
        length: int,
        capacity: int,
        *,
        start: int = 0,
        begins: bool = False,
        kept: list[int] | None = None,
    ) -> None:
        """Let the next pass be over the slots [first, last), whose new tokens are written at ``positions``.

        ``start``: behind so many, of one slot; ``begins``: they are its first ones. ``kept``: the numbers of the rows
        that are asked for, if not all.
        """
        step = self.step
        step.first, step.last, step.positions, step.length, step.capacity = first, last, positions, length, capacity
        step.start = start
        step.slots = torch.arange(first, last, device=positions.device)[:, None]
        if self._stateful:
            step.begins = begins
            step.kept = None if kept is None else torch.tensor(kept, device=positions.device)
            for layer in self._stateful:
                layer.aim()

    def commit(self) -> None:
        """Keep the states that a pass has left. Without it, a pass that failed has changed none or all of them."""
        for layer in self._stateful:
            layer.commit()

    def copy(self, source: int, slot: int, tokens: int, snapshot: list[Snapshot] | None = None) -> None:
        """Make the first ``tokens`` of ``slot`` what they are in ``source``; its states as they are now, or were."""
        if source != slot:
            for layer in self.used():
                layer.copy(source, slot, tokens)
        for layer, state in zip(self._stateful, snapshot or (), strict=False):
            layer.restore(slot, state)

    def snapshot(self, slot: int) -> list[Snapshot]:
        """The states of a slot as they are now."""
        return [layer.snapshot(slot) for layer in self._stateful]

    def tensors(self) -> list[torch.Tensor]:
        """All that hold anything."""
        states = [state for layer in self._stateful for state in layer.tensors()]
        return [*(tensor for pair in self.all() for tensor in pair), *states]

    def drop(self, slot: int) -> None:
        """Give a slot's memory back."""
        for layer in self.used():
            layer.drop(slot)

    def all(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values of all slots, by layer, each (slots, heads, capacity, head size)."""
        layers = [layer for layer in self.used() if isinstance(layer, SlotLayer)]
        return [layer.keys for layer in layers], [layer.values for layer in layers]

    @property
    def asked(self) -> bool:
        """Whether what a layer computes hangs on how much was there; all models may ask it of the first one."""
        layers = [layer for layer in self.used() if isinstance(layer, SlotLayer)]
        return any(layer.asked for layer in layers[1:])

    def token_bytes(self) -> int:
        """What a token takes, once a pass was made."""
        return sum(layer.token_bytes() for layer in self.used())

    def state_bytes(self) -> int:
        """What a sequence takes besides, however long it is."""
        return sum(layer.state_bytes() for layer in self._stateful)
