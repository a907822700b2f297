"""Where states of layers were kept that cannot be cut: which slot's text has which snapshots. Knows no tensors.

A snapshot is what the tokens before it have left, so each text that begins with them can go on there; vLLM and SGLang
keep such states beside their prefix trees, llama.cpp calls them context checkpoints.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count, pairwise

TAIL = 12
"""Tokens before the end of a prompt at which a snapshot is taken: templates write an earlier answer's beginning in
other words than that of the answer to come, so the next turn often differs in the last few."""
STRIDE, PLACES = 512, 8
"""In a long prompt a snapshot is taken every so many tokens, and at so many places at most."""
LEAST = 64
"""Tokens that another text must have in common for a snapshot of its own."""
MOST = 16
"""Snapshots of one text."""


@dataclass(frozen=True)
class Snapshot:
    """``number`` names it to the runner; ``position``: how many tokens it has behind it."""

    number: int
    position: int


class Snapshots:
    """The snapshots of each slot's text, first to last. Several slots may have one, until none does."""

    def __init__(self, slots: int) -> None:
        self._of: list[list[Snapshot]] = [[] for _ in range(slots)]
        self._numbers = count(1)
        self._known: set[Snapshot] = set()

    def __getitem__(self, slot: int) -> list[Snapshot]:
        return self._of[slot]

    def best(self, slot: int, tokens: int) -> Snapshot | None:
        """The last one within the first ``tokens``."""
        return next((one for one in reversed(self._of[slot]) if one.position <= tokens), None)

    def add(self, slot: int, position: int) -> Snapshot:
        """There is a new one; the text that has too many loses the one that stands closest to its neighbours."""
        new = Snapshot(next(self._numbers), position)
        kept = [one for one in self._of[slot] if one.position < position]
        if len(kept) >= MOST:
            gaps = [b.position - a.position for a, b in pairwise([Snapshot(0, 0), *kept, new])]
            closest = min(range(len(kept)), key=lambda n: gaps[n] + gaps[n + 1])
            del kept[closest]
        self._of[slot] = [*kept, new]
        self._known.add(new)
        return new

    def share(self, source: int, slot: int, tokens: int) -> None:
        """Let ``slot`` have those of ``source``, as far as both texts are the same."""
        self._of[slot] = [one for one in self._of[source] if one.position <= tokens]

    def exchange(self, a: int, b: int) -> None:
        self._of[a], self._of[b] = self._of[b], self._of[a]

    def cut(self, slot: int, tokens: int) -> None:
        """The text has only so many tokens any more."""
        if self._of[slot] and self._of[slot][-1].position > tokens:
            self.share(slot, slot, tokens)

    def clear(self) -> None:
        """All are gone."""
        self._of = [[] for _ in self._of]
        self._known.clear()

    def bytes(self, cost: Callable[[int], int]) -> int:
        """What all of them take; ``cost``: of one behind so many tokens."""
        return sum(cost(one.position) for one in self._held()) if self._known else 0

    def take_gone(self) -> tuple[int, ...]:
        """The numbers of those that no text has any more."""
        if not self._known:
            return ()
        gone = self._known - (held := self._held())
        self._known = held
        return tuple(one.number for one in gone)

    def _held(self) -> set[Snapshot]:
        return {one for found in self._of for one in found}


def places(length: int, computed: int, more: Iterable[int] = ()) -> list[int]:
    """Where to take snapshots of a prompt of ``length`` tokens, ``computed`` of which are there already.

    ``more``: other places, such as where another text goes on differently.
    """
    stride = max(STRIDE, -(-length // PLACES // 64) * 64)
    worth = (place for place in more if place >= computed + LEAST)
    wanted = {length - TAIL, *range(stride, length - TAIL, stride), *worth}
    return sorted(place for place in wanted if computed < place < length)
