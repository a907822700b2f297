"""Calls as JSON: objects with a name and arguments, or arguments behind a name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from llmsvc.formats.calls.reader import Form, Match
from llmsvc.formats.calls.values import Known, NotACall, json_value
from llmsvc.formats.tools import Row, ToolCall

_NAMES = ("name", "tool_name", "function")
_ARGUMENTS = ("arguments", "parameters")
_JSON = r"(?=\{|\[\s*\{)"
_OTHERS = {"type", "id", "tool_call_id", "call_id", "index"}


def objects(match: Match, body: str, known: Known) -> list[ToolCall]:
    """One object for each call, or a list of them."""
    found = json_value(body)
    rows = found if isinstance(found, list) else [found]
    if not rows:
        raise NotACall("An empty list.")
    return [_one(row, known) for row in rows]


def exact_objects(match: Match, body: str, known: Known) -> list[ToolCall]:
    """The same where no mark says that it is a call: other keys make it something else."""
    found = json_value(body)
    for row in found if isinstance(found, list) else [found]:
        if not isinstance(row, dict) or row.keys() - {*_NAMES, *_ARGUMENTS, *_OTHERS}:
            raise NotACall("It has other keys.")
    return objects(match, body, known)


def named_objects(match: Match, body: str, known: Known) -> list[ToolCall]:
    """A list of objects whose only key is the tool's name (Apertus)."""
    found = json_value(body)
    if not isinstance(found, list) or not all(isinstance(row, dict) and len(row) == 1 for row in found) or not found:
        raise NotACall("No list of calls.")
    return [known.call(name, arguments) for row in found for name, arguments in row.items()]


def arguments(match: Match, body: str, known: Known, *, keep_id: bool = False) -> list[ToolCall]:
    """The arguments of the call that the opening names. ``keep_id``: its id too is the model's."""
    said = match.groupdict().get("id") if keep_id else ""
    return [known.call(match["name"], json_value(body), said or "")]


def marked(opening: str, closing: str = "", read: Callable[[Match, str, Known], list[ToolCall]] = objects) -> Form:
    """Objects behind a mark, an expression."""
    return Form(rf"{opening}\s*{_JSON}", read, closing)


def headed(opening: str, closing: str = "", *, keep_id: bool = False) -> Form:
    """Arguments behind an expression that has the tool's name in it."""
    return Form(rf"{opening}\s*(?=\{{)", partial(arguments, keep_id=keep_id), closing)


_KEY = r'"(?:name|tool_name)"\s*:\s*"NAMES"'
BARE = (
    Form(rf"(?=\{{\s*{_KEY})", exact_objects),
    Form(rf"(?=\[\s*\{{\s*{_KEY})", exact_objects),
)
"""Objects without any mark: their first key names a known tool."""
WHOLE = Form(rf"\s*(?:```(?:json|tool_call)?\s*)?{_JSON}", exact_objects, first=True)
"""An answer that begins with an object, a list or a block of code."""
FENCED = Form(rf"(?:Action:\s*)?```(?:json|tool_call)\s*{_JSON}", exact_objects, "```")
ANY = (*BARE, FENCED)


def _one(row: Any, known: Known) -> ToolCall:
    inner: Row = row
    if isinstance(row, dict) and isinstance(row.get("function"), dict):
        inner = row["function"]
    if not isinstance(inner, dict):
        raise NotACall("No object.")
    name = next((inner[key] for key in _NAMES if isinstance(inner.get(key), str)), None)
    if name is None:
        raise NotACall("It names no tool.")
    return known.call(name, next((inner[key] for key in _ARGUMENTS if key in inner), None))
