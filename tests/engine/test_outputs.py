"""What an answer is told and how it ends: loops, bounded reasoning, marks that stay in the text."""

from typing import Any

import torch
from tiny import Collected, tiny

from llmsvc.engine import Engine, FinishReason, GenerationRequest, SamplingParams
from llmsvc.engine.request import ThinkingLimit

WORDS = [500 + n for n in range(7)]


def always(tokens: list[int]) -> Any:
    """A tiny model that says these tokens again and again, whatever it is asked."""
    model = tiny("llama")
    model.resize_token_embeddings(49_152, mean_resizing=False)

    def says(_: Any, given: Any, named: dict[str, Any], output: Any) -> Any:
        logits = torch.full_like(output.logits, -5.0)
        positions = named["position_ids"][0, -logits.shape[1] :].tolist()
        for place, position in enumerate(positions):
            logits[:, place, tokens[position % len(tokens)]] = 5.0
        output.logits = logits
        return output

    model.register_forward_hook(says, with_kwargs=True)
    return model


def test_an_answer_that_repeats_itself_for_ever_ends_and_says_so(tokenizer: Any) -> None:
    engine = Engine(always(WORDS), tokenizer, window=2048)
    try:
        collected = Collected(engine)
        collected.submit("loop", [5, 6, 7], max_tokens=1500)
        text, last = collected.all(1)["loop"]
        assert last.finish_reason is FinishReason.REPETITION
        assert 280 <= last.tokens < 400
        assert text
        collected.submit("bound", [5, 6, 7], max_tokens=1500, regex="(?s:.)*")
        assert collected.all(1)["bound"][1].finish_reason is not FinishReason.REPETITION
    finally:
        engine.close()


def test_reasoning_without_an_end_is_ended(tokenizer: Any) -> None:
    """After so many tokens the closing ones follow, then the model's own; one that ended by itself is left alone."""
    engine = Engine(always(WORDS), tokenizer, window=2048)
    closing = tuple(tokenizer.encode("</think>", add_special_tokens=False))
    answers: dict[str, list[str]] = {}
    limits = {
        "bound": ThinkingLimit(10, ("</think>",), closing),
        "over": ThinkingLimit(10, ("</think>", tokenizer.decode([WORDS[3]])), closing),
        "opened": ThinkingLimit(10, ("</think>",), closing, ("<think>", tokenizer.decode([WORDS[2]]).strip())),
        "words": ThinkingLimit(10, ("</think>",), closing, ("<think>",)),
    }
    try:
        for name, limit in limits.items():
            collected = Collected(engine)
            sampling = SamplingParams(temperature=0, max_tokens=40)
            engine.submit(GenerationRequest(name, (5, 6, 7), sampling, collected._queue.put, thinking=limit))
            answers[name] = [collected.all(1)[name][0]]
    finally:
        engine.close()
    before, _, behind = answers["bound"][0].partition("</think>")
    assert before == tokenizer.decode([WORDS[(2 + n) % 7] for n in range(10)])
    assert behind
    assert "</think>" not in answers["over"][0]
    assert "</think>" not in answers["words"][0]  # it began with none
    before, _, behind = answers["opened"][0].partition("</think>")
    assert before == tokenizer.decode([WORDS[(2 + n) % 7] for n in range(11)])  # the mark is not counted
    assert behind


def test_reasoning_within_a_grammar_is_ended_as_far_as_that_allows(tokenizer: Any) -> None:
    engine = Engine(always(WORDS), tokenizer, window=2048)
    closing = tuple(tokenizer.encode("</think>\n\nSo", add_special_tokens=False))
    try:
        collected = Collected(engine)
        grammar = 'start: «…</think>» "\\n\\nYes"\n'
        sampling = SamplingParams(temperature=0, max_tokens=60, grammar=grammar)
        limit = ThinkingLimit(10, ("</think>",), closing)
        engine.submit(GenerationRequest("a", (5, 6, 7), sampling, collected._queue.put, thinking=limit))
        text, last = collected.all(1)["a"]
    finally:
        engine.close()
    assert text.endswith("</think>\n\nYes")
    assert last.tokens < 30


def test_special_tokens_that_are_marks_stay_in_the_text(tokenizer: Any) -> None:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    engine = Engine(always([start, 500, 501, start]), tokenizer, window=512)
    engine._outputs.ends = frozenset({end})
    texts = {}
    try:
        for marks in ((), ("<|im_start|>",)):
            collected = Collected(engine)
            sampling = SamplingParams(temperature=0, max_tokens=8)
            engine.submit(GenerationRequest("a", (5,), sampling, collected._queue.put, marks=marks))
            texts[marks] = collected.all(1)["a"][0]
    finally:
        engine.close()
    assert "<|im_start|>" not in texts[()]
    assert texts[("<|im_start|>",)].replace("<|im_start|>", "") == texts[()]
    assert texts[("<|im_start|>",)].count("<|im_start|>") == 4
