"""Messages in the form that a chat template takes, as far as they can say the same in it."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from llmsvc.formats.families import Family
from llmsvc.formats.reasoning import HARMONY
from llmsvc.formats.tools import Row, Tool
from llmsvc.formats.traits import Traits, in_parts


def plain(row: Row) -> Row:
    """With a role that every template knows, and a content."""
    if row["role"] != "developer" and row.get("content") is not None:
        return row
    role = "system" if row["role"] == "developer" else row["role"]
    return {**row, "role": role, "content": row.get("content") or ""}


def needs_text(rows: Sequence[Row], tools: Sequence[Tool], traits: Traits) -> bool:
    """Whether there are tools, calls or results that the template does not show."""
    calls = any(row["role"] == "tool" or row.get("tool_calls") for row in rows)
    return (bool(tools) and not traits.tools) or (calls and not traits.arguments)


def with_word(rows: list[Row], word: str) -> list[Row]:
    """With a word that the model looks for in its system prompt."""
    if not word:
        return rows
    if rows[0]["role"] != "system":
        return [{"role": "system", "content": word}, *rows]
    return [{**rows[0], "content": f"{rows[0]['content']}\n\n{word}"}, *rows[1:]]


def fitted(rows: list[Row], traits: Traits, family: Family) -> list[Row]:
    """As the template takes them."""
    if not traits.late_system:
        rows = _systems_first(rows)
    if not traits.system:
        rows = _into_user(rows)
    if traits.alternates:
        rows = _joined(rows)
    if traits.one_call:
        rows = _one_call_each(rows)
    if family.reasoning is HARMONY:
        rows = [_thinking_only(row) for row in rows]
    rows = [_with_reasoning(_with_calls(row, traits), traits) for row in rows]
    return [in_parts(row) for row in rows] if traits.parts else rows


def _systems_first(rows: list[Row]) -> list[Row]:
    systems = [row for row in rows if row["role"] == "system"]
    if not systems or (len(systems) == 1 and rows[0]["role"] == "system"):
        return rows
    first = {"role": "system", "content": "\n\n".join(row["content"] for row in systems)}
    return [first, *(row for row in rows if row["role"] != "system")]


def _into_user(rows: list[Row]) -> list[Row]:
    """The system prompt in front of the first message of the user."""
    if rows[0]["role"] != "system":
        return rows
    system, rest = rows[0]["content"], rows[1:]
    for at, row in enumerate(rest):
        if row["role"] == "user":
            merged = {**row, "content": f"{system}\n\n{row['content']}".lstrip("\n")}
            return [*rest[:at], merged, *rest[at + 1 :]]
    return [{"role": "user", "content": system}, *rest]


def _joined(rows: list[Row]) -> list[Row]:
    """Two messages of one role in a row as one."""
    joined: list[Row] = []
    for row in rows:
        last = joined[-1] if joined else {"role": ""}
        plain = row["role"] in ("user", "assistant") and not (row.get("tool_calls") or last.get("tool_calls"))
        if plain and row["role"] == last["role"]:
            joined[-1] = {**last, **row, "content": f"{last['content']}\n\n{row['content']}"}
        else:
            joined.append(row)
    return joined


def _with_reasoning(row: Row, traits: Traits) -> Row:
    """Earlier reasoning as templates read it; which of it they show is theirs to say."""
    if "reasoning" not in row:
        return row
    thought = row["reasoning"]
    row = {key: value for key, value in row.items() if key != "reasoning"}
    if not thought:
        return row
    if traits.thoughts:
        parts = [{"type": "thinking", "thinking": thought}, *in_parts(row)["content"]]
        return {**row, "content": [part for part in parts if part.get("text") != ""]}
    # transformers adds a third name, thinking.
    return {**row, "reasoning_content": thought, "reasoning": thought}


def _with_calls(row: Row, traits: Traits) -> Row:
    """Calls with arguments and ids in the form that the template takes."""
    if not ("tool_calls" in row or "tool_call_id" in row):
        return row
    row = {key: value for key, value in row.items() if key != "tool_calls" or value}
    if traits.short_ids and "tool_call_id" in row:
        row["tool_call_id"] = _short(row["tool_call_id"])
    if "tool_calls" in row:
        row["tool_calls"] = [_call(call, traits) for call in row["tool_calls"]]
    return row


def _call(call: Row, traits: Traits) -> Row:
    function = dict(call["function"])
    function["arguments"] = _arguments(function.get("arguments"), traits.arguments)
    return {**call, "function": function} | ({"id": _short(call["id"])} if traits.short_ids else {})


def _arguments(arguments: Any, form: str) -> Any:
    if form == "mapping" and isinstance(arguments, str):
        try:
            return json.loads(arguments or "{}")
        except ValueError:
            return arguments
    if form == "text" and not isinstance(arguments, str):
        return json.dumps(arguments, ensure_ascii=False)
    return arguments


def _short(id_: str) -> str:
    """Nine letters and digits, as Mistral's templates want them."""
    return id_ if len(id_) == 9 and id_.isalnum() else hashlib.sha256(id_.encode()).hexdigest()[:9]


def _one_call_each(rows: list[Row]) -> list[Row]:
    """One call in a message, and behind it its result."""
    spread: list[Row] = []
    for row in rows:
        if row.get("tool_calls"):
            first, *others = row["tool_calls"]
            spread.append({**row, "tool_calls": [first]})
            spread += [{"role": "assistant", "content": "", "tool_calls": [call]} for call in others]
        elif row["role"] == "tool":
            spread.insert(_behind_call(spread, row.get("tool_call_id")), row)
        else:
            spread.append(row)
    return spread


def _thinking_only(row: Row) -> Row:
    """gpt-oss' template takes words or thoughts before a call, and shows either as thoughts."""
    if not row.get("tool_calls"):
        return row
    said = "\n\n".join(filter(None, (row.get("reasoning", ""), row["content"])))
    return {**row, "content": "", "reasoning": said}


def _behind_call(rows: Sequence[Row], id_: str | None) -> int:
    for at in range(len(rows) - 1, -1, -1):
        if any(call.get("id") == id_ for call in rows[at].get("tool_calls", ())):
            return at + 1
        if rows[at]["role"] not in ("assistant", "tool"):
            break
    return len(rows)
