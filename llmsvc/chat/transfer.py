"""Message rows, and whole sessions as text: JSON that keeps everything, Markdown to read."""

import json
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmsvc.chat import options
from llmsvc.errors import BadRequest
from llmsvc.formats.templates import checked_text
from llmsvc.store.database import Row

_ROLES = ("user", "assistant", "system")
_KEPT = {"created_at": float, "state": str, "model": str, "usage": dict, "context": dict, "sources": list, "error": str}
_KEPT |= {"options": dict, "reasoning": str}
_SOURCE = {"file_id": str, "name": str, "place": str, "head": str, "page": int, "start": int, "end": int}
_MOST = 2**53
"""Of what is counted: what every number of JSON can say exactly."""
_OF_A_CUT = ("begins", "bare", "cut", "recalled_from")
_HEADING = re.compile(r"^(\\*)(## (?:User|Assistant|System)|<details><summary>Reasoning</summary>)$", re.MULTILINE)
_FOLDED = "<details><summary>Reasoning</summary>\n\n{reasoning}\n\n</details>\n\n"
_UNFOLDED = re.compile(r"<details><summary>Reasoning</summary>\n\n((?:> .*\n)+)\n</details>\n\n")
_OLD = re.compile(r"\s*<think>(.*?)(?:</think>|\Z)\s*", re.DOTALL)


@dataclass
class Imported:
    title: str
    model: str = ""
    settings: Row = field(default_factory=dict)
    messages: list[Row] = field(default_factory=list)


def new_id() -> str:
    return secrets.token_hex(16)


def message(role: str, content: str, turn_id: str, **fields: Any) -> Row:
    """A message row with every field of the contract; its place in the tree comes with ``fields``."""
    return {
        "id": new_id(),
        "turn_id": turn_id,
        "role": role,
        "content": content,
        "reasoning": "",
        "created_at": time.time(),
        "state": "done",
        "model": "",
        "usage": {},
        "context": {},
        "sources": [],
        "error": "",
        "parent": "",
        "depth": 1,
        "chosen": 1,
        "options": {},
        **fields,
    }


def parted(row: Row) -> tuple[str, str]:
    """Reasoning and words of a message. Older answers have both in their content, between the marks of most models."""
    reasoning, content = row.get("reasoning", ""), row["content"]
    if not reasoning and row["role"] == "assistant" and (old := _OLD.match(content)):
        return old[1].strip(), content[old.end() :]
    return reasoning, content


def counted(usage: Row) -> Row:
    """Of an answer's numbers, which may come from an imported file, those that are numbers, and how it ended."""
    numbers = {name: value for name, value in usage.items() if isinstance(value, int | float) and 0 <= value <= _MOST}
    finish = usage.get("finish_reason")
    return {**numbers, **({"finish_reason": finish} if isinstance(finish, str) else {})}


def to_markdown(session: Row) -> str:
    """A heading for each message, then its reasoning, folded and quoted.

    A line of a message that looks like one of these gets a backslash.
    """
    parts = [f"# {session['title']}"]
    for row in session["messages"]:
        body = _HEADING.sub(r"\1\\\2", row["content"])
        parts.append(f"## {row['role'].capitalize()}\n\n{_folded(row.get('reasoning', ''))}{body}")
    return "\n\n".join(parts) + "\n"


def read(text: str) -> Imported:
    """What ``to_markdown`` wrote, or an exported session in JSON. Raises BadRequest."""
    checked_text(text)
    try:
        if not text.lstrip().startswith("{"):
            return _from_markdown(text)
        data = json.loads(text)
        checked_text(json.dumps(data, ensure_ascii=False, allow_nan=False))
        return Imported(
            str(data.get("title") or ""),
            str(data.get("model") or ""),
            options.checked(data.get("settings") or {}),
            tree([_message(m) for m in data["messages"]], [_message(m) for m in data.get("other_branches", [])]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadRequest(
            'This is no exported chat. Use the text that "export" gave, or Markdown with the headings '
            '"## User" and "## Assistant".'
        ) from None


def _from_markdown(text: str) -> Imported:
    if "\r\n## " in text:
        text = text.replace("\r\n", "\n")
    pieces = re.split(r"^## (User|Assistant|System)$\n?", text, flags=re.MULTILINE)
    head, roles, bodies = pieces[0], pieces[1::2], pieces[2::2]
    if not roles:
        raise ValueError
    rows = []
    for number, (role, body) in enumerate(zip(roles, bodies, strict=True)):
        body = body.removeprefix("\n").removesuffix("\n")
        if number < len(roles) - 1:  # between messages stand two line ends
            body = body.removesuffix("\n")
        reasoning, body = _unfolded(body)
        content = _HEADING.sub(lambda m: m[1][1:] + m[2], body)
        rows.append(message(role.lower(), content, new_id(), reasoning=reasoning))
    return Imported(head.strip().removeprefix("# ").strip(), messages=tree(rows))


def _folded(reasoning: str) -> str:
    quoted = "\n".join(f"> {line}" for line in reasoning.split("\n"))
    return _FOLDED.format(reasoning=quoted) if reasoning else ""


def _unfolded(body: str) -> tuple[str, str]:
    """Reasoning, and what is behind it."""
    folded = _UNFOLDED.match(body)
    if folded is None:
        return "", body
    lines = folded[1].removesuffix("\n").split("\n")
    return "\n".join(line.removeprefix("> ") for line in lines), body[folded.end() :]


def _message(data: Row) -> Row:
    if data["role"] not in _ROLES or not isinstance(data["content"], str):
        raise ValueError
    kept = {name: data[name] for name, kind in _KEPT.items() if isinstance(data.get(name), kind)}
    # Where the chat was cut says nothing here: its summaries stay behind.
    ledger = {name: value for name, value in kept.get("context", {}).items() if name not in _OF_A_CUT}
    kept["context"] = {name: value for name, value in ledger.items() if _is_counted(name, value)}
    kept["usage"], kept["options"] = counted(kept.get("usage", {})), options.usable(kept.get("options", {}))
    kept["sources"] = [source for source in kept.get("sources", []) if _is_source(source)]
    if kept.get("state") not in ("done", "stopped", "failed"):
        kept["state"] = "interrupted" if kept.get("state") in ("running", "interrupted") else "done"
    places = {name: data[name] for name in ("id", "parent", "chosen") if name in data}
    return message(data["role"], data["content"], str(data.get("turn_id", "")) or new_id(), **kept, **places)


def _is_counted(name: str, value: Any) -> bool:
    """Whether it can stand in a ledger: sentences in one place, numbers in all others."""
    return isinstance(value, list) if name == "left_out" else isinstance(value, int) and 0 <= value <= _MOST


def _is_source(source: Any) -> bool:
    """Whether it has all that a place in a file has."""
    return isinstance(source, dict) and all(isinstance(source.get(name), kind) for name, kind in _SOURCE.items())


def tree(line: list[Row], others: Sequence[Row] = ()) -> list[Row]:
    """Rows with new ids and proper places: ``line`` is the shown branch, ``others`` hang where their parents say."""
    placed: dict[str, Row] = {}
    made: list[Row] = []

    def place(row: Row, parent: Row | None) -> Row:
        old = row["id"]
        new = {**row, "id": new_id(), "parent": parent["id"] if parent else ""}
        new |= {"depth": parent["depth"] + 1 if parent else 1, "chosen": len(made) + 1}
        placed[old] = new
        made.append(new)
        return new

    before: Row | None = None
    for row in line:
        before = place(row, before)
    waiting = sorted(others, key=lambda row: row["chosen"])
    while waiting:  # whatever hangs on nothing that is there is left out
        ready = [row for row in waiting if row["parent"] in placed or not row["parent"]]
        if not ready:
            break
        for row in ready:
            place(row, placed.get(row["parent"]))
        waiting = [row for row in waiting if row["id"] not in placed]
    if before is not None:
        before["chosen"] = len(made) + 1
    return made
