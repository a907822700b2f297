"""Tools, calls and results as plain messages, for a chat template that knows of none."""

import json
from collections.abc import Sequence

from llmsvc.formats.tools import Row, Tool, Tools

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


def prompt(tools: Sequence[Tool]) -> str:
    """What a model is told whose chat template knows no tools, in the words of Hermes and Qwen."""
    signatures = "\n".join(json.dumps(tool.row(), ensure_ascii=False) for tool in tools)
    return _PROMPT.format(signatures=signatures)


def as_text(messages: Sequence[Row], tools: Tools | Sequence[Tool]) -> list[Row]:
    """Messages with tools, calls and results, for a chat template that knows of none."""
    known = tools.tools if isinstance(tools, Tools) else tools
    rows: list[Row] = [{"role": "system", "content": prompt(known)}] if known else []
    for message in messages:
        role, content = message["role"], _content(message)
        last = rows[-1] if rows else {"role": ""}
        if role == "system" and last["role"] == "system":
            last["content"] = f"{content}\n\n{last['content']}"
        elif role == "tool" and last["role"] == "user":
            last["content"] = f"{last['content']}\n\n{content}"
        else:
            rows.append({"role": "user" if role == "tool" else role, "content": content})
    return rows


def _content(message: Row) -> str:
    content = str(message["content"])
    if message["role"] == "tool":
        return f"<tool_response>\n{content}\n</tool_response>"
    calls = message.get("tool_calls") or ()
    for call in calls:
        function = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        content += f"\n<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>"
    return content.strip() if calls else content
