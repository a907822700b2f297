"""The engine on tiny random models of several architectures, and its parts by property tests."""

import os
import random
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import CONFIGS, Collected, kept_kernels, tiny

from llmsvc.engine import Engine, FinishReason, GenerationRequest, SamplingParams, sampling
from llmsvc.engine.detokenize import Detokenizer
from llmsvc.engine.kernels import load_kernels
from llmsvc.engine.sampling import penalized, sample
from llmsvc.engine.scheduler import Scheduler, Sequence
from llmsvc.errors import BadRequest, Busy, Unavailable


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_says_what_generate_says(name: str, tokenizer: Any) -> None:
    """Prompts of different lengths, chunked prefill, shared prefixes and sliding windows change no token."""
    model = tiny(name)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in (1, 7, 40, 75)]
    prompts.append(prompts[2] + [5, 6, 7])
    expected = []
    for prompt in prompts:
        out = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :].tolist()
        expected.append(tokenizer.decode(out, skip_special_tokens=True))
    engine = Engine(model, tokenizer, window=512, slots=3, chunk=16)
    try:
        collected = Collected(engine)
        for i, prompt in enumerate(prompts):
            collected.submit(str(i), prompt)
        results = collected.all(len(prompts))
        assert [results[str(i)][0].rstrip("\ufffd") for i in range(len(prompts))] == [
            e.rstrip("\ufffd") for e in expected
        ]
        collected.submit("again", prompts[3])
        text, last = collected.all(1)["again"]
        assert text.rstrip("\ufffd") == expected[3].rstrip("\ufffd")
        assert last.cached_tokens > 0
    finally:
        engine.close()


def test_cancel_length_and_refusals(tokenizer: Any) -> None:
    engine = Engine(tiny("llama"), tokenizer, window=512, slots=2, max_waiting=2)
    engine._outputs.ends = frozenset()  # or one that is drawn by chance ends first
    collected = Collected(engine)
    with pytest.raises(BadRequest, match="512"):
        collected.submit("long", [5] * 512)
    with pytest.raises(BadRequest, match="empty"):
        collected.submit("empty", [])
    collected.submit("a", [5, 6], max_tokens=400, temperature=1.0)
    assert collected.next().finish_reason is None
    engine.cancel("a")
    engine.cancel("unknown")
    _, last = collected.all(1)["a"]
    assert last.finish_reason is FinishReason.CANCELLED
    collected.submit("b", [7] * 500, max_tokens=400, temperature=1.0)
    _, last = collected.all(1)["b"]
    assert last.finish_reason is FinishReason.LENGTH

    def flood() -> None:
        for i in range(1000):
            collected.submit(f"many{i}", [9] * 100, max_tokens=400)

    with pytest.raises(Busy):
        flood()
    engine.close()
    with pytest.raises(Unavailable):
        collected.submit("late", [1])


def test_a_failing_request_ends_alone(tokenizer: Any) -> None:
    engine = Engine(tiny("llama"), tokenizer, window=512)
    collected = Collected(engine)
    try:
        collected.submit("alone", [5, 6])
        expected = collected.all(1)["alone"][0]
        collected.submit("fine", [5, 6])
        collected.submit("broken", [7, 10_000])  # outside the vocabulary: the embedding raises
        ended = collected.all(2)
        assert ended["broken"][1].finish_reason is FinishReason.ERROR
        assert ended["broken"][1].error
        assert ended["fine"][0] == expected
        assert engine.running == engine.queued == 0
    finally:
        engine.close()


@pytest.mark.parametrize("error", [MemoryError("full"), RuntimeError("the decode step broke")])
def test_a_failing_step_is_done_again(tokenizer: Any, error: Exception) -> None:
    """Out of memory: the cache shrinks and the answers go on. Another fault of a batch: row by row it may work."""
    engine = Engine(tiny("llama"), tokenizer, window=512, slots=4)
    collected = Collected(engine)
    prompts = {name: [n + 5] * 20 for n, name in enumerate("abc")}
    expected = {}
    for name, prompt in prompts.items():
        collected.submit(name, prompt)
        expected[name] = collected.all(1)[name][0]
    decode, failures = engine._runner.decode, [error]

    def failing(tokens: dict[int, int], *rest: Any) -> torch.Tensor:
        if len(tokens) == 3 and failures:
            raise failures.pop()
        return decode(tokens, *rest)

    engine._runner.decode = failing  # type: ignore[method-assign]
    try:
        for name, prompt in prompts.items():
            collected.submit(name, prompt)
        assert {name: text for name, (text, _) in collected.all(3).items()} == expected
        assert not failures
    finally:
        engine.close()


PARTS = [*"abc \n", "é", "e\u0301", "👩‍👩‍👧", "🇫🇷", "👍🏽", "한", "ｶﾞ", "\u200d"]
TRICKY = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


@settings(deadline=None, max_examples=150)
@given(text=TRICKY | st.text(max_size=20))
def test_detokenizing_gives_the_text_in_whole_graphemes(tokenizer: Any, text: str) -> None:
    import regex

    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assume(whole == text and "\ufffd" not in text)  # some rare bytes are missing from this vocabulary
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(i) for i in ids] + [detokenizer.finish()]
    assert "".join(pieces) == whole
    ends = {m.end() for m in regex.finditer(r"\X", whole)} | {0}
    at = 0
    for piece in pieces:
        at += len(piece)
        assert at in ends, "a grapheme was split"


@settings(deadline=None, max_examples=150)
@given(
    text=st.text(alphabet="ab c", max_size=30),
    stop=st.lists(st.text(alphabet="ab c", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_cut_at_their_first_place(tokenizer: Any, text: str, stop: list[str]) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(tokenizer, tuple(stop))
    out = ""
    for token in ids:
        out += detokenizer.push(token)
        if detokenizer.stopped:
            break
    out += detokenizer.finish()
    assert text.startswith(out)
    assert detokenizer.stopped or out == text
    if detokenizer.stopped:
        assert any(text[len(out) :].startswith(s) for s in stop)
    assert not any(s in out for s in stop)


@given(st.integers(0, 10_000), st.floats(0.1, 3), st.integers(0, 60), st.floats(0, 1))
@settings(deadline=None, max_examples=100)
def test_sampling_stays_inside_its_filters(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(50, generator=generator)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    order = (logits / temperature).softmax(-1).sort(descending=True)
    kept = min(top_k, 50) or 50
    share = order.values[:kept] / order.values[:kept].sum()
    nucleus = int(((share.cumsum(-1) - share) < max(top_p - 1e-5, 1e-9)).sum())
    allowed = set(order.indices[: max(1, nucleus + 1)].tolist())
    assert sample(logits[None], [params], [random.Random(seed)])[0] in allowed


@settings(deadline=None, max_examples=1000)
@given(
    st.lists(st.tuples(st.sampled_from("sscdd"), st.integers(0, 30), st.integers(1, 40)), max_size=80),
    st.integers(60, 200),
)
def test_no_schedule_leaves_a_slot_behind(actions: list[tuple[str, int, int]], budget: int) -> None:
    """Submit, cancel and decode at random: everything ends, every slot is free again, and the cache has its bounds."""
    scheduler = Scheduler(slots=3, chunk=8, max_waiting=100, budget=budget)
    submitted: set[str] = set()
    ended: list[str] = []
    held: list[list[int]] = [[], [], [], []]  # what a cache would hold, with its spare slot

    def write(sequence: Sequence, end: int) -> None:
        start = sequence.computed
        held[sequence.slot][start:end] = sequence.tokens[start:end]
        scheduler.advance(sequence, end)
        assert held[sequence.slot][:end] == sequence.tokens[:end]

    def step() -> None:
        ended.extend(s.request.id for s in scheduler.take_cancelled())
        plan = scheduler.plan()
        for source, slot, tokens, _ in plan.copies:
            held[slot][:tokens] = held[source][:tokens]
        for slot in plan.dropped:
            held[slot] = []
        assert sum(map(len, scheduler.cached)) <= budget
        for slot, cached in enumerate(scheduler.cached):
            assert held[slot][: len(cached)] == cached
        slots = [s.slot for s in plan.decode] + [chunk.sequence.slot for chunk in plan.prefill]
        assert len(slots) == len(set(slots)) <= 3
        for sequence in plan.decode:
            write(sequence, len(sequence.tokens))
        for chunk in plan.prefill:
            assert chunk.start < chunk.end <= chunk.start + 8
            write(chunk.sequence, chunk.end)
        done = [*plan.decode, *(c.sequence for c in plan.prefill if c.end == len(c.sequence.tokens))]
        for sequence in done:
            sequence.tokens.append(3)
            assert scheduler.cached[sequence.slot] == sequence.tokens[:-1]
            if sequence.generated >= sequence.request.sampling.max_tokens:
                scheduler.finish(sequence)
                ended.append(sequence.request.id)

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


def test_a_second_chat_takes_nothing_from_the_first(tokenizer: Any) -> None:
    """Chats that begin alike share that beginning, and each finds its own text again."""
    engine = Engine(tiny("llama"), tokenizer, window=512, slots=4)
    collected = Collected(engine)
    system = [9] * 40
    chats = {name: [*system, *([n + 20] * 30)] for n, name in enumerate("abc")}
    try:
        for name, prompt in chats.items():
            collected.submit(name, prompt, max_tokens=1)
            assert collected.all(1)[name][1].cached_tokens == (0 if name == "a" else 40)
        for name, prompt in chats.items():
            collected.submit(name, [*prompt, 5], max_tokens=1)
            assert collected.all(1)[name][1].cached_tokens == 70
    finally:
        engine.close()


def test_more_than_the_cache_holds_is_answered_all_the_same(tokenizer: Any) -> None:
    """What does not fit waits, or is computed again; no word changes."""
    prompts = {str(n): [(n * 37 + k) % 280 + 5 for k in range(60 + 20 * n)] for n in range(5)}
    texts = []
    for kv_bytes in (0, 200 * 4 * 2 * 2 * 8 * 4):  # the window is 150 tokens: a little more than one of them
        engine = Engine(tiny("llama"), tokenizer, window=180, slots=4, chunk=16, kv_bytes=kv_bytes)
        collected = Collected(engine)
        try:
            for name, prompt in prompts.items():
                collected.submit(name, prompt)
            texts.append({name: text for name, (text, _) in collected.all(5).items()})
        finally:
            engine.close()
    assert texts[0] == texts[1]
    assert all(texts[0].values())


def test_running_rows_stand_together() -> None:
    """When answers end, those that go on take their places, each with what it has cached."""
    scheduler = Scheduler(slots=8, chunk=8, max_waiting=100, budget=10_000)
    for n in range(8):
        scheduler.submit(GenerationRequest(str(n), (n + 5,) * 4, SamplingParams(), lambda _: None))
    rows: list[Sequence] = []
    for _ in range(9):
        plan = scheduler.plan()
        for chunk in plan.prefill:
            scheduler.advance(chunk.sequence, chunk.end)
            chunk.sequence.tokens.append(3)
            rows.append(chunk.sequence)
    for row in (rows[0], rows[1], rows[2], rows[4], rows[5], rows[6]):
        scheduler.finish(row)
    plan = scheduler.plan()
    assert {row.slot for row in plan.decode} <= {0, 1, 2, 3}
    assert [scheduler.cached[row.slot] for row in plan.decode] == [row.tokens[:-1] for row in plan.decode]


def test_a_short_prompt_does_not_wait_for_a_long_one(tokenizer: Any) -> None:
    """Nor does a long one wait for ever, however many short ones come."""
    engine = Engine(tiny("llama"), tokenizer, window=512, slots=4, chunk=16)
    collected, ended, all_sent = Collected(engine), list[str](), threading.Event()
    try:
        one = SamplingParams(temperature=0, max_tokens=1)
        engine.submit(GenerationRequest("first", (5,), one, lambda _: all_sent.wait(60)))  # holds it
        collected.submit("long", [(n * 7) % 280 + 5 for n in range(480)], max_tokens=1)
        for n in range(200):
            collected.submit(f"short {n}", [(n * 31 + k * 7) % 280 + 5 for k in range(12)], max_tokens=1)
        all_sent.set()
        while "long" not in ended:
            event = collected.next()
            ended += [event.request_id] if event.finish_reason else []
    finally:
        engine.close()
    assert ended[0].startswith("short")
    assert 20 < len(ended) < 200


def test_the_group_with_the_fewest_running_is_next() -> None:
    scheduler = Scheduler(slots=2, chunk=8, max_waiting=100, budget=10_000)
    for n, group in enumerate("aaab"):
        scheduler.submit(GenerationRequest(str(n), (n + 5,), SamplingParams(), lambda _: None, group))
    scheduler.plan()
    assert {sequence.request.group for sequence in scheduler._running.values()} == {"a", "b"}


def test_cancelling_and_closing_leave_no_thread_behind(tokenizer: Any) -> None:
    before = set(threading.enumerate())
    engine = Engine(tiny("llama"), tokenizer, window=512, slots=3)
    collected = Collected(engine)
    for n in range(20):
        collected.submit(str(n), [n + 5] * (n + 1), max_tokens=n % 7 + 1)
        if n % 3 == 0:
            engine.cancel(str(n))
    assert len(collected.all(20)) == 20
    assert engine.running == engine.queued == 0
    engine.close()
    new = set(threading.enumerate()) - before
    assert [thread.name for thread in new if thread.name != "compute_0"] == []  # that one is the process's


def test_penalty_and_min_p_do_what_transformers_does() -> None:
    from transformers.generation.logits_process import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, generator=generator)
    seen = [3, 7, 20]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([seen]), logits[None].clone())[0]
    assert torch.allclose(penalized(logits, 1.3, torch.tensor(seen)), expected)
    left = MinPLogitsWarper(0.1)(torch.tensor([seen]), logits[None].clone())[0]
    allowed = set(torch.isfinite(left).nonzero().flatten().tolist())
    params = SamplingParams(temperature=1, top_p=1, min_p=0.1)
    dice = random.Random(0)
    drawn = {sample(logits[None], [params], [dice])[0] for _ in range(500)}
    assert drawn == allowed
    assert 1 < len(allowed) < 50


def test_logprobs_are_those_of_the_model(tokenizer: Any) -> None:
    model = tiny("llama")
    engine = Engine(model, tokenizer, window=512)
    collected = Collected(engine)
    prompt = [5, 6, 7]
    try:
        collected.submit("a", prompt, logprobs=3, max_tokens=4, temperature=0)
        found = []
        while True:
            event = collected.next()
            found += event.logprobs
            if event.finish_reason:
                break
    finally:
        engine.close()
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    assert len(found) == event.tokens
    assert found[0].logprob == pytest.approx(float(expected.max()), abs=1e-4)
    assert [value for _, value in found[0].top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)
    assert found[0].top[0] == (found[0].token, pytest.approx(found[0].logprob))


def test_a_seed_gives_the_same_answer_in_any_company(tokenizer: Any) -> None:
    engine = Engine(tiny("llama"), tokenizer, window=512, slots=4)
    collected = Collected(engine)
    try:
        collected.submit("alone", [5, 6], seed=3, temperature=1.5)
        alone = collected.all(1)["alone"][0]
        for n in range(4):
            collected.submit(f"other{n}", [n + 9] * 30, temperature=1.0)
        collected.submit("among", [5, 6], seed=3, temperature=1.5)
        assert collected.all(5)["among"][0] == alone
    finally:
        engine.close()


@pytest.mark.parametrize("temperature", [0.0, 0.005])
def test_guesses_save_passes_and_change_no_word(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """What stands in the prompt is guessed; the answer is the same as without, for a seed too."""
    from llmsvc.engine.lookup import Lookup
    from llmsvc.engine.slot_runner import SlotRunner

    prompts = {str(n): ([n + 5, 9, 40, 31] * 12)[: 30 + n] for n in range(6)}
    passes = 0

    def counted(name: str) -> Any:
        right = getattr(SlotRunner, name)

        def count(*args: Any) -> Any:
            nonlocal passes
            passes += 1
            return right(*args)

        return count

    for name in ("prefill", "decode"):
        monkeypatch.setattr(SlotRunner, name, counted(name))
    found = []
    for guessing in (True, False):
        if not guessing:
            monkeypatch.setattr(Lookup, "guess", lambda *_: [])
        engine = Engine(tiny("llama"), tokenizer, window=128, slots=2)
        collected = Collected(engine)
        texts = {}
        try:
            for name, prompt in prompts.items():  # one after the other: only who is alone has guesses
                collected.submit(name, prompt, temperature=temperature, seed=3, max_tokens=70)
                text, last = collected.all(1)[name]
                texts[name] = text, last.tokens, last.finish_reason
        finally:
            engine.close()
        found.append((texts, passes))
        passes = 0
    assert found[0][0] == found[1][0]
    assert found[0][1] < 0.8 * found[1][1]


@pytest.mark.parametrize("by", ["kernel", "torch"])
def test_a_choice_hangs_on_nothing_but_its_row(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of all kinds together are what each is alone, and rows that are no numbers are told."""
    if by == "torch":
        monkeypatch.setattr(sampling, "kernels", lambda: None)
    elif not load_kernels(kept_kernels()):
        pytest.skip("needs a C++ compiler")
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(6, 2000, generator=generator) * 2
    logits[4, 7] = float("nan")
    params = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=1.3, top_k=0, top_p=1),
        SamplingParams(temperature=3, top_k=0, top_p=0.99),  # a nucleus larger than what is sorted
        SamplingParams(temperature=1, top_k=600, top_p=0.9, min_p=0.01),
        SamplingParams(temperature=1),
        SamplingParams(temperature=0.7, top_k=20),
    ]

    for seed in range(50):
        alone = [sample(logits[n : n + 1], params[n : n + 1], [random.Random(seed + n)])[0] for n in range(6)]
        assert sample(logits, params, [random.Random(seed + n) for n in range(6)]) == alone
        assert [n for n, token in enumerate(alone) if token < 0] == [4]


def test_a_choice_hangs_on_no_guess_of_how_wide_the_nucleus_is(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(40, 2000, generator=torch.Generator().manual_seed(5)) * torch.linspace(0.5, 4, 40)[:, None]
    params = [SamplingParams(temperature=1, top_p=0.95) for _ in range(40)]
    drawn = []
    monkeypatch.setattr(sampling, "kernels", lambda: None)
    for narrow, wide in ((2000, 2000), (512, 8192), (2, 40)):
        monkeypatch.setattr(sampling, "_NUCLEUS", narrow)
        monkeypatch.setattr(sampling, "_WIDER", wide)
        drawn.append(sample(logits, params, [random.Random(n) for n in range(40)]))
    assert drawn[0] == drawn[1] == drawn[2]


def test_what_is_drawn_is_drawn_as_often_as_it_should_be() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, float("-inf")]]).repeat(4000, 1)
    params = SamplingParams(temperature=1, top_k=0, top_p=1)
    drawn = sample(logits, [params] * 4000, [random.Random(1)] * 4000)
    often = torch.bincount(torch.tensor(drawn), minlength=5) / 4000
    assert torch.allclose(often, logits[0].softmax(-1), atol=0.03)


def test_an_answer_matches_its_schema(tokenizer: Any, model_dir: Any) -> None:
    import json

    from llmsvc.models.loader import load

    loaded = load(model_dir, "cpu", "none", lambda *_: None)
    engine = Engine(loaded.model, loaded.tokenizer, window=loaded.window)
    collected = Collected(engine)
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    chat = [{"role": "user", "content": "Describe a person as JSON with name and age."}]
    prompt = loaded.tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    try:
        for seed in range(3):
            collected.submit("json", prompt, json_schema=json.dumps(schema), temperature=1.0, seed=seed, max_tokens=100)
            text, last = collected.all(1)["json"]
            assert last.finish_reason is FinishReason.STOP
            found = json.loads(text)
            assert isinstance(found["name"], str)
            assert isinstance(found["age"], int)
        collected.submit("regex", prompt, regex="[A-Z]{3}-[0-9]{2}", temperature=1.0)
        import re

        assert re.fullmatch("[A-Z]{3}-[0-9]{2}", collected.all(1)["regex"][0])
        for broken in ({"regex": "(["}, {"json_schema": "{"}, {"json_schema": '{"type": "nonsense"}'}):
            with pytest.raises(BadRequest):
                collected.submit("broken", prompt, **broken)
    finally:
        engine.close()


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux only")
@pytest.mark.parametrize("own", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "passive"}])
def test_threads_wait_briefly_or_as_the_user_says(own: dict[str, str]) -> None:
    """libgomp itself says what it was told."""
    code = "from llmsvc.engine.compute import wait_briefly; wait_briefly(); import torch"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    env |= {"OMP_DISPLAY_ENV": "verbose", **own}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this torch has another OpenMP")
    spins = own.get("GOMP_SPINCOUNT", "0" if own else "1000")
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
    assert f"OMP_WAIT_POLICY = '{'PASSIVE' if own else 'ACTIVE'}'" in done.stderr
