"""Calls of tools, read from what models of every family write, however it arrives."""

import json
import time
from itertools import pairwise

import pytest
from calls_published import SAMPLES, TOOLS, Sample, tool

from llmsvc.formats.calls import CallFormat, as_text, call_format_of, compact
from llmsvc.formats.tools import Tool, Tools

FORMATS = {known.name: known for known in (call_format_of(sample.template) for sample in SAMPLES)}
PLAIN = FORMATS["plain"]


def read(known: CallFormat, text: str, cuts: list[int] | None = None) -> tuple[str, list[tuple[str, dict]]]:
    """What is shown and what is called, of a text that comes in pieces."""
    reader, words, calls = known.reader(TOOLS), "", []
    for start, end in pairwise([0, *(cuts or ()), len(text)]):
        more, found = reader.push(text[start:end])
        words, calls = words + more, calls + found
    more, found = reader.finish()
    return words + more, [(call.name, json.loads(call.arguments)) for call in calls + found]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_published_answers_are_read_whole_and_by_single_characters(sample: Sample) -> None:
    known = call_format_of(sample.template)
    assert known.name == sample.format
    assert read(known, sample.text) == (sample.words, sample.calls)
    assert read(known, sample.text, list(range(len(sample.text)))) == (sample.words, sample.calls)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_no_part_of_a_call_is_shown_while_it_comes(sample: Sample) -> None:
    reader, words = call_format_of(sample.template).reader(TOOLS), ""
    for character in sample.text:
        words += reader.push(character)[0]
        assert sample.words.startswith(words)


def test_there_are_enough_formats() -> None:
    assert len({sample.name for sample in SAMPLES}) >= 33
    assert len(FORMATS) >= 33


def test_words_are_shown_as_soon_as_they_are_certain() -> None:
    reader = FORMATS["hermes"].reader(TOOLS)
    assert [reader.push(piece)[0] for piece in ("Hello ", "<", "b> <tool", "box>")] == [
        "Hello ",
        "",
        "<b> ",
        "<toolbox>",
    ]


@pytest.mark.parametrize(
    ("text", "words", "calls"),
    [
        ('<tool_call>{"name": "now"', '<tool_call>{"name": "now"', []),
        ('<tool_call>{"name": "now", "arguments": 7}</tool_call>', None, []),
        ('<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', None, []),
        ("<tool_call> is a mark.", None, []),
        ('{"answer": 42}', None, []),
        ("[1, 2]", None, []),
        ('{"name": "now", "arguments": {}, "age": 7}', None, []),
        ('I am {"name": "nobody"} and {"name": 7}.', None, []),
        ("```python\nprint(1)\n```", None, []),
        ("```json\n{}\n```\nDone.", None, []),
        (
            '<tool_call>{"name": "now", "arguments": {}</tool_call> <tool_call>{"name": "now"}</tool_call>',
            '<tool_call>{"name": "now", "arguments": {}</tool_call> ',
            [("now", {})],
        ),
        (
            '<tool_call>{"name": "run", "arguments": {"command": "x</tool_call>\n'
            '<tool_call>{"name": "now"}</tool_call>',
            '<tool_call>{"name": "run", "arguments": {"command": "x</tool_call>\n',
            [("now", {})],
        ),
        ('<tool_call>{"name": "now"}}</tool_call>', "}</tool_call>", [("now", {})]),
        ('<tool_call>{"name": "now"}<tool_call>{"name": "now"}', "", [("now", {}), ("now", {})]),
        ('<tool_call>{"name": "add", "arguments": {"a": NaN, "b": 1e999}}</tool_call>', None, []),
        ('{"name": "run", "arguments": {"command": "a\nb"}}', "", [("run", {"command": "a\nb"})]),
        ("", "", []),
    ],
)
def test_bad_calls_are_shown_and_good_ones_read(text: str, words: str | None, calls: list) -> None:
    expected = (text if words is None else words, calls)
    assert read(PLAIN, text) == expected
    assert read(PLAIN, text, list(range(len(text)))) == expected


def test_values_have_the_types_of_the_schema() -> None:
    kinds = {
        "zip": {"type": "string"},
        "count": {"type": "integer"},
        "share": {"type": "number"},
        "on": {"type": "boolean"},
        "rows": {"type": "array"},
        "maybe": {"type": ["string", "null"]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "mode": {"enum": ["1", "2"]},
        "item": {"$ref": "#/$defs/Item"},
        "any": {},
    }
    keep = tool("keep", **kinds)
    keep.parameters["$defs"] = {"Item": {"type": "object"}}
    written = {
        "zip": "007",
        "count": "7.0",
        "share": "2",
        "on": "True",
        "rows": "['a', 1, None]",
        "maybe": "null",
        "either": "null",
        "mode": "1",
        "item": '{"a": {"b": [true]}}',
        "any": "[1]",
        "unknown": "x y",
    }
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in written.items())
    (call,) = FORMATS["qwen-xml"].reader([keep]).push(f"<tool_call>\n<function=keep>\n{inner}</function>")[1]
    assert json.loads(call.arguments) == {
        "zip": "007",
        "count": 7,
        "share": 2,
        "on": True,
        "rows": ["a", 1, None],
        "maybe": None,
        "either": None,
        "mode": "1",
        "item": {"a": {"b": [True]}},
        "any": [1],
        "unknown": "x y",
    }
    (call,) = FORMATS["pythonic"].reader([keep]).push("[keep(zip=007, count='7', any=San Francisco, CA, on=true)]")[1]
    assert json.loads(call.arguments) == {"zip": "007", "count": 7, "any": "San Francisco, CA", "on": True}


def test_ids_are_what_templates_take() -> None:
    reader = FORMATS["mistral-v11"].reader(TOOLS)
    (call,) = reader.push("[TOOL_CALLS]now[ARGS]{}")[1]
    assert len(call.id) == 9
    assert call.id.isalnum()
    (call,) = FORMATS["mistral-ids"].reader(TOOLS).push("[TOOL_CALLS]now[CALL_ID]a1b2c3d4e[ARGS]{}")[1]
    assert call.id == "a1b2c3d4e"
    text = "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>{}"
    (call,) = FORMATS["kimi-k2"].reader(TOOLS).push(text)[1]
    assert call.id == "functions.now:3"
    calls = FORMATS["hermes"].reader(TOOLS).push('<tool_call>[{"name": "now"}, {"name": "now"}]</tool_call>')[1]
    assert len({call.id for call in calls}) == 2


@pytest.mark.parametrize(
    ("name", "begin", "more"),
    [
        ("hermes", '<tool_call>{"name": "run", "arguments": {"command": "', "x"),
        ("hermes", '<tool_call>{"name": "run", "arguments": {"command": "', "</tool_call>"),
        ("hermes", "", '<tool_call>{"'),
        ("qwen-xml", "<tool_call><function=run><parameter=command>", "</function>"),
        ("qwen-xml", "", "<tool_call><function=run><parameter=command>"),
        ("pythonic", "[run(", "["),
        ("gemma-4", "<|tool_call>call:run", "{a:"),
        ("lfm2", "<|tool_call_start|>[run(command='", "'<|tool_call_end|>"),
        ("plain", "", "{"),
        ("plain", "", "\n"),
        ("hermes", "<tool_call>", " "),
    ],
)
def test_what_never_ends_is_shown(name: str, begin: str, more: str) -> None:
    text = begin + more * (1_500_000 // len(more))
    started = time.process_time()
    assert read(FORMATS[name], text, list(range(0, len(text), 20_000))) == (text, [])
    assert time.process_time() - started < 20


def test_without_tools_everything_is_words() -> None:
    text = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    reader = FORMATS["hermes"].reader([])
    assert reader.push(text)[0] + reader.finish()[0] == text


def test_messages_for_a_template_without_tools() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    rows = as_text(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Add."},
            {"role": "assistant", "content": "", "tool_calls": [call, call]},
            {"role": "tool", "content": "1", "tool_call_id": "1"},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
        ],
        Tools((Tool("add", "Adds.", {"type": "object"}),)),
    )
    assert [row["role"] for row in rows] == ["system", "user", "assistant", "user"]
    assert rows[0]["content"].startswith("Be brief.\n\n# Tools")
    assert rows[2]["content"].count("<tool_call>") == 2
    assert rows[3]["content"].count("<tool_response>") == 2
    assert as_text([{"role": "user", "content": "Hi."}], ()) == [{"role": "user", "content": "Hi."}]


def test_compact_schemas_leave_no_room_for_white_space() -> None:
    assert json.loads(compact({"type": "object"}))["x-guidance"]["whitespace_flexible"] is False
