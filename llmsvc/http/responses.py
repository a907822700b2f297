"""OpenAI's Responses API, without its storage. https://platform.openai.com/docs/api-reference/responses"""

import itertools
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from llmsvc.chat.completions import Answer, Ask, Usage
from llmsvc.chat.tools import Tool, ToolCall, compact
from llmsvc.chat.transfer import new_id
from llmsvc.errors import BadRequest
from llmsvc.http.answers import WAITING, data, stream, whole
from llmsvc.http.openai_models import Content, call_row, chosen_tools, text_of
from llmsvc.service import Service


class Item(BaseModel):
    """A message, a call, or what a call gave."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] = "user"
    content: Content = None
    call_id: str = ""
    name: str = ""
    arguments: str = "{}"
    output: Content = None


class FunctionTool(BaseModel):
    type: Literal["function"]
    name: str = Field(pattern=r"^[\w.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None


class NamedFunctionTool(BaseModel):
    type: Literal["function"]
    name: str


class TextFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class Text(BaseModel):
    format: TextFormat = Field(default_factory=lambda: TextFormat.model_validate({}))


class ResponsesRequest(BaseModel):
    model: str
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool = False
    text: Text = Text()
    tools: list[FunctionTool] = []
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool = "auto"
    previous_response_id: str | None = None
    background: bool | None = None
    metadata: dict[str, str] | None = None

    def ask(self) -> Ask:
        """Raises BadRequest."""
        if self.previous_response_id or self.background:
            raise BadRequest(
                "Responses are not stored here, so previous_response_id and background are not supported. "
                "Send the whole conversation as input, or use the header X-LLMSVC-Session."
            )
        rows = [{"role": "system", "content": self.instructions}] if self.instructions else []
        items = [Item(content=self.input)] if isinstance(self.input, str) else self.input
        options: dict[str, Any] = {"max_tokens": self.max_output_tokens, "temperature": self.temperature}
        options |= {"top_p": self.top_p, "json_schema": self._schema()}
        tools = [Tool(tool.name, tool.description or "", tool.parameters or {"type": "object"}) for tool in self.tools]
        return Ask(
            self.model,
            rows + _rows(items),
            options={name: value for name, value in options.items() if value is not None},
            tools=chosen_tools(tools, self.tool_choice if isinstance(self.tool_choice, str) else self.tool_choice.name),
        )

    def _schema(self) -> str | None:
        asked = self.text.format
        if asked.type == "json_schema" and asked.schema_ is None:
            raise BadRequest("text.format.schema is missing.")
        return None if asked.type == "text" else compact(asked.schema_ or {"type": "object"})


def _rows(items: list[Item]) -> list[dict[str, Any]]:
    """As chat templates take them: calls belong to the message before them."""
    rows: list[dict[str, Any]] = []
    for item in items:
        if item.type == "function_call":
            if not rows or rows[-1]["role"] != "assistant":
                rows.append({"role": "assistant", "content": ""})
            rows[-1].setdefault("tool_calls", []).append(call_row(item.call_id, item.name, item.arguments))
        elif item.type == "function_call_output":
            rows.append({"role": "tool", "content": text_of(item.output), "tool_call_id": item.call_id})
        elif item.type == "message":
            role = "system" if item.role == "developer" else item.role
            rows.append({"role": role, "content": text_of(item.content)})
    return rows


def add_routes(router: APIRouter, service: Service) -> None:
    @router.post("/v1/responses")
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """An answer to input; with the header X-LLMSVC-Session, within that chat."""
        if body.stream:
            return await stream(service, request, body.ask(), lambda answer: _events(answer, body))
        answered = await whole(service, request, body.ask())
        (choice,) = answered.choices
        output = [_message_item(_id("msg"), choice.text)] if choice.text or not choice.calls else []
        output += [_call_item(_id("fc"), call) for call in choice.calls]
        head = _head(answered.model, body)
        return JSONResponse(head | _ended(output, choice.finish, answered.usage), headers=answered.headers)


def _id(prefix: str) -> str:
    return f"{prefix}_{new_id()}"


def _head(model: str, body: ResponsesRequest) -> dict[str, Any]:
    names = {"instructions", "max_output_tokens", "temperature", "top_p", "tools", "tool_choice"}
    asked = body.model_dump(include=names)
    made = {"id": _id("resp"), "object": "response", "created_at": int(time.time()), "model": model, "output": []}
    rest = {"parallel_tool_calls": True, "metadata": body.metadata or {}, "store": False, "usage": None}
    return {**asked, **made, **rest, "status": "in_progress", "error": None, "incomplete_details": None}


def _ended(output: list[dict[str, Any]], finish: str, usage: Usage) -> dict[str, Any]:
    cut = finish == "length"
    counted = {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    }
    details = {"reason": "max_output_tokens"} if cut else None
    status = "incomplete" if cut else "completed"
    return {"output": output, "status": status, "incomplete_details": details, "usage": counted}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _message_item(id_: str, text: str, status: str = "completed") -> dict[str, Any]:
    content = [_part(text)] if status == "completed" else []
    return {"type": "message", "id": id_, "role": "assistant", "status": status, "content": content}


def _call_item(id_: str, call: ToolCall, arguments: str | None = None) -> dict[str, Any]:
    given = call.arguments if arguments is None else arguments
    status = "completed" if arguments is None else "in_progress"
    item = {"type": "function_call", "id": id_, "call_id": call.id, "name": call.name}
    return {**item, "arguments": given, "status": status}


async def _events(answer: Answer, body: ResponsesRequest) -> AsyncIterator[str]:
    """https://platform.openai.com/docs/api-reference/responses-streaming"""
    numbers, output, message, text, finish = itertools.count(), list[dict[str, Any]](), "", "", "stop"

    def event(kind: str, **fields: Any) -> str:
        name = f"response.{kind}"
        return data({"type": name, "sequence_number": next(numbers), **fields}, name)

    def said() -> list[str]:
        """The end of the message."""
        at = {"item_id": message, "output_index": len(output), "content_index": 0}
        output.append(_message_item(message, text))
        return [
            event("output_text.done", **at, text=text, logprobs=[]),
            event("content_part.done", **at, part=_part(text)),
            event("output_item.done", output_index=at["output_index"], item=output[-1]),
        ]

    head = _head(answer.model, body)
    yield event("created", response=head)
    yield event("in_progress", response=head)
    async for piece in answer.pieces():
        if not piece:
            yield WAITING
        if piece.text:
            at = {"output_index": len(output), "content_index": 0}
            if not message:
                message = _id("msg")
                begun = _message_item(message, "", "in_progress")
                yield event("output_item.added", output_index=at["output_index"], item=begun)
                yield event("content_part.added", item_id=message, **at, part=_part(""))
            text += piece.text
            yield event("output_text.delta", item_id=message, **at, delta=piece.text, logprobs=[])
        for call in piece.calls:
            if message:
                for closing in said():
                    yield closing
                message, text = "", ""
            place = {"output_index": len(output)}
            id_ = _id("fc")
            yield event("output_item.added", **place, item=_call_item(id_, call, ""))
            yield event("function_call_arguments.delta", item_id=id_, **place, delta=call.arguments)
            yield event("function_call_arguments.done", item_id=id_, **place, name=call.name, arguments=call.arguments)
            output.append(_call_item(id_, call))
            yield event("output_item.done", **place, item=output[-1])
        finish = piece.finish or finish
    if message:
        for closing in said():
            yield closing
    response = head | _ended(output, finish, answer.usage)
    yield event("incomplete" if finish == "length" else "completed", response=response)
