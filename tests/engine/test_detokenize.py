"""Special tokens in an answer's text: kept where a reader needs them, never shown elsewhere."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from llmsvc.engine.detokenize import Detokenizer

MARKS = ("<|channel|>", "<｜sep▁mark｜>")


@pytest.fixture(scope="module")
def marked(tokenizer: Any) -> Any:
    """The real tokenizer with more special tokens, one of them special by its name alone."""
    more = copy.deepcopy(tokenizer)
    more.add_tokens([AddedToken(text, special=True) for text in (*MARKS, "<|hidden|>")], special_tokens=True)
    more.add_tokens(["<think>", "<named>"])
    more.pad_token = "<named>"
    return more


def shown(tokenizer: Any, text: str, marks: tuple[str, ...] = ()) -> str:
    detokenizer = Detokenizer(tokenizer, marks=marks)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return "".join([*(detokenizer.push(token) for token in ids), detokenizer.finish()])


def test_marks_are_kept_and_nothing_else_that_is_special(marked: Any) -> None:
    text = "<|im_start|><|channel|>analysis é<|hidden|>👍🏽<｜sep▁mark｜> x<named><think>y<|im_end|>"
    assert shown(marked, text, MARKS) == "<|channel|>analysis é👍🏽<｜sep▁mark｜> x<think>y"
    assert shown(marked, text, MARKS[:1]) == "<|channel|>analysis é👍🏽 x<think>y"
    assert shown(marked, text) == "analysis é👍🏽 x<think>y"


@settings(max_examples=60)
@given(st.lists(st.sampled_from([*MARKS, "<|hidden|>", "a", " b", "é", "👩‍👩‍👧", "\n"]), max_size=8))
def test_marks_change_no_other_text(marked: Any, parts: list[str]) -> None:
    words = "".join(part for part in parts if part not in (*MARKS, "<|hidden|>"))
    text = shown(marked, "".join(parts), MARKS)
    assert text == "".join(part for part in parts if part != "<|hidden|>")
    for mark in MARKS:
        text = text.replace(mark, "")
    assert text == words == shown(marked, "".join(parts))
