"""The KV cache of a GPU, in pages: as far as it can be seen on a CPU, where attention goes without kernels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tiny import CONFIGS, Collected, tiny

from llmsvc.engine import Engine, sampling
from llmsvc.engine.embed import embed
from llmsvc.engine.paged_attention import PAGE
from llmsvc.engine.paged_runner import PagedRunner, can_follow, fused, says_the_same
from llmsvc.engine.pages import SCRATCH, OutOfPages, PageTable, pages_of
from llmsvc.engine.scheduler import PENDING
from llmsvc.engine.slot_runner import SlotRunner

LONG = [(7 * n) % 290 + 3 for n in range(3 * PAGE)]


@pytest.fixture(scope="module", autouse=True)
def as_on_a_gpu() -> Iterator[None]:
    """Tokens are drawn by torch, of which some are known late."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "kernels", lambda: None)
        yield


@contextmanager
def engine(model: Any, tokenizer: Any, **options: Any) -> Iterator[tuple[Engine, Collected]]:
    running = Engine(model, tokenizer, window=512, **options)
    try:
        yield running, Collected(running)
    finally:
        running.close()


@pytest.mark.parametrize("name", CONFIGS)
def test_pages_give_the_same_answers(name: str, tokenizer: Any) -> None:
    """Of prompts together and alone, long and short, that begin alike, and again."""
    prompts = {"a": LONG[:100], "b": [*LONG[:70], 5, 6, 7], "c": [9] * 20, "d": LONG, "e": LONG[:100]}
    found = []
    for paged in (False, True):
        with engine(tiny(name), tokenizer, slots=3, paged=paged) as (running, collected):
            for key, prompt in prompts.items():
                collected.submit(key, prompt)
            texts = {key: text for key, (text, _) in collected.all(len(prompts)).items()}
            collected.submit("again", [*LONG, 4, 4])
            (text, event) = collected.all(1)["again"]
            assert event.cached_tokens >= len(LONG) - 1
            found.append({**texts, "again": text})
            if paged:
                assert running._runner.follows
    assert found[0] == found[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_many_slots_at_once_say_what_each_says(name: str) -> None:
    model = tiny(name)
    assert can_follow(model)
    with fused(model, 3):
        assert says_the_same(model, False)


@pytest.mark.parametrize("paged", [False, True])
def test_a_model_whose_attention_is_its_own_says_the_same(tokenizer: Any, paged: bool) -> None:
    found = []
    for attention in ("sdpa", "eager"):
        model = tiny("llama")
        model.set_attn_implementation(attention)
        with engine(model, tokenizer, paged=paged) as (_, collected):
            for key, length in (("a", 80), ("b", 150)):
                collected.submit(key, LONG[:length])
            found.append({key: text for key, (text, _) in collected.all(2).items()})
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["llama", "gemma3-mixed"])
def test_embeddings_are_what_they_were(name: str) -> None:
    """They go through the same model, with a cache of their own."""
    model = tiny(name)
    before = embed(model, LONG)
    assert can_follow(model)
    assert embed(model, LONG) == pytest.approx(before, abs=1e-5)


def test_slots_that_begin_alike_share_pages_until_one_writes() -> None:
    model = tiny("llama")
    runner, plain = PagedRunner(model, 3, 512, 2048), SlotRunner(model, 3, 512)
    for one in (runner, plain):
        one.prefill(0, LONG[:150], 0)
        one.copy(0, 1, 140)
        one.copy(0, 2, 100)
    assert runner._table.pages[1] == runner._table.pages[0]
    for slot, start in ((1, 140), (2, 100), (0, 150)):
        mine, theirs = (one.prefill(slot, [slot + 5] * 9, start) for one in (runner, plain))
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    assert runner._table.pages[1][:2] == runner._table.pages[0][:2]
    assert runner._table.pages[1][2] != runner._table.pages[0][2]
    mine, theirs = (one.decode({0: 3, 1: 4, 2: 5}, [159, 149, 109]) for one in (runner, plain))
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def held(model: Any) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_parked_engine_holds_nothing_and_comes_back_as_it_was(name: str, tokenizer: Any) -> None:
    model = tiny(name)
    model.tie_weights()
    before, last = held(model), model.get_output_embeddings().weight
    with engine(model, tokenizer, slots=3, paged=True) as (running, collected):
        collected.submit("first", LONG)
        said = collected.all(1)["first"][0]
        for number in range(3):
            running.park()
            assert (
                held(model)
                == sum(layer.keys.untyped_storage().nbytes() for layer in running._runner._cache.used())
                == 0
            )
            running.unpark()
            assert held(model) == before
            collected.submit(f"again {number}", LONG)
            text, event = collected.all(1)[f"again {number}"]
            assert text == said
            assert event.cached_tokens >= len(LONG) - 1
        assert model.get_output_embeddings().weight is last
        running.park()  # what is unloaded then is not waited for


def test_pages_grow_to_their_bound_and_then_the_oldest_text_goes(tokenizer: Any) -> None:
    model = tiny("llama")
    config = model.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    with engine(model, tokenizer, slots=4, chunk=64, kv_bytes=600 * token, paged=True) as (running, collected):
        for turn in range(12):
            collected.submit(str(turn), [turn + 3] * 300)
            _, event = collected.all(1)[str(turn)]
            assert event.error is None
        assert running.cached <= 600
        assert running._runner._cache.pages <= pages_of(600 + 64) + 4 + 1


def test_a_step_may_end_no_prompt(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Of a short piece nobody asks what comes next."""
    with engine(tiny("llama"), tokenizer, slots=2, chunk=32, paged=True) as (_, collected):
        collected.submit("long", LONG)
        assert collected.all(1)["long"][1].error is None
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


REQUESTS = st.fixed_dictionaries(
    {
        "length": st.integers(1, 150),
        "begins": st.integers(3, 5),
        "temperature": st.sampled_from([0.0, 0.7, 1.5]),
        "top_p": st.sampled_from([0.6, 0.95, 1.0]),
        "top_k": st.sampled_from([0, 0, 7]),
        "max_tokens": st.integers(1, 40),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.0, 1.3]),
        "logprobs": st.sampled_from([None, None, None, 2]),
        "stop": st.sampled_from([(), (), ("e",), ("w", "th")]),
    }
)


@settings(max_examples=30, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(requests=st.lists(REQUESTS, min_size=1, max_size=7), nucleus=st.sampled_from([2, 512]), tight=st.booleans())
def test_who_goes_ahead_of_its_tokens_says_the_same(
    tokenizer: Any, requests: list[dict[str, Any]], nucleus: int, tight: bool
) -> None:
    """Steps are launched before the last one's tokens are known, some of which turn out as others, or as the end."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_NUCLEUS", nucleus)  # with 2, hardly any token is known at once
        for paged in (False, True):
            kv_bytes = 320 * 2 * 4 * 2 * 8 * 4 if tight else 0  # the last three numbers are layers, heads and sizes
            with engine(tiny("llama"), tokenizer, slots=4, chunk=32, kv_bytes=kv_bytes, paged=paged) as (
                running,
                collected,
            ):
                for number, request in enumerate(requests):
                    own = dict(request)
                    prompt = [own.pop("begins"), *LONG[: own.pop("length")]]
                    collected.submit(str(number), prompt, seed=number, **own)
                ended = collected.all(len(requests))
                found.append({k: (text, last.finish_reason, last.tokens) for k, (text, last) in ended.items()})
                assert all(last.error is None for _, last in ended.values())
                assert PENDING not in [token for held in running._scheduler.cached for token in held]
                again = [*LONG, 4, 4]
                collected.submit("again", again)
                assert collected.all(1)["again"][1].error is None
    assert found[0] == found[1]


def once(right: Any, error: Exception, when: Any = lambda *_: True) -> Any:
    """``right``, but for one call, the third of those that are meant."""
    calls = 0

    def call(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += bool(when(*given))
        if calls == 3 and when(*given):
            calls += 1
            raise error
        return right(*given, **named)

    return call


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("error", [ValueError("once"), MemoryError()])
@pytest.mark.parametrize("place", ["decode", "draw", "copy"])
def test_what_fails_once_ends_no_answer(tokenizer: Any, place: str, error: Exception, paged: bool) -> None:
    """A step of several rows, the second draw of some, or a copy in the cache; with tokens that are not known yet."""
    said: list[dict[str, str]] = []
    failed: list[int] = []
    for failing in (False, True):
        with (
            pytest.MonkeyPatch.context() as patch,
            engine(tiny("llama"), tokenizer, slots=8, paged=paged) as (running, collected),
        ):
            patch.setattr(sampling, "_NUCLEUS", 20)
            if failing and place == "draw":
                whole = sampling._bounded
                wide = once(whole, error, lambda logits, *given: given[-1] == 300 and failed.append(0) is None)
                patch.setattr(sampling, "_bounded", wide)
            elif failing:
                runner: Any = running._runner
                several = {"decode": lambda tokens, *_: len(tokens) > 2, "copy": lambda *_: True}[place]
                patch.setattr(runner, place, once(getattr(runner, place), error, several))
            for number in range(4):
                collected.submit(str(number), LONG[:40], max_tokens=30, temperature=1.5, seed=number)
            ended = collected.all(4)
            assert [last.error for _, last in ended.values()] == [None] * 4
            said.append({name: text for name, (text, _) in ended.items()})
            if failing and place == "draw":
                assert failed
    assert said[0] == said[1]


def test_an_end_that_was_drawn_late_leaves_the_cache_right(tokenizer: Any) -> None:
    """What is asked next finds there what a fresh engine computes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_NUCLEUS", 2)
        with engine(tiny("llama"), tokenizer, slots=2, paged=True) as (running, collected):
            ends = frozenset(range(0, 300, 12))
            for seed in range(8):
                running._outputs.ends = ends
                prompt = [5 + seed, *LONG[:30]]
                collected.submit("first", prompt, temperature=1.5, seed=seed, max_tokens=60)
                collected.all(1)
                running._outputs.ends = frozenset()
                held = next(list(tokens) for tokens in running._scheduler.cached if tokens[:31] == prompt)
                found = []
                collected.submit("then", [*held, 7, 8, 9], max_tokens=3, logprobs=1)
                _, last = collected.all(1)["then"]
                assert last.cached_tokens >= len(held)
                found.append([token.logprob for token in last.logprobs])
                with engine(tiny("llama"), tokenizer, slots=2, paged=True) as (_, fresh):
                    fresh.submit("then", [*held, 7, 8, 9], max_tokens=3, logprobs=1)
                    found.append([token.logprob for token in fresh.all(1)["then"][1].logprobs])
                assert found[0]
                assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_twins_that_wait_again_and_come_back_say_the_same(tokenizer: Any) -> None:
    """One that lost its place comes back with all of its text in another's cache, while others are computed."""
    for seed in range(12):
        with engine(tiny("llama"), tokenizer, slots=8, chunk=8, paged=True) as (running, collected):
            running._outputs.ends = frozenset(range(0, 300, 37))
            running._scheduler._budget = 200 + 30 * (seed % 4)
            for number in range(7):
                own = {"max_tokens": 20 + 17 * ((seed + number) % 6), "seed": 7 if number % 2 else seed}
                collected.submit(str(number), LONG[:40], temperature=1.0, **own)
            ended = collected.all(7)
            assert all(last.error is None for _, last in ended.values())
            for number in (1, 3, 5):
                shorter, longer = sorted((ended["1"][0], ended[str(number)][0]), key=len)
                assert longer.startswith(shorter)


def test_cancelling_what_went_ahead_leaves_nothing(tokenizer: Any) -> None:
    with engine(tiny("llama"), tokenizer, slots=4, paged=True) as (running, collected):
        running._outputs.ends = frozenset()  # or one that is drawn by chance ends first
        for number in range(6):
            collected.submit(str(number), LONG[: 20 + number], max_tokens=400, temperature=1.0)
        for number in range(0, 6, 2):
            assert collected.next().finish_reason is None
            running.cancel(str(number))
        ended = {name: last for name, (_, last) in collected.all(6).items()}
        assert {name for name, last in ended.items() if last.finish_reason == "cancelled"} == {"0", "2", "4"}
        assert all(ended[name].tokens == 400 for name in "135")
        assert not running.running
        assert not running.queued


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_no_page_is_lost_nor_written_by_two(data: st.DataObject) -> None:
    """Each slot's text, written page by page, is what it should be after any order of writes, copies and drops."""
    slots, table = 4, PageTable(4, 12)
    texts: list[list[int]] = [[] for _ in range(slots)]
    memory = [[-1] * PAGE for _ in range(12)]
    clock = 0
    for _ in range(data.draw(st.integers(1, 25))):
        slot = data.draw(st.integers(0, slots - 1))
        match data.draw(st.sampled_from(["write", "write", "share", "drop"])):
            case "write":
                start = data.draw(st.integers(0, len(texts[slot])))
                end = start + data.draw(st.integers(1, 2 * PAGE))
                before = [list(pages) for pages in table.pages], table.free
                try:
                    copies = table.write(slot, start, end)
                except OutOfPages:
                    assert before == ([list(pages) for pages in table.pages], table.free)
                    continue
                for source, to in copies:
                    memory[to] = list(memory[source])
                clock += 1
                for at in range(start, end):
                    memory[table.pages[slot][at // PAGE]][at % PAGE] = clock
                texts[slot] = texts[slot][:start] + [clock] * (end - start)
            case "share":
                source = data.draw(st.integers(0, slots - 1))
                tokens = data.draw(st.integers(0, len(texts[source])))
                table.share(source, slot, tokens)
                texts[slot] = texts[source][:tokens]
            case "drop":
                table.drop(slot)
                texts[slot] = []
        for held, pages in zip(texts, table.pages, strict=True):
            assert [memory[pages[at // PAGE]][at % PAGE] for at in range(len(held))] == held
        taken = {page for pages in table.pages for page in pages}
        assert SCRATCH not in taken
        assert table.free == 11 - len(taken)
