"""Calls as elements, one for each argument. Values are written as they are; the schema says of which type they are."""

import re
from collections.abc import Iterator
from functools import partial

from llmsvc.formats.calls.reader import Form, Match
from llmsvc.formats.calls.values import Bare, Known, NotACall, Unfinished, json_value
from llmsvc.formats.tools import ToolCall

_QWEN = re.compile(r"\s*<parameter=([^>\n]+)>")
_INVOKE = re.compile(r'\s*<parameter name="([^"\n]+)">')
_DSML = re.compile(r'\s*<｜DSML｜parameter name="([^"\n]+)"(?: string="(true|false)")?>')
_GLM = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>", re.DOTALL)


def _elements(body: str, opening: re.Pattern[str], closing: str) -> Iterator[tuple[re.Match[str], str]]:
    """Each argument's opening and its value, which ends where another one begins or nothing follows."""
    at = 0
    while body[at:].strip():
        begun = opening.match(body, at)
        if begun is None:
            raise NotACall("Something stands between the arguments.")
        end = at = begun.end()
        while True:
            end = body.find(closing, end)
            if end < 0:
                raise Unfinished("The value has no end.")
            behind = end + len(closing)
            if opening.match(body, behind) or not body[behind:].strip():
                break
            end = behind
        yield begun, body[at:end]
        at = behind


def _call(match: Match, found: dict[str, object], known: Known) -> list[ToolCall]:
    name = match["name"]
    return [known.call(name, {key: known.argument(name, key, value) for key, value in found.items()})]


def parameters(match: Match, body: str, known: Known, *, opening: re.Pattern[str]) -> list[ToolCall]:
    """``<parameter=key>value</parameter>``, or JSON in place of all of them. A line of its own is a value's frame."""
    if body.lstrip().startswith("{"):
        return [known.call(match["name"], json_value(body))]
    found: dict[str, object] = {}
    for begun, value in _elements(body, opening, "</parameter>"):
        framed = len(value) > 1 and value[0] == value[-1] == "\n"
        found[begun[1].strip()] = Bare(value[1:-1] if framed else value)
    return _call(match, found, known)


def dsml(match: Match, body: str, known: Known) -> list[ToolCall]:
    """DeepSeek V3.2: an attribute says whether a value is a string; else it is JSON."""
    if body.lstrip().startswith("{"):
        return [known.call(match["name"], json_value(body))]
    found: dict[str, object] = {}
    for begun, value in _elements(body, _DSML, "</｜DSML｜parameter>"):
        is_text = begun[2] == "true"
        found[begun[1]] = value if is_text else _json_or_text(value) if begun[2] else Bare(value)
    return _call(match, found, known)


def pairs(match: Match, body: str, known: Known) -> list[ToolCall]:
    """``<arg_key>key</arg_key><arg_value>value</arg_value>`` (GLM, Hunyuan 3)."""
    found: dict[str, object] = {begun[1].strip(): Bare(value) for begun, value in _elements(body, _GLM, "</arg_value>")}
    return _call(match, found, known)


def _json_or_text(value: str) -> object:
    try:
        return json_value(value)
    except NotACall:
        return Bare(value)


def functions(wrapper: str) -> Form:
    """``<function=name>`` with parameters or JSON in it, also without the wrapper around it (Qwen3-Coder, Seed)."""
    before = rf"(?:{wrapper}\s*)?" if wrapper else ""
    return Form(
        rf"{before}<function=(?P<name>NAMES)>", partial(parameters, opening=_QWEN), "</function>", brackets=False
    )


INVOKE = Form(
    r'(?:<minimax:tool_call>\s*)?<invoke name="(?P<name>NAMES)">',
    partial(parameters, opening=_INVOKE),
    "</invoke>",
    brackets=False,
)
DSML = Form(
    r'(?:<｜DSML｜(?:function_calls|tool_calls)>\s*)?<｜DSML｜invoke name="(?P<name>NAMES)">',
    dsml,
    "</｜DSML｜invoke>",
    brackets=False,
)
PAIRS = Form(
    r"(?:<tool_calls>\s*)?<tool_call>\s*(?P<name>NAMES)(?:<tool_sep>|\s*(?=<arg_key>|</tool_call>))",
    pairs,
    "</tool_call>",
    brackets=False,
)
