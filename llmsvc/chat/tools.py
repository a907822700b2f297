"""Functions that a model may call: how it is told of them, and how calls are read from what it writes.

The format is that of Hermes and Qwen (https://github.com/NousResearch/Hermes-Function-Calling):
``<tool_call>{"name": …, "arguments": {…}}</tool_call>``. An answer that is such an object, or a list of them, and
nothing else is read as well: so write Llama 3 and Mistral, and so writes any model that is bound to a schema.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from llmsvc.chat.transfer import new_id
from llmsvc.engine.detokenize import overlap
from llmsvc.errors import BadRequest
from llmsvc.store.database import Row

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_FENCE = "```json"


@dataclass(frozen=True)
class Tool:
    """``parameters`` is a JSON schema of an object."""

    name: str
    description: str
    parameters: Row

    def row(self) -> Row:
        """As chat templates take it."""
        described = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": described}


@dataclass(frozen=True)
class ToolCall:
    """``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Tools:
    """What may be called. ``choice``: auto, required, or the name of the one that must be called."""

    tools: tuple[Tool, ...] = ()
    choice: str = "auto"

    def __post_init__(self) -> None:
        """Raises BadRequest for a choice that is none of them."""
        if self.choice != "auto" and not self._choices():
            raise BadRequest(f'There is no tool "{self.choice}" to be called. Name one of those in tools.')

    @property
    def names(self) -> set[str]:
        return {tool.name for tool in self.tools}

    @property
    def forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.choice != "auto"

    def schema(self) -> str:
        """The JSON schema of one call of the chosen tools; what they define is shared by them."""
        calls: list[Row] = []
        shared: dict[str, Row] = {"$defs": {}, "definitions": {}}
        for tool in self._choices():
            parameters = dict(tool.parameters)
            for key, definitions in shared.items():
                definitions |= parameters.pop(key, {})
            properties = {"name": {"const": tool.name}, "arguments": parameters}
            calls.append({"type": "object", "properties": properties, "required": ["name", "arguments"]})
            calls[-1]["additionalProperties"] = False
        whole = calls[0] if len(calls) == 1 else {"anyOf": calls}
        return compact({**whole, **{key: found for key, found in shared.items() if found}})

    def prompt(self) -> str:
        """What a model is told whose chat template knows no tools."""
        signatures = "\n".join(json.dumps(tool.row(), ensure_ascii=False) for tool in self.tools)
        return _PROMPT.format(signatures=signatures)

    def _choices(self) -> list[Tool]:
        return [tool for tool in self.tools if self.choice in ("required", "auto", tool.name)]


_PROMPT = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def compact(schema: Row) -> str:
    """A schema as the engine takes it; without it small models write white space for ever."""
    return json.dumps({"x-guidance": {"whitespace_flexible": False, "item_separator": ", "}, **schema})


def as_text(messages: Sequence[Row], tools: Tools) -> list[Row]:
    """Messages with tools, calls and results, for a chat template that knows of none."""
    found: list[Row] = []
    if tools.tools:
        found.append({"role": "system", "content": tools.prompt()})
    for message in messages:
        role, text = message["role"], message["content"]
        if role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
        for call in message.get("tool_calls", ()):
            said = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
            text += f"\n{OPEN}\n{json.dumps(said, ensure_ascii=False)}\n{CLOSE}"
        last = found[-1] if found else {"role": ""}
        if role == last["role"] and (role == "system" or message["role"] == "tool"):
            own, other = (text, last["content"]) if role == "system" else (last["content"], text)
            found[-1] = {"role": role, "content": f"{own}\n\n{other}"}
        else:
            found.append({"role": role, "content": text.strip() if message.get("tool_calls") else text})
    return found


class CallReader:
    """Splits an answer, as it comes, into text and calls. Text that may become a call is held back."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._inside = self._whole = False
        self._begun = self._called = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """What is certain now."""
        self._held += text
        if not self._begun and not self._begin():
            return "", []
        shown, calls = "", list[ToolCall]()
        while not self._whole:
            border = CLOSE if self._inside else OPEN
            at = self._held.find(border)
            if at < 0:
                if not self._inside:
                    shown += self._text(len(self._held) - overlap(self._held, OPEN))
                break
            if not self._inside:
                shown += self._text(at)
            elif found := self._calls(self._held[:at]):
                calls += found
                self._held, self._called = self._held[at:], True
            else:
                shown += OPEN + self._held[: at + len(CLOSE)]
                self._held = self._held[at:]
            self._held, self._inside = self._held[len(border) :], not self._inside
        return shown, calls

    def finish(self) -> tuple[str, list[ToolCall]]:
        """What was held back, at the answer's end: a call may lack its last mark."""
        held, self._held = self._held, ""
        if (self._whole or self._inside or not self._begun) and (calls := self._calls(held)):
            return "", calls
        return (OPEN if self._inside else "") + held, []

    def _text(self, length: int) -> str:
        """Take so much of what is held; white space behind a call is nobody's words."""
        taken, self._held = self._held[:length], self._held[length:]
        if self._called:
            taken = taken.lstrip()
            self._called = not taken
        return taken

    def _begin(self) -> bool:
        """Whether enough is there to say what the answer is."""
        start = self._held.lstrip()
        if not start or (len(start) < len(_FENCE) and _FENCE.startswith(start)):
            return False
        self._begun, self._whole = True, start[0] in "{[" or start.startswith(_FENCE)
        return True

    def _calls(self, text: str) -> list[ToolCall]:
        """The calls that a text consists of; none when it says anything else."""
        text = text.strip()
        if text.startswith(_FENCE) and text.endswith("```"):
            text = text[len(_FENCE) : -3]
        try:
            found = json.loads(text)
        except ValueError:
            return []
        calls = []
        for call in found if isinstance(found, list) else [found]:
            if not isinstance(call, dict) or call.get("name") not in self._names:
                return []
            arguments = call.get("arguments", call.get("parameters", {}))
            if not isinstance(arguments, dict):
                return []
            said = json.dumps(arguments, ensure_ascii=False)
            calls.append(ToolCall(f"call_{new_id()[:24]}", call["name"], said))
        return calls
