"""Decides what the next step computes. Knows sequences and queues, no tensors.

Continuous batching (Orca, Yu et al. 2022): rows join and leave between steps. A step decodes every
running row and prefills a few tokens of prompts (Sarathi-Serve, Agrawal et al. 2024), so a long prompt
never stalls the answers that are already streaming.
"""

import sys
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

from llmsvc.engine.request import GenerationRequest
from llmsvc.engine.runner import Costs
from llmsvc.engine.snapshots import Snapshots, places

SHARED_CHUNK = 64
"""Tokens of a long prompt in a step in which others decode: they wait for them."""


PENDING = -1
"""Stands for a token that is being computed."""


class QueueFull(Exception):
    """The waiting queue is at its bound."""


@dataclass
class Sequence:
    """One request's progress. ``tokens`` are prompt and answer; ``computed`` of them are in the KV cache."""

    request: GenerationRequest
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    cached: int = 0
    slot: int = -1
    cancelled: bool = False
    snapshots_at: list[int] = field(default_factory=list)
    """Where in its prompt snapshots are to be taken."""

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def left(self) -> int:
        """Tokens that are not in the KV cache."""
        return len(self.tokens) - self.computed

    @property
    def prefilling(self) -> bool:
        return self.computed < len(self.tokens) - 1 or self.generated == 0


@dataclass(frozen=True)
class Chunk:
    """The tokens [start, end) of a sequence."""

    sequence: Sequence
    start: int
    end: int

    @property
    def kept(self) -> bool:
        """Whether a snapshot is to be taken behind it."""
        return self.end in self.sequence.snapshots_at

    @property
    def last(self) -> bool:
        """Whether the prompt is read with it."""
        return self.end == len(self.sequence.tokens)


class Copy(NamedTuple):
    """Of what is cached: the first ``tokens`` of ``source`` to ``slot``, with the states of ``snapshot``, if not 0.

    The slot behind the last is spare, for texts that change places.
    """

    source: int
    slot: int
    tokens: int
    snapshot: int = 0


@dataclass(frozen=True)
class Plan:
    """One step: the sequences to decode, then the chunks to prefill, of one sequence each.

    First, and in this order, ``copies``; then ``forgotten``: the numbers of snapshots that nobody needs any more, and
    ``dropped``: slots whose memory can go.
    """

    copies: tuple[Copy, ...] = ()
    forgotten: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    decode: tuple[Sequence, ...] = ()
    prefill: tuple[Chunk, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.prefill or self.decode)


class Scheduler:
    """Slots, a bounded queue, and what each free slot still has cached.

    Sequences that run stand in the first slots, so that a step over all of them is a step over few rows.
    """

    def __init__(
        self,
        slots: int,
        chunk: int,
        max_waiting: int,
        budget: int,
        shared_chunk: int = SHARED_CHUNK,
        costs: Costs = Costs(),  # noqa: B008 (it is frozen)
    ) -> None:
        """``budget``: what may be cached in all slots together, by ``costs``; one sequence has to fit into it.

        ``chunk``: tokens of prompts in a step; of a long one, while others decode, ``shared_chunk`` at most.
        """
        self._costs, self._snapshots = costs, Snapshots(slots)
        self.chunk, self._shared_chunk, self._max_waiting, self._budget = chunk, shared_chunk, max_waiting, budget
        self._ceiling = sys.maxsize
        """What ``limit`` admits at most: memory ran out above it."""
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}
        self.cached: list[list[int]] = [[] for _ in range(slots)]
        """Tokens whose keys and values each slot holds, whether its sequence runs or has ended."""
        self._used = [0] * slots
        self._clock = 0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def cancelling(self) -> bool:
        """Whether ``take_cancelled`` has any to hand out."""
        return any(sequence.cancelled for sequence in (*self._waiting, *self._running.values()))

    @property
    def decoding(self) -> list[Sequence]:
        """What runs and has been read."""
        return [sequence for sequence in self._running.values() if not sequence.prefilling]

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Raises QueueFull."""
        if len(self._waiting) >= self._max_waiting:
            raise QueueFull
        self._waiting.append(Sequence(request, list(request.prompt)))

    def cancel(self, request_id: str) -> None:
        """Mark a request; ``take_cancelled`` hands it out before the next step. Unknown ids are ignored."""
        for sequence in (*self._waiting, *self._running.values()):
            if sequence.request.id == request_id:
                sequence.cancelled = True

    def take_cancelled(self) -> list[Sequence]:
        """Remove and return every cancelled sequence."""
        gone = [s for s in (*self._waiting, *self._running.values()) if s.cancelled]
        for sequence in gone:
            self.finish(sequence)
        return gone

    def drain(self) -> list[Sequence]:
        """Remove and return everything, for shutdown."""
        everything = [*self._waiting, *self._running.values()]
        for sequence in everything:
            self.finish(sequence)
        return everything

    def finish(self, sequence: Sequence) -> None:
        """Release a sequence's slot (its cache stays for a follow-up turn) or its place in the queue."""
        if sequence.slot >= 0:
            del self._running[sequence.slot]
        else:
            self._waiting.remove(sequence)

    def forget(self) -> None:
        """The cache was lost: what runs is computed again, from its first token."""
        for cached in self.cached:
            cached.clear()
        self._snapshots.clear()
        for sequence in self._running.values():
            sequence.computed = 0

    def restart(self, sequence: Sequence) -> None:
        """What is cached of a sequence is not to be relied on: all of it is computed again."""
        self.cached[sequence.slot].clear()
        sequence.computed = 0

    @property
    def held(self) -> int:
        """What is cached, with snapshots."""
        return sum(self._costs.of(len(cached)) for cached in self.cached) + self._snapshots.bytes(
            self._costs.of_snapshot
        )

    def limit(self, budget: int) -> None:
        """From the next step on, cache no more than ``budget``, nor less than what runs has."""
        self._budget = min(max(budget, self._needed() + self._costs.of(self.chunk)), self._ceiling)

    def _needed(self) -> int:
        """What the tokens of all that runs take."""
        return sum(self._costs.of(len(sequence.tokens)) for sequence in self._running.values())

    def shrink(self) -> bool:
        """After memory ran out: be content with half of what is cached now. False when one sequence has all of it."""
        alone = self.running < 2 and not any(c for slot, c in enumerate(self.cached) if slot not in self._running)
        if alone and not any(self._snapshots[slot] for slot in self._running):
            return False
        self._budget = self._ceiling = max(self.held // 2, 1)
        return True

    def plan(self) -> Plan:
        """Admit what fits, then say what the next step computes."""
        if not self._costs.cut:
            for slot, cached in enumerate(self.cached):
                self._snapshots.cut(slot, len(cached))
        copies = self._close_gaps()
        while self._waiting and len(self._running) < len(self.cached):
            sequence = self._next()
            running = self._needed()
            if running and running + self._costs.of(len(sequence.tokens) + self.chunk) > self._budget:
                break
            self._waiting.remove(sequence)
            copies += self._admit(sequence)
        dropped = self._make_room()
        return Plan(tuple(copies), self._snapshots.take_gone(), dropped, tuple(self.decoding), self._chunks())

    def _chunks(self) -> tuple[Chunk, ...]:
        """What is prefilled in the next step.

        A few rows take nearly as long to decode as many: prompts that can be finished are, the shortest first, and more
        rows join. A longer one gives way when others decode. The oldest always gets a share, so it comes to its end.
        """
        chunks: list[Chunk] = []
        share = max(1, min(self._shared_chunk, self.chunk // 4))
        prefilling = sorted((s for s in self._running.values() if s.prefilling), key=lambda s: s.left)
        shared = len(prefilling) < len(self._running)
        room = min(self.chunk, 4 * share) if shared else self.chunk
        oldest = min(prefilling, key=lambda s: self._used[s.slot], default=None)
        for sequence in prefilling:
            kept = min(oldest.left, share) if oldest is not None and sequence is not oldest else 0
            size = min(sequence.left, room - kept)
            if shared and size < sequence.left:
                size = min(size, share)
            if sequence is oldest:
                oldest = None
            if place := next((at for at in sequence.snapshots_at if at > sequence.computed), 0):
                size = min(size, place - sequence.computed)
            if size > 0:
                chunks.append(Chunk(sequence, sequence.computed, sequence.computed + size))
                room -= size
        return tuple(chunks)

    def _next(self) -> Sequence:
        """Of what waits, the oldest of the group that has the fewest running."""
        running = Counter(sequence.request.group for sequence in self._running.values())
        return min(self._waiting, key=lambda sequence: running[sequence.request.group])

    def _admit(self, sequence: Sequence) -> list[Copy]:
        """Give a sequence the first free slot; what it shares with another slot is copied, not computed again."""
        shares = [common_prefix(cached, sequence.tokens) for cached in self.cached]
        usable = [self._usable(slot, share, sequence) for slot, share in enumerate(shares)]
        free = [slot for slot in range(len(self.cached)) if slot not in self._running]
        slot = free[0]
        source = max(range(len(shares)), key=lambda s: (usable[s][0], s == slot))
        shared, snapshot = usable[source]
        lost = max(free, key=lambda s: shares[s])
        if 10 * shares[lost] < 9 * len(self.cached[lost]):  # this is another text: rather lose the oldest one
            lost = min(free, key=lambda s: (self._used[s], s))
        copies = self._freed(slot, lost, exchanged=source == lost)
        if source not in (slot, lost) or snapshot:
            copies.append(Copy(slot if source == lost else source, slot, shared, snapshot))
        self._snapshots.share(slot if source == lost else source, slot, shared)
        sequence.slot, sequence.computed = slot, shared
        if not sequence.generated:
            sequence.cached = shared
        self.cached[slot] = sequence.tokens[:shared]
        if not self._costs.cut:  # a text that begins alike may come again: where this one leaves it is worth a snapshot
            sequence.snapshots_at = places(len(sequence.tokens), shared, [max(shares)])
        self._clock += 1
        self._used[slot] = self._clock
        self._running[slot] = sequence
        return [copy for copy in copies if copy.tokens]

    def _usable(self, slot: int, share: int, sequence: Sequence) -> tuple[int, int]:
        """How many tokens of a slot a sequence can begin with, and the number of the snapshot that has their states."""
        # At least one token must be computed anew: its logits choose the first token of the answer.
        most = min(share, len(sequence.tokens) - 1)
        if self._costs.cut or most == len(self.cached[slot]):
            return most, 0
        best = self._snapshots.best(slot, most)
        return (best.position, best.number) if best else (0, 0)

    def _freed(self, slot: int, lost: int, *, exchanged: bool) -> list[Copy]:
        """Let the text in ``slot`` take the place of the one that is lost; ``exchanged``: which comes to ``slot``."""
        if lost == slot:
            return []
        copies = self._exchange(slot, lost) if exchanged else [Copy(slot, lost, len(self.cached[slot]))]
        if exchanged:
            self._snapshots.exchange(slot, lost)
        else:
            self._snapshots.share(slot, lost, len(self.cached[slot]))
        self.cached[lost], self._used[lost] = self.cached[slot], self._used[slot]
        return copies

    def _close_gaps(self) -> list[Copy]:
        """Let a running sequence change places with an idle text when most of the rows up to it are idle."""
        copies: list[Copy] = []
        while len(self._running) > 1 and (last := max(self._running)) >= 2 * len(self._running):
            gap = next(slot for slot in range(last) if slot not in self._running)
            copies += self._exchange(gap, last)
            self._snapshots.exchange(gap, last)
            self.cached[gap], self.cached[last] = self.cached[last], self.cached[gap]
            self._used[gap], self._used[last] = self._used[last], self._used[gap]
            sequence = self._running.pop(last)
            sequence.slot = gap
            self._running[gap] = sequence
        return [copy for copy in copies if copy.tokens]

    def _exchange(self, a: int, b: int) -> list[Copy]:
        """The copies that let two slots change places."""
        spare, held = len(self.cached), (len(self.cached[a]), len(self.cached[b]))
        return [Copy(a, spare, held[0]), Copy(b, a, held[1]), Copy(spare, b, held[0])]

    def trim(self, most: int) -> tuple[int, ...]:
        """Drop what was used longest ago, of what does not run, while more than ``most`` is cached."""
        idle = [slot for slot, cached in enumerate(self.cached) if cached and slot not in self._running]
        dropped, held = [], self.held
        for slot in sorted(idle, key=lambda s: self._used[s]):
            if held <= most:
                break
            self.cached[slot] = []
            self._snapshots.cut(slot, 0)
            held = self.held
            dropped.append(slot)
        return tuple(dropped)

    def _make_room(self) -> tuple[int, ...]:
        """Drop what was used longest ago while the next step would not fit; then let the youngest wait again."""
        dropped: list[int] = []
        while self.held > (most := self._budget - self._coming()):
            if idle := self.trim(most):
                dropped += idle
            elif rich := [slot for slot in self._running if self._snapshots[slot]]:
                self._snapshots.cut(min(rich, key=lambda s: self._used[s]), 0)
            elif len(self._running) > 1:
                slot = max(self._running, key=lambda s: self._used[s])
                sequence = self._running.pop(slot)
                sequence.slot, sequence.computed = -1, 0
                self._waiting.appendleft(sequence)
                self.cached[slot] = []
                dropped.append(slot)
            else:
                break
        return tuple(dropped)

    def _coming(self) -> int:
        """What the next step adds to the cache."""
        chunks = self._chunks()
        tokens = len(self._running) + sum(chunk.end - chunk.start for chunk in chunks)
        begun = sum(not self.cached[slot] for slot in self._running) * self._costs.sequence
        return tokens * self._costs.token + begun + sum(self._costs.of_snapshot(c.end) for c in chunks if c.kept)

    def advance(self, sequence: Sequence, computed: int) -> None:
        """Record that the tokens up to ``computed`` are in the cache now."""
        self.cached[sequence.slot].extend(sequence.tokens[sequence.computed : computed])
        sequence.computed = computed

    def keep(self, chunk: Chunk) -> int:
        """A snapshot is taken behind a chunk that was computed; the number that names it."""
        return self._snapshots.add(chunk.sequence.slot, chunk.end).number


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many leading tokens two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
