"""Decides what the next step computes. Knows sequences and queues, no tensors.

Continuous batching (Orca, Yu et al. 2022): rows join and leave between steps. A step decodes every
running row and prefills at most one chunk of one waiting prompt (Sarathi-Serve, Agrawal et al. 2024),
so a long prompt never stalls the answers that are already streaming.
"""

from collections import deque
from dataclasses import dataclass, field

from llmsvc.engine.request import GenerationRequest

SHARED_CHUNK = 64
"""Tokens of a prompt in a step in which others decode: they wait for them."""


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
    def prefilling(self) -> bool:
        return self.computed < len(self.tokens) - 1 or self.generated == 0


@dataclass(frozen=True)
class Plan:
    """One step: a chunk [start, end) of one sequence to prefill, and the sequences to decode.

    First, and in this order, ``copies``: (from slot, to slot, tokens) of what is cached.
    """

    copies: tuple[tuple[int, int, int], ...] = ()
    prefill: Sequence | None = None
    start: int = 0
    end: int = 0
    decode: tuple[Sequence, ...] = ()

    def __bool__(self) -> bool:
        return self.prefill is not None or bool(self.decode)


class Scheduler:
    """Slots, a bounded first-come queue, and what each free slot still has cached."""

    def __init__(self, slots: int, chunk: int, max_waiting: int) -> None:
        self._chunk, self._max_waiting = chunk, max_waiting
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
        """Remove and return everything, for shutdown or a failed step."""
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

    def plan(self) -> Plan:
        """Admit what fits, then say what the next step computes."""
        copies = []
        while self._waiting and len(self._running) < len(self.cached):
            copies += self._admit(self._waiting.popleft())
        prefilling = next((s for s in self._running.values() if s.prefilling), None)
        decode = tuple(s for s in self._running.values() if not s.prefilling)
        if prefilling is None:
            return Plan(tuple(copies), decode=decode)
        chunk = min(self._chunk, SHARED_CHUNK) if decode else self._chunk
        end = min(len(prefilling.tokens), prefilling.computed + chunk)
        return Plan(tuple(copies), prefilling, prefilling.computed, end, decode)

    def _admit(self, sequence: Sequence) -> list[tuple[int, int, int]]:
        """Give a sequence a slot; what it shares with another slot is copied, not computed again."""
        shares = [common_prefix(cached, sequence.tokens) for cached in self.cached]
        free = [slot for slot in range(len(self.cached)) if slot not in self._running]
        slot = max(free, key=lambda s: shares[s])
        if 10 * shares[slot] < 9 * len(self.cached[slot]):  # this is another text: rather lose the oldest one
            slot = min(free, key=lambda s: (self._used[s], s))
        source = max(range(len(shares)), key=lambda s: (shares[s], s == slot))
        # At least one token must be computed anew: its logits choose the first token of the answer.
        shared = min(shares[source], len(sequence.tokens) - 1)
        sequence.slot, sequence.computed, sequence.cached = slot, shared, shared
        self.cached[slot] = sequence.tokens[:shared]
        self._clock += 1
        self._used[slot] = self._clock
        self._running[slot] = sequence
        return [(source, slot, shared)] if source != slot and shared else []

    def advance(self, sequence: Sequence, computed: int) -> None:
        """Record that the tokens up to ``computed`` are in the cache now."""
        self.cached[sequence.slot].extend(sequence.tokens[sequence.computed : computed])
        sequence.computed = computed


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many leading tokens two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
