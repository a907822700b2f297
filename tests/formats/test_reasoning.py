"""Answers of thinking models, whole and in pieces: what is reasoning, what is said, and no marks in either."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsvc.formats.families import PLAIN_TEMPLATE, family_of
from llmsvc.formats.reader import AnswerReader, closing
from llmsvc.formats.said import Said
from llmsvc.formats.tools import Tool

TOOL = Tool("weather", "", {"type": "object", "properties": {"city": {"type": "string"}}})
QWEN = "<|im_start|>assistant\n<think>\n</think>\n\n<tool_call>"
# Templates stand here by the marks that a reader is chosen by.
ANSWERS = {
    "Qwen 3": (QWEN, "<think>\nTwo and two.\nFour.\n</think>\n\nIt is 4.", False),
    "Qwen 3 thinking": (QWEN, "Two and two.\nFour.\n</think>\n\nIt is 4.", True),
    "DeepSeek R1": ("<｜Assistant｜><think>\n</think>", "Two and two.\nFour.\n</think>\n\nIt is 4.", True),
    "DeepSeek V3.1": ("<｜Assistant｜></think>", "Two and two.\nFour.</think>It is 4.", True),
    "GLM 4.6": ("[gMASK]<sop><|assistant|>\n<think></think>", "\n<think>Two and two.\nFour.</think>\nIt is 4.", False),
    "Kimi K2": (
        "<|im_middle|><think></think><|tool_calls_section_begin|>",
        "<think>Two and two.\nFour.</think>It is 4.",
        False,
    ),
    "opened twice": (QWEN, "<think>\nTwo and two.\nFour.\n</think>\nIt is 4.", True),
    "Gemma 4": ("<|turn>model\n<|channel>", "<|channel>thought\nTwo and two.\nFour.<channel|>It is 4.", False),
    "Magistral": ("[SYSTEM_PROMPT][THINK][/THINK]", "[THINK]Two and two.\nFour.[/THINK]It is 4.", False),
    "Seed-OSS": ("<seed:think>", "<seed:think>Two and two.\nFour.</seed:think>It is 4.", False),
    "Seed-OSS, counting": (
        "<seed:think>",
        "<seed:think>Two and two.\n<seed:cot_budget_reflect>Four.</seed:cot_budget_reflect></seed:think>It is 4.",
        False,
    ),
    "Command A": (
        "<|START_THINKING|><|START_RESPONSE|>",
        "<|START_THINKING|>Two and two.\nFour.<|END_THINKING|><|START_RESPONSE|>It is 4.<|END_RESPONSE|>",
        False,
    ),
    "Command A+": (
        "<|START_THINKING|><|START_TEXT|>",
        "Two and two.\nFour.<|END_THINKING|><|START_TEXT|>It is 4.<|END_TEXT|>",
        True,
    ),
    "Granite 3.2": (
        "after 'Here is my thought process:'",
        "Here is my thought process:\n\nTwo and two.\nFour.\n\nHere is my response:\n\nIt is 4.",
        False,
    ),
    "Granite 3.2, short": (
        "after 'Here is my thought process:'",
        "Here's my thought process: Two and two.\nFour. Here's my response: It is 4.",
        False,
    ),
    "Granite 3.3": (
        "<think></think> and <response></response>",
        "<think>Two and two.\nFour.</think>\n\n<response>It is 4.</response>",
        False,
    ),
    "Ernie 4.5": (
        "'<think>\\n' '</think>\\n\\n<response>\\n'",
        "Two and two.\nFour.\n</think>\n\n<response>\nIt is 4.\n</response>\n",
        True,
    ),
    "Hunyuan": (
        "<think>\n</think>\n<answer>\n",
        "<think>\nTwo and two.\nFour.\n</think>\n<answer>\nIt is 4.\n</answer>",
        False,
    ),
    "Apertus": ("<|inner_prefix|>", "<|inner_prefix|>Two and two.\nFour.<|inner_suffix|>It is 4.", False),
    "EXAONE Deep": ("[|assistant|]<thought>\n</thought>", "Two and two.\nFour.\n</thought>\n\nIt is 4.", True),
    "MiniMax M3": ("<mm:think>", "<mm:think>Two and two.\nFour.</mm:think>It is 4.", False),
    "LongCat": ("<longcat_think>", "Two and two.\nFour.\n</longcat_think>\nIt is 4.", True),
    "gpt-oss": (
        "<|channel|><|message|>",
        "<|channel|>analysis<|message|>Two and two.\nFour.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.",
        False,
    ),
    "of which nothing is known": ("", "<think>\nTwo and two.\nFour.\n</think>\n\nIt is 4.", False),
}
EACH = pytest.mark.parametrize("name", ANSWERS)


def read(
    template: str, *pieces: str, tools: tuple[Tool, ...] = (), opened: bool = False, continued: bool = False
) -> Said:
    """What the pieces of an answer say together."""
    reader = AnswerReader(family_of(template), tools, opened=opened, continued=continued)
    said = [*(reader.push(piece) for piece in pieces), reader.finish()]
    calls = tuple(call for one in said for call in one.calls)
    return Said("".join(one.text for one in said), "".join(one.reasoning for one in said), calls)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]


@EACH
def test_reasoning_is_told_apart(name: str) -> None:
    template, answer, opened = ANSWERS[name]
    assert read(template, answer, opened=opened) == Said("It is 4.", "Two and two.\nFour.")
    assert read(template, *answer, opened=opened) == Said("It is 4.", "Two and two.\nFour.")


@EACH
def test_tools_change_nothing_about_it(name: str) -> None:
    template, answer, opened = ANSWERS[name]
    assert read(template, *answer, opened=opened, tools=(TOOL,)) == Said("It is 4.", "Two and two.\nFour.")


@given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(0, 500), max_size=12), st.integers(0, 500))
def test_pieces_and_ends_of_any_size(name: str, places: list[int], end: int) -> None:
    template, answer, opened = ANSWERS[name]
    part = answer[: end % (len(answer) + 1)]
    assert read(template, *cut(part, places), opened=opened) == read(template, part, opened=opened)


@given(
    st.sampled_from(sorted(ANSWERS)),
    st.text(alphabet="<>|[]/ \nthinkaHer:", max_size=40),
    st.lists(st.integers(0, 100), max_size=8),
)
def test_what_is_no_mark_is_kept(name: str, words: str, places: list[int]) -> None:
    template, _, _ = ANSWERS[name]
    marks = family_of(template).marks
    if any(mark in words for mark in marks):
        return
    said = read(template, *cut(words, places))
    assert said == Said(words)


@EACH
def test_a_mark_that_the_end_cuts_is_kept(name: str) -> None:
    template, _, _ = ANSWERS[name]
    format_ = family_of(template).reasoning
    assert format_ is not None
    mark = "<|channel|>" if format_.name == "harmony" else format_.closes[0]
    half = mark[: len(mark) // 2]
    assert read(template, *f"It is 4. {half}").text == f"It is 4. {half}"
    assert read(template, *f"Well, {half}", opened=True).reasoning == f"Well, {half}"


def test_reasoning_without_an_end() -> None:
    assert read(QWEN, *"<think>\nTwo and") == Said(reasoning="Two and")
    assert read(QWEN, *"Two and\n", opened=True) == Said(reasoning="Two and")


def test_an_answer_may_speak_of_marks() -> None:
    said = "Qwen writes <think> and </think> around its thoughts."
    assert read(QWEN, *said) == Said(said)
    assert read(QWEN, *f"<think>\nHm.\n</think>\n\n{said}") == Said(said, "Hm.")
    xml = "An <answer> ends in </answer>, always."
    assert read("<think><answer>", *f"<think>\nHm.\n</think>\n<answer>\n{xml}\n</answer>") == Said(xml, "Hm.")


def test_white_space_that_is_the_answers_own() -> None:
    code = "    indented\n\ncode  "
    assert read(QWEN, *code) == Said(code)
    assert read(QWEN, *f"<think>\nHm.\n</think>\n\n{code}") == Said(code, "Hm.")
    assert read(QWEN, *" world", continued=True) == Said(" world")
    assert read(QWEN, *" and two.\n</think>\n\nIt is 4.", opened=True, continued=True) == Said("It is 4.", " and two.")


def test_no_reasoning_at_all() -> None:
    assert read(QWEN, *"<think>\n\n</think>\n\nIt is 4.") == Said("It is 4.")
    assert read("<|channel>", *"<|channel>thought\n<channel|>It is 4.") == Said("It is 4.")
    assert read("[THINK]", *"[THINK][/THINK]It is 4.") == Said("It is 4.")


def test_special_tokens_open_reasoning_anywhere() -> None:
    said = read("[THINK]", *"Wait. [THINK]One.[/THINK]So. [THINK]Two.[/THINK]It is 4.")
    assert said == Said("Wait. So. It is 4.", "One.\n\nTwo.")


def test_a_second_part_of_the_reasoning_is_apart_even_if_the_end_cuts_it() -> None:
    assert read("<|channel>", *"<|channel>thought\nA<channel|>Hi<|channel>thought\n<chan").reasoning == "A\n\n<chan"


def test_a_call_ends_reasoning_that_was_left_open() -> None:
    marks = "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
    answer = f'I look. {marks}{{"city": "Rome"}}<|tool_call_end|><|tool_calls_section_end|>'
    template = "<|im_middle|><think></think><|tool_calls_section_begin|><|tool_call_begin|><|tool_call_argument_begin|>"
    said = read(template, *answer, opened=True, tools=(TOOL,))
    assert (said.text, said.reasoning) == ("", "I look.")
    assert [(call.name, call.arguments) for call in said.calls] == [("weather", '{"city": "Rome"}')]


def test_a_call_behind_reasoning() -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    said = read(QWEN, *f"<think>\nI look.\n</think>\n\n{call}", tools=(TOOL,))
    assert (said.text, said.reasoning, [call.name for call in said.calls]) == ("", "I look.", ["weather"])


def test_marks_of_calls_that_nobody_asked_for_are_not_shown() -> None:
    template = "[AVAILABLE_TOOLS][TOOL_CALLS][ARGS][THINK]"
    assert "[TOOL_CALLS]" in family_of(template).marks
    assert read(template, *"[TOOL_CALLS]weather[ARGS]{}").text == "weather{}"


@EACH
def test_reasoning_can_be_ended_by_force(name: str) -> None:
    template, _, _ = ANSWERS[name]
    forced = f"Two and{closing(family_of(template))}It is 4."
    assert read(template, *forced, opened=True) == Said("It is 4.", "Two and")


def test_base_models_have_no_marks() -> None:
    plain = family_of(PLAIN_TEMPLATE)
    assert (plain.reasoning, closing(plain)) == (None, "")
    assert read(PLAIN_TEMPLATE, *"<think>Hm.</think>") == Said("<think>Hm.</think>")
