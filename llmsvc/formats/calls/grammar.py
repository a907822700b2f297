"""Grammars that bind an answer to calls, in llguidance's Lark (https://github.com/guidance-ai/llguidance).

Text stands in «…»: what is a special token of the model's tokenizer is that token there, everything else its letters.
«…text» with three dots as one sign is anything up to that text, and the text. Who has the tokenizer puts Lark's own
words in their place (`engine.constraint`).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llmsvc.formats.schemas import kinds_of, resolved
from llmsvc.formats.tools import Row, Tool, Tools

MOST_CALLS = 8
"""In one answer that must call some tool; small models would go on for ever."""
_DEEPEST = 8
_SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

Writer = Callable[["Grammar", Tools], str]
"""The rule of an answer."""
OneCall = Callable[["Grammar", Tool], str]
"""The rule of one call."""


def compact(schema: Row) -> str:
    """A schema as the engine takes it; without it small models write white space for ever."""
    return json.dumps({"x-guidance": {"whitespace_flexible": False, "item_separator": ", "}, **schema})


def text(words: str) -> str:
    """These words, with the special tokens in them."""
    return f"«{json.dumps(words)[1:-1]}»" if words else ""


def until(words: str) -> str:
    """Any text that has these words at its end and nowhere before."""
    return f"«…{json.dumps(words)[1:-1]}»"


class Grammar:
    """The rules of one grammar."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}
        self._values: dict[tuple[int, str, int], str] = {}

    def rule(self, body: str) -> str:
        """The name of a rule with this body."""
        return self._rules.setdefault(body, f"r{len(self._rules)}")

    def json(self, schema: Any, root: Row) -> str:
        """A JSON value by a schema, whose references are into ``root``, spaced as chat templates space it."""
        shared: Row = {key: root[key] for key in ("$defs", "definitions") if key in root}
        schema = schema if isinstance(schema, dict) else {}
        return self.rule(f"%json {json.dumps({'x-guidance': _SPACED, **shared, **schema})}")

    def value(self, schema: Any, root: Row, quote: str, depth: int = 0) -> str:
        """A value in the way of ``braces``. What a reference names is written once for each depth."""
        if not isinstance(schema, dict) or not schema.get("$ref"):
            return _value(self, schema, root, quote, depth)
        place = id(root), schema["$ref"], depth
        if place not in self._values:
            self._values[place] = self.rule(_value(self, resolved(schema, root), root, quote, depth))
        return self._values[place]

    def arguments(self, tool: Tool) -> str:
        """A tool's arguments as a JSON object, with no other keys than the tool names."""
        closed = {"additionalProperties": False} if "properties" in tool.parameters else {}
        return self.json({"type": "object", **closed, **tool.parameters}, {})

    def members(self, items: Sequence[tuple[str, bool]], comma: str) -> str:
        """Items in their order with commas between them; those that are not required may be missing."""
        rest, ways = "", list[str]()
        for item, required in reversed(items):
            if required:
                ways = []
            ways.append(f"{item} {rest}")
            follows = self.rule(f"{text(comma)} {item} {rest}")
            rest = follows if required else f"{follows}?" if not rest else self.rule(f"{follows} | {rest}")
        missing = "" if any(required for _, required in items) else "?"
        return f"({' | '.join(reversed(ways))}){missing}" if ways else ""

    def answer(self, start: str) -> str:
        """The grammar of an answer that follows a rule."""
        return "\n".join([f"start: {start}", *(f"{name}: {body}" for body, name in self._rules.items()), ""])


def series(call: OneCall, before: str = "", between: str = "", after: str = "", most: int = MOST_CALLS) -> Writer:
    """One call behind the other, or only one where the request names the tool."""

    def write(grammar: Grammar, tools: Tools) -> str:
        one = grammar.rule(" | ".join(call(grammar, tool) for tool in tools.callable))
        more = most - 1 if tools.choice in ("auto", "required") else 0
        others = f"({text(between)} {one}){{0,{more}}}" if more else ""
        shared = between if between and after.startswith(between) else ""  # lexemes are greedy
        return " ".join(filter(None, (text(before), one, others, text(shared), text(after.removeprefix(shared)))))

    return write


def framed(before: str, after: str) -> OneCall:
    """The arguments as JSON between two texts, NAME being the tool's."""
    return lambda grammar, tool: " ".join(
        filter(None, (_named(before, tool), grammar.arguments(tool), _named(after, tool)))
    )


def numbered(before: str, number: str, after: str, close: str) -> OneCall:
    """The same with something of an expression between two texts in front, as an id."""
    return lambda grammar, tool: " ".join(
        (_named(before, tool), f"/{number}/", _named(after, tool), grammar.arguments(tool), text(close))
    )


def elements(head: str, key: str, end: str, foot: str, strings: tuple[str, str] = ("", "")) -> OneCall:
    """One element for each argument. ``key``: its opening, with KEY for its name and IS for one of ``strings``."""

    def call(grammar: Grammar, tool: Tool) -> str:
        parts = [_named(head, tool)]
        for name, schema, required in _properties(tool.parameters):
            is_text = "string" in kinds_of(schema, tool.parameters)
            opening = text(key.replace("IS", strings[0 if is_text else 1]).replace("KEY", name))
            value = _text_or_json(grammar, schema, tool.parameters, end)
            parts.append(grammar.rule(f"{opening} {value}") + ("" if required else "?"))
        return " ".join([*parts, text(foot)])

    return call


def pythonic(grammar: Grammar, tool: Tool) -> str:
    """``name(key=value, …)``, with values that are both JSON and Python to our reader."""
    items = [
        (grammar.rule(f"{text(key + '=')} {grammar.json(schema, tool.parameters)}"), required)
        for key, schema, required in _properties(tool.parameters)
    ]
    return f"{text(tool.name + '(')} {grammar.members(items, ', ')} {text(')')}"


def braces(before: str, after: str, quote: str) -> OneCall:
    """``call:name{key:value,…}`` with strings between two quotes of the family's own."""

    def call(grammar: Grammar, tool: Tool) -> str:
        value = _object(grammar, tool.parameters, tool.parameters, quote, 0)
        return f"{_named(before, tool)} {value} {text(after)}"

    return call


def _named(words: str, tool: Tool) -> str:
    return text(words.replace("NAME", tool.name))


def _properties(schema: Row) -> Iterable[tuple[str, Any, bool]]:
    required = schema.get("required") or ()
    for key, inner in (schema.get("properties") or {}).items():
        yield key, inner, key in required


def _choices(schema: Any) -> list[str]:
    """The only strings that a schema allows, if it names them."""
    schema = schema if isinstance(schema, dict) else {}
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    return [value for value in values if isinstance(value, str)]


def _text_or_json(grammar: Grammar, schema: Any, root: Row, end: str) -> str:
    """A value and its end: a string without quotes, everything else as JSON."""
    if "string" not in kinds_of(schema, root):
        return f"{grammar.json(schema, root)} {text(end)}"
    if choices := _choices(schema):
        return f"({' | '.join(map(text, choices))}) {text(end)}"
    return until(end)


def _object(grammar: Grammar, schema: Any, root: Row, quote: str, depth: int) -> str:
    items = [
        (grammar.rule(f"{text(key + ':')} {grammar.value(inner, root, quote, depth + 1)}"), required)
        for key, inner, required in sorted(_properties(schema), key=lambda item: item[0])
    ]
    return " ".join(filter(None, (text("{"), grammar.members(items, ","), text("}"))))


def _value(grammar: Grammar, schema: Any, root: Row, quote: str, depth: int) -> str:
    kinds = kinds_of(schema, root)
    if "string" in kinds or not kinds or depth > _DEEPEST:
        choices = [f"{text(choice)} {text(quote)}" for choice in _choices(schema)]
        return f"{text(quote)} " + (f"({' | '.join(choices)})" if choices else until(quote))
    if "object" in kinds:
        return grammar.rule(_object(grammar, schema, root, quote, depth))
    if "array" in kinds:
        item = grammar.rule(grammar.value(schema.get("items") or {}, root, quote, depth + 1))
        return grammar.rule(f"{text('[')} ({item} ({text(',')} {item})*)? {text(']')}")
    return grammar.json(schema, root)
