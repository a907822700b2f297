"""Calls of tools, read from what a model writes, however it arrives."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsvc.chat.tools import CallReader, Tool, Tools, as_text
from llmsvc.errors import BadRequest

CALL = '{"name": "add", "arguments": {"a": 1, "b": "<tool_call>"}}'
HERMES = f"<tool_call>\n{CALL}\n</tool_call>"


def read(text: str, cuts: list[int] | None = None) -> tuple[str, list[tuple[str, str]]]:
    """What is shown and what is called, of a text that comes in pieces."""
    reader, shown, calls = CallReader({"add", "now"}), "", []
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts or ()), len(text)]
    for start, end in pairwise(borders):
        more, found = reader.push(text[start:end])
        shown, calls = shown + more, calls + found
    more, found = reader.finish()
    return shown + more, [(call.name, call.arguments) for call in calls + found]


ADD = ("add", '{"a": 1, "b": "<tool_call>"}')


@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        (HERMES, "", [ADD]),
        (f"Let me see.\n{HERMES}\n{HERMES}", "Let me see.\n", [ADD, ADD]),
        (HERMES.removesuffix("</tool_call>"), "", [ADD]),
        (CALL, "", [ADD]),
        (f"[{CALL}, {CALL}]", "", [ADD, ADD]),
        (f"```json\n{CALL}\n```", "", [ADD]),
        ('{"name": "now", "parameters": {}}', "", [("now", "{}")]),
        ('{"name": "now"}', "", [("now", "{}")]),
        ('{"name": "unknown", "arguments": {}}', '{"name": "unknown", "arguments": {}}', []),
        ('<tool_call>{"name": "unknown"}</tool_call>', '<tool_call>{"name": "unknown"}</tool_call>', []),
        ("<tool_call> is a mark.", "<tool_call> is a mark.", []),
        ("a < b and <tool", "a < b and <tool", []),
        ('{"answer": 42}', '{"answer": 42}', []),
        ("", "", []),
    ],
)
@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_calls_are_found_however_the_text_arrives(text, shown, calls, cuts) -> None:
    assert read(text, cuts) == (shown, calls)


@given(st.text(alphabet='<>/tol_ca{}[]" \n`jsn') | st.text(), st.lists(st.integers(0, 60), max_size=6))
def test_no_text_is_lost(text: str, cuts: list[int]) -> None:
    assert read(text, cuts) == (text, [])


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    reader = CallReader({"add"})
    assert [reader.push(piece)[0] for piece in ("Hello ", "<", "b> <tool", "box>")] == [
        "Hello ",
        "",
        "<b> ",
        "<toolbox>",
    ]


def test_a_schema_holds_what_tools_define() -> None:
    item = {"type": "object", "properties": {"id": {"type": "integer"}}}
    first = Tool(
        "first", "", {"type": "object", "properties": {"x": {"$ref": "#/$defs/Item"}}, "$defs": {"Item": item}}
    )
    schema = json.loads(Tools((first, Tool("second", "", {"type": "object"})), "required").schema())
    assert schema["$defs"] == {"Item": item}
    assert [one["properties"]["name"]["const"] for one in schema["anyOf"]] == ["first", "second"]
    assert "$defs" not in schema["anyOf"][0]["properties"]["arguments"]
    assert json.loads(Tools((first,), "first").schema())["properties"]["name"] == {"const": "first"}
    with pytest.raises(BadRequest, match="no tool"):
        Tools((first,), "third")


def test_messages_for_a_template_without_tools() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    told = as_text(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Add."},
            {"role": "assistant", "content": "", "tool_calls": [call, call]},
            {"role": "tool", "content": "1", "tool_call_id": "1"},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
        ],
        Tools((Tool("add", "Adds.", {"type": "object"}),)),
    )
    assert [row["role"] for row in told] == ["system", "user", "assistant", "user"]
    assert told[0]["content"].startswith("Be brief.\n\n# Tools")
    assert told[2]["content"].count("<tool_call>") == 2
    assert told[3]["content"].count("<tool_response>") == 2
