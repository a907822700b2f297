"""States that cannot be cut: what is cached is used only where its states are known, and nothing is left behind."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llmsvc.engine import GenerationRequest, SamplingParams
from llmsvc.engine.runner import Costs
from llmsvc.engine.scheduler import Plan, Scheduler, Sequence
from llmsvc.engine.snapshots import MOST, Snapshots, places

COSTS = Costs(token=1, sequence=5, cut=False, snapshot=5)


class States:
    """What a runner would hold: each slot's keys, and the tokens that its state has behind it; and snapshots."""

    def __init__(self, slots: int) -> None:
        self.keys: list[list[int]] = [[] for _ in range(slots + 1)]
        self.states: list[list[int]] = [[] for _ in range(slots + 1)]
        self.snapshots: dict[int, list[int]] = {}

    def move(self, plan: Plan) -> None:
        for source, slot, tokens, snapshot in plan.copies:
            if source != slot:
                self.keys[slot][:tokens] = self.keys[source][:tokens]
            self.states[slot] = list(self.snapshots[snapshot] if snapshot else self.states[source])
            assert len(self.states[slot]) == tokens
        for number in plan.forgotten:
            del self.snapshots[number]
        for slot in plan.dropped:
            self.keys[slot], self.states[slot] = [], []

    def read(self, sequence: Sequence, end: int) -> None:
        """Go on with a state: right only if it has what was read before behind it."""
        slot, start = sequence.slot, sequence.computed
        if start == 0:
            self.states[slot] = []
        assert self.states[slot] == sequence.tokens[:start]
        assert self.keys[slot][:start] == sequence.tokens[:start]
        self.keys[slot][start:] = sequence.tokens[start:end]
        self.states[slot] = self.states[slot] + sequence.tokens[start:end]


@settings(deadline=None, max_examples=1000)
@given(
    st.lists(st.tuples(st.sampled_from("sscddd"), st.integers(0, 30), st.integers(1, 120)), max_size=80),
    st.integers(200, 900),
)
def test_no_schedule_uses_a_state_that_is_not_its_own(actions: list[tuple[str, int, int]], budget: int) -> None:
    scheduler, held = Scheduler(3, 16, 100, budget, costs=COSTS), States(3)
    submitted: set[str] = set()
    ended: list[str] = []

    def chosen(sequence: Sequence) -> None:
        sequence.tokens.append(3)
        if sequence.generated >= sequence.request.sampling.max_tokens:
            scheduler.finish(sequence)
            ended.append(sequence.request.id)

    def step() -> None:
        ended.extend(s.request.id for s in scheduler.take_cancelled())
        plan = scheduler.plan()
        held.move(plan)
        assert scheduler.held <= budget or scheduler.running == 1
        for sequence in plan.decode:
            held.read(sequence, len(sequence.tokens))
            scheduler.advance(sequence, len(sequence.tokens))
        for chunk in plan.prefill:
            held.read(chunk.sequence, chunk.end)
            scheduler.advance(chunk.sequence, chunk.end)
            if chunk.kept:
                held.snapshots[scheduler.keep(chunk)] = list(held.states[chunk.sequence.slot])
        for sequence in (*plan.decode, *(chunk.sequence for chunk in plan.prefill if chunk.last)):
            chosen(sequence)

    for action, which, length in actions:
        if action == "s":
            name = str(len(submitted))
            submitted.add(name)
            prompt = tuple([4] * (length // 2) + [which % 3 + 4] * (length - length // 2))
            scheduler.submit(GenerationRequest(name, prompt, SamplingParams(max_tokens=which % 5 + 1), lambda _: None))
        elif action == "c":
            scheduler.cancel(str(which))
        else:
            step()
    for _ in range(10_000):
        if not (scheduler.running or scheduler.waiting):
            break
        step()
    assert sorted(ended) == sorted(submitted)
    scheduler.trim(0)
    held.move(scheduler.plan())
    assert not held.snapshots
    assert scheduler.held == 0


def answer(scheduler: Scheduler, prompt: list[int], tokens: int = 3) -> int:
    """How many tokens of a prompt were there already."""
    scheduler.submit(GenerationRequest("a", tuple(prompt), SamplingParams(max_tokens=tokens), lambda _: None))
    sequence: Any = None
    while scheduler.running or scheduler.waiting:
        plan = scheduler.plan()
        for chunk in plan.prefill:
            sequence = chunk.sequence
            scheduler.advance(chunk.sequence, chunk.end)
            if chunk.kept:
                scheduler.keep(chunk)
        for row in (*plan.decode, *(chunk.sequence for chunk in plan.prefill if chunk.last)):
            if row is sequence and row.computed < len(row.tokens):
                scheduler.advance(row, len(row.tokens))
            row.tokens.append(3)
            if row.generated >= tokens:
                scheduler.finish(row)
    return int(sequence.cached)


def test_a_next_turn_an_edit_and_a_shared_file_compute_little_anew() -> None:
    scheduler = Scheduler(4, 256, 100, 10**9, costs=COSTS)
    first = [5 + n % 90 for n in range(1500)]
    assert answer(scheduler, first) == 0
    following = [*first, 3, 3, *range(10, 40)]
    assert answer(scheduler, following) >= len(first)  # the answer's own state
    assert answer(scheduler, [*first, 77, 78]) >= 0.98 * len(first)  # another answer, or another end of the template
    edited = [*first[:1100], *range(10, 200)]
    assert answer(scheduler, edited) >= 1024  # a place in the middle
    assert answer(scheduler, [*first[:1100], *range(200, 260)]) == 1100  # where texts have parted before


def test_a_text_has_a_bound_of_snapshots_and_keeps_them_apart() -> None:
    snapshots = Snapshots(1)
    for position in range(10, 3000, 10):
        snapshots.add(0, position)
    positions = [one.position for one in snapshots[0]]
    assert len(positions) <= MOST + 1
    assert positions[-1] == 2990
    assert max(b - a for a, b in zip([0, *positions], positions, strict=False)) < 1200
    assert len(snapshots.take_gone()) == 299 - len(positions)


def test_places_lie_within_what_is_read() -> None:
    assert places(5, 0) == []
    assert places(100, 0) == [88]
    assert places(100, 95) == []
    assert len(places(100_000, 0)) <= 9
    assert places(2000, 600, [1500]) == [1024, 1500, 1536, 1988]
