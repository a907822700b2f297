"""What computes: forward passes over slots. Knows tensors, no queues.

A runner has some slots and a spare one behind the last. One sequence is in each; what it has read lies there.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmsvc.engine.cache.placed import Piece


@dataclass(frozen=True)
class Costs:
    """Bytes. What a sequence takes in a slot, and whether its beginning can be used for another one."""

    token: int = 1
    sequence: int = 0
    """Whatever its length: the states of its layers."""
    cut: bool = True
    """At any token. Else only where a snapshot was taken, or at its end."""
    snapshot: int = 0
    """What a snapshot takes, whatever its length."""
    snapshot_token: int = 0
    """And for each token before it."""

    def of(self, tokens: int) -> int:
        """What a sequence of so many tokens takes."""
        return self.sequence + tokens * self.token if tokens else 0

    def of_snapshot(self, tokens: int) -> int:
        """What a snapshot behind so many tokens takes."""
        return self.snapshot + tokens * self.snapshot_token


class Runner(ABC):
    """Prefills slots and decodes in them."""

    costs: Costs
    slots: int
    most_tokens = 0
    """How many can be cached in all slots together, whatever their lengths; 0 for as many as there is memory for."""
    guesses = True
    """Whether tokens that turn out to be wrong can be taken back, so that some can be tried."""
    continues = True
    """Whether several tokens can be read at once behind a state; of Mamba 1 the library reads them one by one there."""
    ahead = False
    """Whether the device computes by itself, so that the next step can be launched before the last one's tokens are
    known."""
    moves = False
    """Whether what it holds can be offloaded to the host."""
    compiles = False
    """Whether steps of the model can be compiled for a CPU, since it attends by our kernel."""
    together = True
    """Whether tokens of several slots are computed in one pass."""

    compiled: Mapping[str, Any]
    """What is faster than the model as it is, by kind."""

    @property
    def follows(self) -> bool:
        """Whether the next step can be launched before the tokens of the last are known, as things are."""
        return False

    @abstractmethod
    def prefill(self, slot: int, tokens: Sequence[int], start: int, wanted: int = 1) -> torch.Tensor:
        """Write ``tokens`` at positions ``start``… of ``slot``.

        Returns the logits of the last ``wanted`` of them, shape (wanted, vocabulary); of none there may be any. The
        next pass may take their memory.
        """

    @abstractmethod
    def decode(
        self,
        tokens: dict[int, int],
        lengths: list[int],
        pieces: Sequence[Piece] = (),
        ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write one token in each slot of ``tokens``, and ``pieces`` of prompts in others, where they are ``short``.

        Returns the logits of the decoded tokens in their order, then of the last of each piece, shape (slots and
        pieces, vocabulary). The next pass may take their memory. ``lengths``: tokens already cached, by slot. ``ids``:
        (slots,), what the tokens are where only the device knows.
        """

    def short(self, tokens: int, start: int) -> bool:
        """Whether a piece of prompt can go along with tokens that are decoded."""
        return False

    @abstractmethod
    def copy(self, source: int, slot: int, tokens: int, snapshot: int = 0) -> None:
        """Make the first ``tokens`` of ``slot`` what they are in ``source``; states as they were in a snapshot, or are.

        Where ``costs.cut`` is false and there is no snapshot, these are all tokens of the source.
        """

    @abstractmethod
    def snapshot(self, slot: int, number: int) -> None:
        """Keep a slot's states as they are now, under this number."""

    @abstractmethod
    def forget(self, numbers: Sequence[int]) -> None:
        """Give the memory of snapshots back."""

    @abstractmethod
    def drop(self, slot: int) -> None:
        """Forget one slot and give its memory back."""

    @abstractmethod
    def reset(self) -> None:
        """Forget every slot and every snapshot, and give their memory back."""

    @abstractmethod
    def plain(self) -> None:
        """Take nothing that is compiled or recorded any more."""

    def begin(self) -> None:  # noqa: B027 (most need nothing)
        """Set up what the device needs, before the first pass."""

    def use(self, compiled: Mapping[str, Any]) -> None:  # noqa: B027
        """Take these compiled steps, or record passes, from now on."""

    def at_rest(self) -> list[torch.Tensor]:
        """The tensors that hold the cache, which may be moved to elsewhere and back before the next pass."""
        return []
