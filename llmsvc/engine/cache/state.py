"""States of one layer (linear attention, Mamba 1 and 2, short convolutions), for fixed slots.

A state is what all tokens before have left; it cannot be cut at an earlier one, but it can be kept: see ``snapshot``.
"""

from typing import Any

import torch
from transformers.cache_utils import LinearAttentionLayer

from llmsvc.engine.cache.attention import SlotLayer
from llmsvc.engine.cache.memory import by_the_page, give_back
from llmsvc.engine.cache.placed import Step

Snapshot = dict[tuple[str, int], torch.Tensor]
"""By "conv" or "recurrent" and the state's number: what one slot held."""


class StateLayer(LinearAttentionLayer):
    """States of all slots. While a pass runs, the library's own layer stands over the rows of that pass.

    It is changed in place, which the library promises (``LinearAttentionLayer.update_recurrent_state``), so rows that
    lie beside each other are views of the slots. Where rows lie between that are not asked for, all are copied, and
    only what is asked for is written back.
    """

    is_sliding = is_compileable = False

    def __init__(self, slots: int, step: Step, states: int) -> None:
        super().__init__(number_of_states=states)
        self._slots, self._step = slots, step
        self._held: Snapshot = {}

    @property
    def is_initialized(self) -> bool:
        return bool(self._held)

    def aim(self) -> None:
        """Stand over the rows that the step names."""
        step, numbers = self._step, range(self.number_of_states)
        self.has_previous_state = dict.fromkeys(numbers, not step.begins)
        for (kind, number), held in self._held.items():
            part = held[step.first : step.last]
            if step.begins:
                part.zero_()
            self._states(kind)[number] = part if step.kept is None else part.clone()

    def commit(self) -> None:
        """Take what the pass has left."""
        step = self._step
        for kind in ("conv", "recurrent"):
            for number, state in self._states(kind).items():
                if state is None:
                    continue
                held = self._held.get((kind, number))
                if held is None:
                    held = self._held[kind, number] = self._empty(state)
                rows = held[step.first : step.last]
                if step.kept is not None:
                    rows[step.kept] = state[step.kept].to(held.dtype)
                elif rows.data_ptr() != state.data_ptr():
                    rows.copy_(state)

    def _states(self, kind: str) -> dict[int, Any]:
        states: dict[int, Any] = self.conv_states if kind == "conv" else self.recurrent_states
        return states

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        shape = (self._slots, *like.shape[1:])
        if like.device.type != "cpu":
            return like.new_zeros(shape)
        return by_the_page(shape, like.dtype)

    def token_bytes(self) -> int:
        """What a token takes."""
        return 0

    def state_bytes(self) -> int:
        """What a sequence takes, however long it is."""
        return sum(held[0].numel() * held.element_size() for held in self._held.values())

    def tensors(self) -> list[torch.Tensor]:
        return list(self._held.values())

    def copy(self, source: int, slot: int, tokens: int) -> None:
        """Make the state of ``slot`` that of ``source``."""
        for held in self._held.values():
            held[slot] = held[source]

    def snapshot(self, slot: int) -> Snapshot:
        """A copy of what a slot holds."""
        return {key: held[slot].clone() for key, held in self._held.items()}

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Make what a slot holds what it was."""
        for key, held in self._held.items():
            held[slot] = snapshot[key]

    def drop(self, slot: int) -> None:
        """Forget a slot."""
        for held in self._held.values():
            give_back(held, slot)


class StateAndAttentionLayer(StateLayer, SlotLayer):
    """A layer that has both."""

    def __init__(self, slots: int, window: int, step: Step, states: int, dtype: torch.dtype | None = None) -> None:
        SlotLayer.__init__(self, slots, window, step, dtype)
        StateLayer.__init__(self, slots, step, states)
        self._written = False

    @property
    def is_initialized(self) -> bool:
        return self._written

    @is_initialized.setter
    def is_initialized(self, written: bool) -> None:
        self._written = written

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Of keys and values where two are given, of a state where it is named."""
        (SlotLayer if len(args) == 2 else StateLayer).lazy_initialization(self, *args, **kwargs)

    def token_bytes(self) -> int:
        return SlotLayer.token_bytes(self)

    def tensors(self) -> list[torch.Tensor]:
        return list(self._held.values())

    def copy(self, source: int, slot: int, tokens: int) -> None:
        StateLayer.copy(self, source, slot, tokens)
        SlotLayer.copy(self, source, slot, tokens)

    def drop(self, slot: int) -> None:
        StateLayer.drop(self, slot)
        SlotLayer.drop(self, slot)
