"""What an engine is asked for, and how its answer is read: with the embedded model, told to think by its template."""

import asyncio
import copy
from pathlib import Path
from typing import Any

import pytest
from formats import small
from thinker import ANSWER, TEMPLATE, THOUGHT

from llmsvc.chat import context, options
from llmsvc.chat.asking import AS_MADE, Manner, bound_to_calls, reader, rendered, request
from llmsvc.chat.completions import Ask, _chat
from llmsvc.chat.idle import at_once
from llmsvc.chat.past import Attics
from llmsvc.chat.thought import Thought, read
from llmsvc.chat.transfer import message, parted
from llmsvc.engine import Engine, FinishReason, SamplingParams, TokenEvent
from llmsvc.errors import BadRequest
from llmsvc.formats import templates
from llmsvc.formats.tools import Tool, Tools
from llmsvc.models.loader import LoadedModel, load
from llmsvc.models.pooled import PooledModel
from llmsvc.models.remote import Estimate

ASKED = [{"role": "user", "content": "What is the capital of France?"}]
OPTIONS = options.merged({"temperature": 0, "max_tokens": 60})
OPENS_ITSELF = TEMPLATE.replace("assistant\n<think>\n", "assistant\n").replace(
    "{{ '\n</think>", "{{ '<think>\n\n</think>"
)
"""As Qwen3's: the model writes the first mark, unless thinking is off."""
TOOL = Tool("weather", "Of a city.", {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}})


@pytest.fixture(scope="module")
def thinks(tokenizer: Any) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = TEMPLATE
    return changed


@pytest.fixture(scope="module")
def opens(tokenizer: Any) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = OPENS_ITSELF
    return changed


@pytest.mark.parametrize("mode", ["", "on", "off"])
def test_a_budget_changes_nothing_about_whether_a_model_thinks(opens: Any, thinks: Any, mode: str) -> None:
    for tokenizer in (opens, thinks):
        free = rendered(tokenizer, ASKED, Manner.of({**OPTIONS, "thinking": mode}, tokenizer))
        bounded = Manner.of({**OPTIONS, "thinking": mode, "thinking_budget": 8}, tokenizer)
        assert rendered(tokenizer, ASKED, bounded) == free


def test_a_budget_begins_where_the_reasoning_does(loaded: Any, opens: Any) -> None:
    from dataclasses import replace

    def limit(tokenizer: Any, **more: Any) -> Any:
        prompt = rendered(tokenizer, ASKED, **more)
        model = replace(loaded, tokenizer=tokenizer)
        return request("1", model, (), options.sampling(OPTIONS), print, prompt=prompt, budget=8).thinking

    assert limit(loaded.tokenizer).opens == ()
    assert limit(opens).opens == ("<think>",)  # the model opens it, and may not
    assert limit(opens, reasoning="I").opens == ()
    assert limit(opens, answer="Paris") is None
    gemma = copy.deepcopy(opens)
    gemma.chat_template = small.GEMMA_4
    assert limit(gemma).until == ("<channel|>", "<|tool_call>")  # a call ends it as well


def test_a_model_on_another_server_goes_on_with_words_only() -> None:
    remote = LoadedModel(None, Estimate(), "remote", "", 8000, 0, False)
    pooled = PooledModel("remote:some", "none", "remote", remote=True)
    begun = {"role": "assistant", "content": "", "reasoning": "I think"}
    chosen = options.merged()
    wanted = _chat(pooled, remote, Ask("remote:some", [*ASKED, begun]), chosen, options.sampling(chosen))
    assert (wanted.source, wanted.prompt.opened) == (tuple(ASKED), False)


def test_a_model_on_another_server_is_not_told_how_to_think() -> None:
    for values in ({"thinking": "high"}, {"thinking": "off"}, {"thinking_budget": 5}):
        with pytest.raises(BadRequest, match="decides itself how it thinks"):
            options.check_remote("remote:some", values)
        options.check_remote("some", values)
    options.check_remote("remote:some", {"thinking": "", "thinking_budget": 0})


def test_an_answer_of_a_form_begins_behind_the_reasoning(thinks: Any) -> None:
    bound = Manner.of({**OPTIONS, "regex": "yes|no", "thinking": "on"}, thinks)
    prompt = rendered(thinks, ASKED, bound)
    assert prompt.text.endswith("<think>\n\n</think>\n\n")
    assert reader(prompt).push("yes").text + reader(prompt).finish().text == "yes"


@pytest.mark.parametrize("template", [small.QWEN, small.QWEN_OPEN, small.DEEPSEEK, small.HARMONY, small.SEED])
def test_what_nobody_waits_for_is_answered_at_once(tokenizer: Any, template: str) -> None:
    """Titles and summaries: with no words of reasoning to begin with, whatever the family does."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    prompt = rendered(changed, ASKED, at_once(changed))
    said = reader(prompt)
    first, last = said.push("Cat Not Eating"), said.finish()
    assert (first.text + last.text, first.reasoning + last.reasoning) == ("Cat Not Eating", "")
    assert not prompt.opened
    assert not prompt.text.rstrip().endswith(prompt.family.reasoning.opens[:1])


def test_modes_come_as_near_as_a_model_can() -> None:
    switch, efforts = ("off", "on"), ("low", "medium", "high")
    assert [options.nearest(mode, switch) for mode in ("", "off", "on", "low", "high")] == ["", "off", "on", "on", "on"]
    assert [options.nearest(mode, efforts) for mode in ("", "off", "on", "high")] == ["", "low", "medium", "high"]
    assert [options.nearest(mode, ()) for mode in options.MODES] == [""] * 5
    with pytest.raises(BadRequest, match=r"Qwen knows no thinking .low.\. Choose one of off, on"):
        options.check_mode("low", switch, "Qwen")
    with pytest.raises(BadRequest, match="no modes of thinking"):
        options.check_mode("off", (), "SmolLM2")


def test_what_a_model_brings_is_taken_within_bounds() -> None:
    brought = options.brought({"temperature": 0.6, "top_k": 20.0, "top_p": 7, "max_length": 9, "min_p": None})
    assert brought == {"temperature": 0.6, "top_k": 20}


def test_older_answers_have_both_in_their_content() -> None:
    old = message("assistant", f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}", "t")
    assert parted(old) == (THOUGHT, ANSWER)
    assert parted(message("assistant", "<think>cut", "t")) == ("cut", "")
    assert parted(message("user", "<think>mine</think>", "t")) == ("", "<think>mine</think>")
    assert parted(message("assistant", ANSWER, "t", reasoning=THOUGHT)) == (THOUGHT, ANSWER)


def test_tokens_and_seconds_of_the_reasoning_are_counted(thinks: Any) -> None:
    said, thought = reader(rendered(thinks, ASKED)), Thought()
    thought.begin(opened=True)
    for number, piece in enumerate(("Let", " me", " see.", "\n", "</think>", "\n\n", "Paris", "."), 1):
        thought.take(read(said, TokenEvent("", piece, number)), number, now=10.0 + number)
    assert (thought.tokens, thought.seconds, thought.running) == (6, 6.0, False)
    assert thought.left(10) == 4
    assert thought.left(0) == 0
    thought.begin(opened=False)
    thought.take(read(None, TokenEvent("", " It", 1)), 1, now=30.0)
    assert (thought.tokens, thought.seconds) == (6, 6.0)


def test_the_ledger_sums_up_with_reasoning_that_goes_on(thinks: Any) -> None:
    answer = {"id": "a1", "role": "assistant", "content": ANSWER, "reasoning": THOUGHT, "context": {}, "sources": []}
    older = [{**answer, "depth": 2}, {"id": "u1", "role": "user", "content": "Hi", "depth": 1}]
    prompt = context.build(
        thinks,
        2048,
        "Be brief.",
        older,
        "And so?",
        depth=3,
        reasoning=THOUGHT[:20],
        cuts=lambda _: None,
        attics=Attics(),
    )
    ledger = prompt.ledger
    assert sum(getattr(ledger, part) for part in context.PARTS) == ledger.prompt == len(prompt.tokens)
    text = thinks.decode(prompt.tokens)
    assert text.endswith(f"<think>\n{THOUGHT[:20]}")
    assert text.count(THOUGHT[:20]) == 1  # the template leaves the earlier reasoning out
    assert prompt.rendered.opened


@pytest.fixture(scope="module")
def loaded(model_dir: Path, thinks: Any) -> Any:
    from dataclasses import replace

    return replace(load(model_dir, "cpu", "none", lambda *_: None), tokenizer=thinks)


def answer_of(loaded: Any, sampling: SamplingParams, prompt: Any, budget: int = 0) -> list[TokenEvent]:
    """The events of a real answer."""

    async def ask() -> list[TokenEvent]:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[TokenEvent]()
        engine = Engine(loaded.model, loaded.tokenizer, window=1024, slots=1)
        tokens = templates.encode(loaded.tokenizer, prompt)
        deliver = lambda event: loop.call_soon_threadsafe(events.put_nowait, event)  # noqa: E731
        try:
            engine.submit(request("1", loaded, tokens, sampling, deliver, prompt=prompt, budget=budget))
            got = [await events.get()]
            while got[-1].finish_reason is None:
                got.append(await events.get())
            return got
        finally:
            engine.close()

    return asyncio.run(ask())


def test_a_real_answer_has_its_reasoning_ended_and_goes_on(loaded: Any) -> None:
    """The model never learnt to think: it would not end by itself."""
    manner = Manner.of({**OPTIONS, "thinking_budget": 12}, loaded.tokenizer)
    story = [{"role": "user", "content": "Write a long story about a lighthouse and the sea."}]
    prompt = rendered(loaded.tokenizer, story, manner)
    said, thought, words, reasoning = reader(prompt), Thought(), "", ""
    thought.begin(prompt.opened)
    for event in answer_of(loaded, options.sampling(OPTIONS), prompt, budget=12):
        new = read(said, event)
        thought.take(new, event.tokens, 0.0)
        words, reasoning = words + new.text, reasoning + new.reasoning
    assert 12 <= thought.tokens <= 20  # with the marks behind
    assert reasoning
    assert words.strip()
    assert "think>" not in words + reasoning


def test_a_real_answer_is_bound_to_the_calls_of_its_family(loaded: Any) -> None:
    tools = Tools((TOOL,), "weather")
    off = Manner.of({**OPTIONS, "thinking": "off"}, loaded.tokenizer)
    prompt = rendered(loaded.tokenizer, [{"role": "user", "content": "Oslo?"}], off, tools=tools.tools)
    sampling = bound_to_calls(options.sampling(OPTIONS), prompt, tools, remote=False)
    said = reader(prompt, tools.tools)
    events = answer_of(loaded, sampling, prompt)
    read_all = [read(said, event) for event in events]
    (call,) = [call for one in read_all for call in one.calls]
    assert (call.name, events[-1].finish_reason) == ("weather", FinishReason.STOP)
    assert "".join(one.text for one in read_all).strip() == ""
    assert AS_MADE.thinking.mode == ""


def test_a_real_answer_that_must_be_a_call_has_its_reasoning_bounded_too(loaded: Any) -> None:
    tools = Tools((TOOL,), "weather")
    prompt = rendered(loaded.tokenizer, [{"role": "user", "content": "Tell me a long story."}], tools=tools.tools)
    sampling = bound_to_calls(options.sampling(OPTIONS), prompt, tools, remote=False)
    said = reader(prompt, tools.tools)
    read_all = [read(said, event) for event in answer_of(loaded, sampling, prompt, budget=12)]
    assert [call.name for one in read_all for call in one.calls] == ["weather"]
    assert "".join(one.reasoning for one in read_all)
