"""The KV cache of a GPU, in pages: as far as it can be seen on a CPU, where attention goes without kernels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIGS, Collected, tiny

from llmsvc.engine import Engine
from llmsvc.engine.embed import embed
from llmsvc.engine.paged_attention import PAGE
from llmsvc.engine.paged_runner import PagedRunner, can_follow, fused, says_the_same
from llmsvc.engine.pages import SCRATCH, OutOfPages, PageTable, pages_of
from llmsvc.engine.runner import Runner

LONG = [(7 * n) % 290 + 3 for n in range(3 * PAGE)]


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
    runner, plain = PagedRunner(model, 3, 512, 2048), Runner(model, 3, 512)
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
