"""The engine on tiny random models of several architectures, and its parts by property tests."""

import queue
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config

from llmsvc.engine import Engine, FinishReason, GenerationRequest, SamplingParams, TokenEvent
from llmsvc.engine.detokenize import Detokenizer
from llmsvc.engine.sampling import sample
from llmsvc.engine.scheduler import Scheduler, Sequence
from llmsvc.errors import BadRequest, Busy, Unavailable

SIZE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZE),
    "qwen3": Qwen3Config(**SIZE),
    "mistral-window": MistralConfig(**SIZE, sliding_window=16),
    "gemma3-mixed": Gemma3TextConfig(
        **SIZE,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        query_pre_attn_scalar=8,
    ),
}


@pytest.fixture(scope="module")
def tokenizer(model_dir) -> Any:
    return AutoTokenizer.from_pretrained(model_dir)


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).float().eval()
    model.generation_config.eos_token_id = 2
    return model


class Collected:
    """The events of several requests."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._queue = engine, queue.Queue[TokenEvent]()

    def submit(self, name: str, prompt: list[int], **sampling: Any) -> None:
        params = SamplingParams(**{"temperature": 0, "max_tokens": 24, **sampling})
        self._engine.submit(GenerationRequest(name, tuple(prompt), params, self._queue.put))

    def next(self) -> TokenEvent:
        return self._queue.get(timeout=60)

    def all(self, count: int) -> dict[str, tuple[str, TokenEvent]]:
        texts: dict[str, str] = {}
        ended: dict[str, tuple[str, TokenEvent]] = {}
        while len(ended) < count:
            event = self.next()
            texts[event.request_id] = texts.get(event.request_id, "") + event.text
            if event.finish_reason is not None:
                ended[event.request_id] = (texts[event.request_id], event)
        return ended


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
    assert last.finish_reason in (FinishReason.LENGTH, FinishReason.STOP)

    def flood() -> None:
        for i in range(1000):
            collected.submit(f"many{i}", [9] * 100, max_tokens=400)

    with pytest.raises(Busy):
        flood()
    engine.close()
    with pytest.raises(Unavailable):
        collected.submit("late", [1])


def test_a_failing_step_ends_its_requests_and_serves_the_next(tokenizer: Any) -> None:
    model = tiny("llama")
    engine = Engine(model, tokenizer, window=512)
    collected = Collected(engine)
    collected.submit("broken", [10_000])  # outside the vocabulary: the embedding raises
    _, last = collected.all(1)["broken"]
    assert last.finish_reason is FinishReason.ERROR
    assert last.error
    collected.submit("fine", [5, 6])
    _, last = collected.all(1)["fine"]
    assert last.finish_reason is not FinishReason.ERROR
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
    assert sample(logits, params, generator) in allowed


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from("sscdd"), st.integers(0, 30), st.integers(1, 40)), max_size=80))
def test_no_schedule_leaves_a_slot_behind(actions: list[tuple[str, int, int]]) -> None:
    """Submit, cancel and decode at random: everything ends, and every slot is free again."""
    scheduler = Scheduler(slots=3, chunk=8, max_waiting=100)
    submitted: set[str] = set()
    ended: list[str] = []
    held: list[list[int]] = [[], [], []]  # what a cache would hold

    def write(sequence: Sequence, end: int) -> None:
        start = sequence.computed
        held[sequence.slot][start:end] = sequence.tokens[start:end]
        scheduler.advance(sequence, end)
        assert held[sequence.slot][:end] == sequence.tokens[:end]

    def step() -> None:
        ended.extend(s.request.id for s in scheduler.take_cancelled())
        plan = scheduler.plan()
        for source, slot, tokens in plan.copies:
            held[slot][:tokens] = held[source][:tokens]
        slots = [s.slot for s in plan.decode] + ([plan.prefill.slot] if plan.prefill else [])
        assert len(slots) == len(set(slots)) <= 3
        for sequence in plan.decode:
            write(sequence, len(sequence.tokens))
        if plan.prefill:
            assert plan.start < plan.end <= plan.start + 8
            write(plan.prefill, plan.end)
        done = [*plan.decode, *([plan.prefill] if plan.prefill and plan.end == len(plan.prefill.tokens) else [])]
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
