"""What a chat template takes and what it ignores: found out by rendering small chats, once."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from llmsvc.formats.reasoning import reasoning_format_of
from llmsvc.formats.tools import Row

Specials = tuple[tuple[str, str], ...]
"""Names and texts of a tokenizer's special tokens, which templates read as variables."""

FAILURES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What templates raise besides jinja's own errors, given what their authors did not think of."""

_SYSTEM, _USER, _ANSWER, _THOUGHT = "Zsystem", "Zuser", "Zanswer", "Zthought"
_ARGUMENT, _RESULT, _TOOL = "Zargument", "Zresult", "Ztool"
_SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": "string", "description": "x"}},
    "required": ["x"],
}
_TOOLS = ({"type": "function", "function": {"name": _TOOL, "description": "x", "parameters": _SCHEMA}},)


@dataclass(frozen=True)
class Mode:
    """How a mode of thinking is asked for: by variables, or by a word in the system prompt."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    word: str = ""


@dataclass(frozen=True)
class Traits:
    """``system``: it shows a system message at the beginning; ``late_system``: also further down.

    ``alternates``: it refuses two messages of one role in a row. ``parts``: it wants contents as
    lists of parts. ``tools``: it shows tools; ``arguments``: of calls, as ``mapping`` or ``text``,
    "" where it shows no calls and results; ``short_ids``: those of calls have nine letters;
    ``one_call``: a message may have only one. ``thoughts``: it reads earlier reasoning as parts of
    a content. ``budget``: it reads a thinking budget. ``modes``: of thinking, as they are offered.
    """

    system: bool = True
    late_system: bool = True
    alternates: bool = False
    parts: bool = False
    tools: bool = False
    arguments: str = ""
    short_ids: bool = False
    one_call: bool = False
    thoughts: bool = False
    budget: bool = False
    modes: Mapping[str, Mode] = field(default_factory=dict)


@lru_cache(maxsize=64)
def traits_of(template: str, specials: Specials) -> Traits:
    """``template``: empty for one that is on another server, of which nothing is known."""
    if not template:
        return Traits()
    probe = _Probe(template, specials)
    if probe.ask() is None:
        return Traits()
    system = probe.shows([_row("system", _SYSTEM), _row("user", _USER)], _SYSTEM)
    arguments, short_ids = _calls(probe)
    return Traits(
        system=system,
        late_system=system and _late_system(probe),
        alternates=probe.render([_row("user", _USER), _row("user", _USER)]) is None,
        parts=probe.parts,
        tools=probe.shows([_row("user", _USER)], _TOOL, tools=_TOOLS),
        arguments=arguments,
        short_ids=short_ids,
        one_call=_one_call(probe, arguments, short_ids),
        thoughts="thinking" in template and _thoughts(probe),
        budget="thinking_budget" in template and probe.varies("thinking_budget", 512, 4096),
        modes=_modes(probe),
    )


class _Probe:
    """Renders small chats by one template."""

    def __init__(self, template: str, specials: Specials) -> None:
        self.template, self._specials = template, dict(specials)
        self.parts = False
        self._tools: Sequence[Row] = ()
        # Some want contents in parts, some are made for chats with tools only.
        for self.parts, self._tools in ((False, ()), (True, ()), (False, _TOOLS)):
            if self.shows([_row("user", _USER)], _USER):
                return

    def render(self, rows: Sequence[Row], tools: Sequence[Row] | None = None, **variables: Any) -> str | None:
        """None where the template refuses."""
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        chat = [in_parts(row) for row in rows] if self.parts else list(rows)
        tools = list(tools or self._tools) or None
        given = {
            "chat_template": self.template,
            "add_generation_prompt": True,
            **self._specials,
            **variables,
        }
        try:
            rendered, _ = render_jinja_template([chat], tools=tools, **given)
        except (jinja2.TemplateError, *FAILURES):
            return None
        return str(rendered[0])

    def shows(self, rows: Sequence[Row], *words: str, tools: Sequence[Row] | None = None) -> bool:
        """Whether all the words are there."""
        text = self.render(rows, tools)
        return text is not None and all(word in text for word in words)

    def ask(self, word: str = "", **variables: Any) -> str | None:
        """A question alone, with a word in the system prompt if there is one."""
        system = [_row("system", word)] if word else []
        return self.render([*system, _row("user", _USER)], **variables)

    def varies(self, name: str, one: Any, other: Any) -> bool:
        """Whether two values of a variable make two prompts."""
        first, second = self.ask(**{name: one}), self.ask(**{name: other})
        return first is not None and second is not None and first != second

    def quotes(self, text: str) -> bool:
        """Whether it stands in the template as a string."""
        return f"'{text}'" in self.template or f'"{text}"' in self.template


def _row(role: str, content: str, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


def in_parts(row: Row) -> Row:
    """A message whose content is a list of parts."""
    if not isinstance(row["content"], str):
        return row
    return {**row, "content": [{"type": "text", "text": row["content"]}]}


def _late_system(probe: _Probe) -> bool:
    talk = [_row("user", _USER), _row("assistant", _ANSWER)]
    rows = [_row("system", _SYSTEM), *talk, _row("system", "Zlater"), _row("user", _USER)]
    return probe.shows(rows, _SYSTEM, "Zlater")


def _thoughts(probe: _Probe) -> bool:
    parts = [{"type": "thinking", "thinking": _THOUGHT}, {"type": "text", "text": _ANSWER}]
    answered = {"role": "assistant", "content": parts}
    marks = reasoning_format_of(probe.template).opens
    text = probe.render([_row("user", _USER), answered, _row("user", _USER)]) or ""
    return _ANSWER in text and any(mark + _THOUGHT in text for mark in marks)  # and not just all of the list


def _calls(probe: _Probe) -> tuple[str, bool]:
    """In which form it takes arguments ("" when it shows no calls), and whether ids are short."""
    for form in ("mapping", "text"):
        for id_ in ("call_0123456789", "a12345678"):
            if probe.shows(_called(form, id_), f"{_ARGUMENT}0", f"{_RESULT}0", tools=_TOOLS):
                return form, len(id_) == 9
    return "", False


def _one_call(probe: _Probe, form: str, short: bool) -> bool:
    """Whether it refuses or leaves out all but one call of a message."""
    ids = ("a12345678", "b12345678") if short else ("call_0123456789", "call_9876543210")
    wanted = [f"{word}{number}" for word in (_ARGUMENT, _RESULT) for number in range(2)]
    return bool(form) and not probe.shows(_called(form, *ids), *wanted, tools=_TOOLS)


def _called(form: str, *ids: str) -> list[Row]:
    """A chat in which a tool was called once for each id."""
    calls, results = [], []
    for number, id_ in enumerate(ids):
        given = {"x": f"{_ARGUMENT}{number}"}
        arguments = given if form == "mapping" else json.dumps(given)
        function = {"name": _TOOL, "arguments": arguments}
        calls.append({"id": id_, "type": "function", "function": function})
        results.append(_row("tool", f"{_RESULT}{number}", tool_call_id=id_, name=_TOOL))
    return [_row("user", _USER), _row("assistant", "", tool_calls=calls), *results]


_SWITCHES: tuple[tuple[str, Any, Any], ...] = (
    ("enable_thinking", False, True),
    ("thinking", False, True),
    ("thinking_mode", "disabled", "enabled"),
    ("thinking_mode", "chat", "thinking"),
    ("thinking_option", "off", "on"),
    ("thinking_budget", 0, -1),
)
"""Variables that turn thinking off and on: of Qwen and most others; DeepSeek V3.1, Granite and Kimi;
MiniMax M3; DeepSeek V4; Ling; Seed-OSS."""
_WORDS = (("/no_think", "/think"), ("detailed thinking off", "detailed thinking on"))
"""The same in the system prompt: Nemotron."""
_EFFORTS = ("low", "medium", "high")
_NO_EFFORT = ("none", "no_think", "off", "disabled")


def _modes(probe: _Probe) -> dict[str, Mode]:
    """In the order in which they are offered."""
    off, on = Mode(), Mode()
    for name, no, yes in _SWITCHES:
        known = re.search(rf"\b{name}\b", probe.template) and name not in off.variables
        if known and (not isinstance(no, str) or probe.quotes(no)) and probe.varies(name, no, yes):
            off = Mode({**off.variables, name: no})
            on = Mode({**on.variables, name: yes})
    if not off.variables:
        off, on = _word(probe)
    efforts = _efforts(probe, on)
    if off == on:
        high = probe.ask(reasoning_effort="high")
        asked = {value: probe.ask(reasoning_effort=value) for value in _NO_EFFORT if efforts and probe.quotes(value)}
        none = next((value for value, text in asked.items() if text is not None and text != high), "")
        return ({"off": Mode({"reasoning_effort": none})} if none else {}) | efforts
    return {"off": off, "on": on} | efforts


def _word(probe: _Probe) -> tuple[Mode, Mode]:
    for no, yes in _WORDS:
        if no in probe.template:
            without, with_ = probe.ask(no), probe.ask(yes)
            if without is not None and with_ is not None and without.replace(no, "") != with_.replace(yes, ""):
                return Mode(word=no), Mode(word=yes)
    return Mode(), Mode()


def _efforts(probe: _Probe, on: Mode) -> dict[str, Mode]:
    if "reasoning_effort" not in probe.template:
        return {}
    return {
        effort: Mode({**on.variables, "reasoning_effort": effort}, on.word)
        for effort in _EFFORTS
        if _heeds(probe, effort, on)
    }


def _heeds(probe: _Probe, effort: str, on: Mode) -> bool:
    """Whether the template takes this effort, and not just any word in its place."""
    text = probe.ask(on.word, **{**on.variables, "reasoning_effort": effort})
    other = probe.ask(on.word, **{**on.variables, "reasoning_effort": "Zeffort"})
    if text is None:
        return False
    return text != other or probe.quotes(effort)
