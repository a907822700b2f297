"""Decides what the next step computes. Knows sequences and queues, no tensors.

Continuous batching (Orca, Yu et al. 2022): rows join and leave between steps. A step decodes every
running row and prefills a few tokens of prompts (Sarathi-Serve, Agrawal et al. 2024), so a long prompt
never stalls the answers that are already streaming.
"""

import sys
from collections import Counter, deque
from dataclasses import dataclass, field

from llmsvc.engine.request import GenerationRequest

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
    def last(self) -> bool:
        """Whether the prompt is read with it."""
        return self.end == len(self.sequence.tokens)


@dataclass(frozen=True)
class Plan:
    """One step: the sequences to decode, then the chunks to prefill, of one sequence each.

    First, and in this order, ``copies``: (from slot, to slot, tokens) of what is cached; the slot behind the last is
    spare, for texts that change places. Then ``dropped``: slots whose memory can go.
    """

    copies: tuple[tuple[int, int, int], ...] = ()
    dropped: tuple[int, ...] = ()
    decode: tuple[Sequence, ...] = ()
    prefill: tuple[Chunk, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.prefill or self.decode)


class Scheduler:
    """Slots, a bounded queue, and what each free slot still has cached.

    Sequences that run stand in the first slots, so that a step over all of them is a step over few rows.
    """

    def __init__(self, slots: int, chunk: int, max_waiting: int, budget: int, shared_chunk: int = SHARED_CHUNK) -> None:
        """``budget``: tokens that may be cached in all slots together; one sequence has to fit into it.

        ``chunk``: tokens of prompts in a step; of a long one, while others decode, ``shared_chunk`` at most.
        """
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
        for sequence in self._running.values():
            sequence.computed = 0

    def limit(self, budget: int) -> None:
        """From the next step on, cache no more than ``budget`` tokens, nor fewer than what runs has."""
        running = sum(len(sequence.tokens) for sequence in self._running.values())
        self._budget = min(max(budget, running + self.chunk), self._ceiling)

    def shrink(self) -> bool:
        """After memory ran out: be content with half of what is cached now. False when one sequence has all of it."""
        if self.running < 2 and not any(c for slot, c in enumerate(self.cached) if slot not in self._running):
            return False
        self._budget = self._ceiling = max(sum(map(len, self.cached)) // 2, 1)
        return True

    def plan(self) -> Plan:
        """Admit what fits, then say what the next step computes."""
        copies = self._close_gaps()
        while self._waiting and len(self._running) < len(self.cached):
            sequence = self._next()
            running = sum(len(other.tokens) for other in self._running.values())
            if running and running + len(sequence.tokens) + self.chunk > self._budget:
                break
            self._waiting.remove(sequence)
            copies += self._admit(sequence)
        dropped = self._make_room()
        return Plan(tuple(copies), dropped, tuple(self.decoding), self._chunks())

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
            if size > 0:
                chunks.append(Chunk(sequence, sequence.computed, sequence.computed + size))
                room -= size
        return tuple(chunks)

    def _next(self) -> Sequence:
        """Of what waits, the oldest of the group that has the fewest running."""
        running = Counter(sequence.request.group for sequence in self._running.values())
        return min(self._waiting, key=lambda sequence: running[sequence.request.group])

    def _admit(self, sequence: Sequence) -> list[tuple[int, int, int]]:
        """Give a sequence the first free slot; what it shares with another slot is copied, not computed again."""
        shares = [common_prefix(cached, sequence.tokens) for cached in self.cached]
        free = [slot for slot in range(len(self.cached)) if slot not in self._running]
        slot = free[0]
        source = max(range(len(shares)), key=lambda s: (shares[s], s == slot))
        # At least one token must be computed anew: its logits choose the first token of the answer.
        shared = min(shares[source], len(sequence.tokens) - 1)
        lost = max(free, key=lambda s: shares[s])
        if 10 * shares[lost] < 9 * len(self.cached[lost]):  # this is another text: rather lose the oldest one
            lost = min(free, key=lambda s: (self._used[s], s))
        copies = []
        if lost != slot:  # the text in the first free slot takes the place of the one that is lost
            copies += self._exchange(slot, lost) if source == lost else [(slot, lost, len(self.cached[slot]))]
            self.cached[lost], self._used[lost] = self.cached[slot], self._used[slot]
        if source not in (slot, lost):
            copies.append((source, slot, shared))
        sequence.slot, sequence.computed = slot, shared
        if not sequence.generated:
            sequence.cached = shared
        self.cached[slot] = sequence.tokens[:shared]
        self._clock += 1
        self._used[slot] = self._clock
        self._running[slot] = sequence
        return [copy for copy in copies if copy[2]]

    def _close_gaps(self) -> list[tuple[int, int, int]]:
        """Let a running sequence change places with an idle text when most of the rows up to it are idle."""
        copies: list[tuple[int, int, int]] = []
        while len(self._running) > 1 and (last := max(self._running)) >= 2 * len(self._running):
            gap = next(slot for slot in range(last) if slot not in self._running)
            copies += self._exchange(gap, last)
            self.cached[gap], self.cached[last] = self.cached[last], self.cached[gap]
            self._used[gap], self._used[last] = self._used[last], self._used[gap]
            sequence = self._running.pop(last)
            sequence.slot = gap
            self._running[gap] = sequence
        return [copy for copy in copies if copy[2]]

    def _exchange(self, a: int, b: int) -> list[tuple[int, int, int]]:
        """The copies that let two slots change places."""
        spare, held = len(self.cached), (len(self.cached[a]), len(self.cached[b]))
        return [(a, spare, held[0]), (b, a, held[1]), (spare, b, held[0])]

    def trim(self, most: int) -> tuple[int, ...]:
        """Drop what was used longest ago, of what does not run, while more than ``most`` tokens are cached."""
        idle = [slot for slot, cached in enumerate(self.cached) if cached and slot not in self._running]
        dropped, over = [], sum(map(len, self.cached)) - most
        for slot in sorted(idle, key=lambda s: self._used[s]):
            if over <= 0:
                break
            over -= len(self.cached[slot])
            self.cached[slot] = []
            dropped.append(slot)
        return tuple(dropped)

    def _make_room(self) -> tuple[int, ...]:
        """Drop what was used longest ago while the next step would not fit; then let the youngest wait again."""
        dropped: list[int] = []
        while sum(map(len, self.cached)) > (most := self._budget - self._coming()):
            if idle := self.trim(most):
                dropped += idle
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
        """Tokens that the next step adds to the cache."""
        return len(self._running) + sum(chunk.end - chunk.start for chunk in self._chunks())

    def advance(self, sequence: Sequence, computed: int) -> None:
        """Record that the tokens up to ``computed`` are in the cache now."""
        self.cached[sequence.slot].extend(sequence.tokens[sequence.computed : computed])
        sequence.computed = computed


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many leading tokens two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
