"""Calls in the form of each format, as its chat template writes them."""

import json
from collections.abc import Callable
from typing import Any

from calls_published import Calls

Written = Callable[[Calls], str]


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def value(found: Any) -> str:
    """A string as it is, anything else as JSON."""
    return found if isinstance(found, str) else as_json(found)


def each(one: Callable[[str, dict], str], before: str = "", between: str = "", after: str = "") -> Written:
    return lambda calls: before + between.join(one(*call) for call in calls) + after


def objects(before: str = "", between: str = ", ", after: str = "") -> Written:
    return each(lambda name, given: as_json({"name": name, "arguments": given}), before, between, after)


def elements(head: str, key: str, end: str, foot: str, before: str = "", between: str = "", after: str = "") -> Written:
    def one(name: str, given: dict) -> str:
        inner = (
            key.replace("KEY", item).replace("IS", str(isinstance(found, str)).lower()) + value(found) + end
            for item, found in given.items()
        )
        return head.replace("NAME", name) + "".join(inner) + foot

    return each(one, before, between, after)


def pythonic(name: str, given: dict) -> str:
    """Strings are escaped as JSON's, which Python reads alike."""
    return f"{name}({', '.join(f'{key}={as_json(found)}' for key, found in given.items())})"


def braces(found: Any, quote: str) -> str:
    if isinstance(found, str):
        return f"{quote}{found}{quote}"
    if isinstance(found, dict):
        return "{" + ",".join(f"{key}:{braces(found[key], quote)}" for key in sorted(found)) + "}"
    if isinstance(found, list):
        return "[" + ",".join(braces(item, quote) for item in found) + "]"
    return as_json(found)


def kimi(calls: Calls) -> str:
    inner = (
        f"<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{as_json(given)}<|tool_call_end|>"
        for index, (name, given) in enumerate(calls)
    )
    return "<|tool_calls_section_begin|>" + "".join(inner) + "<|tool_calls_section_end|>"


def command(calls: Calls) -> str:
    inner = (
        f'{{"tool_call_id": "{index}", "tool_name": "{name}", "parameters": {as_json(given)}}}'
        for index, (name, given) in enumerate(calls)
    )
    return "<|START_ACTION|>[\n    " + ",\n    ".join(inner) + "\n]<|END_ACTION|>"


def dsml(section: str) -> Written:
    return elements(
        '<｜DSML｜invoke name="NAME">\n',
        '<｜DSML｜parameter name="KEY" string="IS">',
        "</｜DSML｜parameter>\n",
        "</｜DSML｜invoke>\n",
        f"<｜DSML｜{section}>\n",
        "",
        f"</｜DSML｜{section}>",
    )


def pairs(line: str, head: str = "<tool_call>NAME", before: str = "", after: str = "") -> Written:
    key, end = f"<arg_key>KEY</arg_key>{line}<arg_value>", f"</arg_value>{line}"
    return elements(head + line, key, end, "</tool_call>", before, "\n", after)


def gemma(head: str, foot: str, quote: str) -> Written:
    return each(lambda name, given: f"{head}call:{name}{braces(given, quote)}{foot}")


_BEGIN, _END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_HERMES = objects("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>")

WRITTEN: dict[str, Written] = {
    "hermes": _HERMES,
    "plain": _HERMES,
    "qwen-xml": elements(
        "<tool_call>\n<function=NAME>\n",
        "<parameter=KEY>\n",
        "\n</parameter>\n",
        "</function>\n</tool_call>",
        between="\n",
    ),
    "seed-oss": elements(
        "<seed:tool_call>\n<function=NAME>\n",
        "<parameter=KEY>",
        "</parameter>\n",
        "</function>\n</seed:tool_call>",
        between="\n",
    ),
    "function-tags": each(lambda name, given: f"<function={name}>{as_json(given)}</function>"),
    "minimax": elements(
        '<invoke name="NAME">\n',
        '<parameter name="KEY">',
        "</parameter>\n",
        "</invoke>\n",
        "<minimax:tool_call>\n",
        "",
        "</minimax:tool_call>",
    ),
    "glm-4.5": pairs("\n"),
    "glm-4.7": pairs(""),
    "hunyuan-3": pairs("\n", "<tool_call>NAME<tool_sep>", "<tool_calls>\n", "\n</tool_calls>"),
    "harmony": each(
        lambda name, given: (
            f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{as_json(given)}<|call|>"
        )
    ),
    "llama-json": each(lambda name, given: as_json({"name": name, "parameters": given}), between="; "),
    "pythonic": each(pythonic, "[", ", ", "]"),
    "olmo-3": each(pythonic, "<function_calls>\n", "\n", "\n</function_calls>"),
    "lfm2": each(pythonic, "<|tool_call_start|>[", ", ", "]<|tool_call_end|>"),
    "gemma-4": gemma("<|tool_call>", "<tool_call|>", '<|"|>'),
    "function-gemma": gemma("<start_function_call>", "<end_function_call>", "<escape>"),
    "mistral-v3": objects("[TOOL_CALLS][", ", ", "]"),
    "mistral-v11": each(lambda name, given: f"[TOOL_CALLS]{name}[ARGS]{as_json(given)}"),
    "mistral-ids": each(lambda name, given: f"[TOOL_CALLS]{name}[CALL_ID]a1B2c3D4e[ARGS]{as_json(given)}"),
    "deepseek-v3": each(
        lambda name, given: f"{_BEGIN}function<｜tool▁sep｜>{name}\n```json\n{as_json(given)}\n```{_END}",
        "<｜tool▁calls▁begin｜>",
        "\n",
        "<｜tool▁calls▁end｜>",
    ),
    "deepseek-v3.1": each(
        lambda name, given: f"{_BEGIN}{name}<｜tool▁sep｜>{as_json(given)}{_END}",
        "<｜tool▁calls▁begin｜>",
        "",
        "<｜tool▁calls▁end｜>",
    ),
    "deepseek-v3.2": dsml("function_calls"),
    "deepseek-v4": dsml("tool_calls"),
    "kimi-k2": kimi,
    "hunyuan": objects("<tool_calls>[", ", ", "]</tool_calls>"),
    "nemotron": objects("<TOOLCALL>[", ", ", "]</TOOLCALL>"),
    "granite": objects("<|tool_call|>[", ", ", "]"),
    "phi-4-mini": objects("<|tool_call|>[", ", ", "]<|/tool_call|>"),
    "functools": objects("functools[", ", ", "]"),
    "json-list": objects("[", ", ", "]"),
    "command": command,
    "apertus": each(lambda name, given: as_json({name: given}), "<|tools_prefix|>[", ", ", "]<|tools_suffix|>"),
    "gigachat": objects("<|function_call|>", "\n<|function_call|>"),
    "function-call": objects("<function_call> ", "\n<function_call> "),
}
