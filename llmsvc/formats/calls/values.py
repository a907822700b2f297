"""Calls and their arguments: from the text in which they are written, typed by the tools' schemas."""

import json
import math
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from llmsvc.formats.schemas import kinds_of
from llmsvc.formats.tools import Row, Tool, ToolCall

_PYTHON = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


class NotACall(ValueError):
    """The text is no call of a known tool."""


class Unfinished(NotACall):
    """It is none yet: it ends within a value."""


class Bare(str):
    """A value that was written without quotes, of which the schema says what it is."""


def call_id() -> str:
    """An id as the OpenAI API has them."""
    return f"call_{secrets.token_hex(12)}"


def short_id() -> str:
    """An id as Mistral's chat templates demand them: 9 letters and digits."""
    return secrets.token_hex(5)[:9]


class Known:
    """The tools that an answer may call."""

    def __init__(self, tools: Sequence[Tool], new_id: Callable[[], str] = call_id) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._new_id = new_id

    @property
    def names(self) -> list[str]:
        """The longest first, as alternatives of an expression need them."""
        return sorted(self._tools, key=len, reverse=True)

    def keys(self, name: str) -> list[str]:
        """The names of a tool's parameters, in the order of its schema."""
        return list(self._tools[name].parameters.get("properties") or {})

    def call(self, name: str, arguments: Any, id: str = "") -> ToolCall:
        """Raises NotACall for an unknown tool, and for arguments that are no JSON object."""
        if isinstance(arguments, str):  # some models quote the whole object
            arguments = json_value(arguments) if arguments.strip() else {}
        arguments = {} if arguments is None else arguments
        if name not in self._tools or not isinstance(arguments, dict):
            raise NotACall(name)
        return ToolCall(id or self._new_id(), name, _written(arguments))

    def argument(self, name: str, key: str, value: Any) -> Any:
        """The value of one argument: text takes the type that the tool's schema names."""
        tool = self._tools.get(name)
        if tool is None:
            raise NotACall(name)
        if not isinstance(value, str):
            return plain(value)
        schema = (tool.parameters.get("properties") or {}).get(key) or {}
        kinds = kinds_of(schema, tool.parameters)
        if isinstance(value, Bare) or (kinds and "string" not in kinds):
            return typed(value, kinds)
        return value


def typed(text: str, kinds: set[str]) -> Any:
    """What a text says as one of these JSON types; the text itself where it is none of them. No types: any."""
    stripped = text.strip()
    if "string" in kinds:
        return None if "null" in kinds and stripped in ("null", "None") else str(text)
    try:
        value = _PYTHON[stripped] if stripped in _PYTHON else json_value(stripped)
    except NotACall:
        value = _as_python(stripped) if kinds & {"object", "array"} else str(text)
    if isinstance(value, float) and not math.isfinite(value):
        return str(text)
    if kinds == {"integer"} and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def plain(value: Any) -> Any:
    """Values within lists and objects: of what has no quotes the text decides."""
    if isinstance(value, Bare):
        return typed(value, set())
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value


def json_value(text: str) -> Any:
    """JSON, with line breaks in strings as they are. Raises Unfinished where the text ends within a string."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise (Unfinished if error.msg.startswith("Unterminated") else NotACall)(error.msg) from None
    except (ValueError, RecursionError) as error:
        raise NotACall(str(error)) from None


def _as_python(text: str) -> Any:
    """A list or an object as Python writes it."""
    from llmsvc.formats.calls.pythonic import value_of  # which needs this module

    try:
        return plain(value_of(text))
    except NotACall:
        return text


def _written(arguments: Row) -> str:
    """As JSON text. Raises NotACall for what JSON does not know."""
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(arguments, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise NotACall(str(error)) from None
    return text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON.")
