"""Tools' schemas as clients send them: in circles, and of any shape."""

import json
import time
from typing import Any

import pytest

from llmsvc.errors import BadRequest
from llmsvc.formats.calls.families import CHOICES, PLAIN
from llmsvc.formats.schemas import kinds_of, resolved
from llmsvc.formats.tools import Tool, Tools

FORMATS = {known.name: known for _, known in CHOICES} | {"plain": PLAIN}
EACH = pytest.mark.parametrize("known", FORMATS.values(), ids=FORMATS)
MANY = 12


def schema(definitions: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "$defs": definitions, "properties": {"a": {"$ref": "#/$defs/x0"}}}


def refs(number: int) -> list[dict[str, str]]:
    return [{"$ref": f"#/$defs/x{number}"}] * MANY


CIRCLES = {
    "choices": schema({"x0": {"anyOf": refs(0)}}),
    "objects": schema({"x0": {"type": "object", "properties": {f"p{n}": refs(0)[0] for n in range(MANY)}}}),
    "chains": schema({f"x{n}": {"anyOf": refs(n + 1)} for n in range(40)}),
    "long chains": schema({f"x{n}": refs(n + 1)[0] for n in reversed(range(900))}),
    "itself": schema({"x0": refs(0)[0]}),
    "the whole": {"type": "object", "properties": {f"p{n}": {"$ref": "#"} for n in range(MANY)}},
}


@EACH
@pytest.mark.parametrize("parameters", CIRCLES.values(), ids=CIRCLES)
def test_references_in_circles_take_no_time(known: Any, parameters: dict[str, Any]) -> None:
    tools, began = Tools((Tool("weather", "", parameters),), "weather"), time.process_time()
    assert len(known.grammar(tools)) < 300_000
    reader = known.reader(tools.tools)
    reader.push("<tool_call>\n<function=weather>\n<parameter=a>\nOslo\n</parameter>\n</function>\n</tool_call>")
    reader.finish()
    assert time.process_time() - began < 2


def test_what_a_reference_allows_is_known_however_often_it_is_named() -> None:
    text, number = {"type": "string"}, {"type": "integer"}
    root = {"$defs": {"a": text, "b": {"anyOf": [{"$ref": "#/$defs/a"}, number]}, "c": {"$ref": "#/$defs/b"}}}
    assert kinds_of({"anyOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/c"}]}, root) == {"string", "integer"}
    assert resolved({"$ref": "#/$defs/c"}, root) == root["$defs"]["b"]
    assert kinds_of({"$ref": "#/nowhere"}, root) == set()


ODD = [
    {"properties": 5},
    {"properties": ["city"]},
    {"properties": {"city": 5}},
    {"required": 5},
    {"required": [{}]},
    *({"properties": {"city": {"type": kind}}} for kind in (5, {"a": 1}, [["a"]])),
    *({"properties": {"city": {key: 5}}} for key in ("anyOf", "oneOf", "allOf", "enum", "$ref", "$defs")),
    {"properties": {"city": {"items": {"type": 5}}}},
    {"properties": {"city": {"anyOf": [{"enum": 5}]}}},
    {"properties": {"city": {"$ref": "#/elsewhere/city"}}, "elsewhere": {"city": {"type": 5}}},
    json.loads('{"items":' * 200 + "{}" + "}" * 200),
]


@pytest.mark.parametrize("parameters", ODD, ids=lambda parameters: str(parameters)[:60])
def test_what_is_no_schema_is_refused_in_words(parameters: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="schema"):
        Tool("weather", "", parameters)


@EACH
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"properties": None, "required": None},
        {"properties": {"type": {"type": ["string", "null"]}, "city": True, "enum": {"enum": None}}},
        {"properties": {"a": {"type": "array", "items": [{"type": "string"}]}, "b": {"const": 5}, "$ref": {}}},
    ],
)
def test_what_is_only_unusual_is_taken(known: Any, parameters: dict[str, Any]) -> None:
    assert known.grammar(Tools((Tool("weather", "", parameters),), "weather"))
