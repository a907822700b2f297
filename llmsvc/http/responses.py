"""OpenAI's Responses API, without its storage. https://platform.openai.com/docs/api-reference/responses"""

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from llmsvc.chat.completions import Answer, Ask, Piece, Usage
from llmsvc.chat.transfer import new_id
from llmsvc.errors import BadRequest
from llmsvc.formats.calls import compact
from llmsvc.formats.tools import Tool, ToolCall
from llmsvc.http.answers import WAITING, data, stream, whole
from llmsvc.http.openai_models import Content, call_row, chosen_tools, text_of
from llmsvc.http.thinking import ThinkingConfig, thinking_options
from llmsvc.service import Service


class Item(BaseModel):
    """A message, reasoning, a call, or what a call gave."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] = "user"
    content: Content = None
    call_id: str = ""
    name: str = ""
    arguments: str = "{}"
    output: Content = None
    summary: list[dict[str, Any]] = []

    def reasoning(self) -> str:
        parts = self.content if isinstance(self.content, list) and self.content else self.summary
        return "\n\n".join(str(part.get("text") or "") for part in parts)


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


class Reasoning(BaseModel):
    effort: str | None = None
    summary: str | None = None


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
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    background: bool | None = None
    metadata: dict[str, str] | None = None
    reasoning: Reasoning | None = None
    thinking: ThinkingConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None

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
        effort = self.reasoning.effort if self.reasoning else None
        options |= thinking_options(effort, self.thinking, "reasoning.effort")
        tools = [Tool(tool.name, tool.description or "", tool.parameters or {"type": "object"}) for tool in self.tools]
        choice = self.tool_choice if isinstance(self.tool_choice, str) else self.tool_choice.name
        return Ask(
            self.model,
            rows + _rows(items),
            options={name: value for name, value in options.items() if value is not None},
            tools=chosen_tools(tools, choice, self.parallel_tool_calls),
            parallel=self.parallel_tool_calls,
            variables=self.chat_template_kwargs or {},
        )

    def _schema(self) -> str | None:
        asked = self.text.format
        if asked.type == "json_schema" and asked.schema_ is None:
            raise BadRequest("text.format.schema is missing.")
        return None if asked.type == "text" else compact(asked.schema_ or {"type": "object"})


def _rows(items: list[Item]) -> list[dict[str, Any]]:
    """As chat templates take them: calls belong to the message before them, reasoning to the one behind it."""
    rows: list[dict[str, Any]] = []
    for item in items:
        last = rows[-1] if rows else {"role": ""}
        if item.type == "reasoning":
            if reasoning := item.reasoning():
                rows.append({"role": "assistant", "content": "", "reasoning": reasoning})
        elif item.type == "function_call":
            if last["role"] != "assistant":
                rows.append({"role": "assistant", "content": ""})
            rows[-1].setdefault("tool_calls", []).append(call_row(item.call_id, item.name, item.arguments))
        elif item.type == "function_call_output":
            rows.append({"role": "tool", "content": text_of(item.output), "tool_call_id": item.call_id})
        elif item.type == "message":
            role = "system" if item.role == "developer" else item.role
            if role == "assistant" and last.get("reasoning") and not (last["content"] or last.get("tool_calls")):
                last["content"] = text_of(item.content)
            else:
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
        output = [_reasoning_item(_id("rs"), choice.reasoning)] if choice.reasoning else []
        output += [_message_item(_id("msg"), choice.text)] if choice.text or not choice.calls else []
        output += [_call_item(_id("fc"), call) for call in choice.calls]
        head = _head(answered.model, body)
        return JSONResponse(head | _ended(output, choice.finish, answered.usage), headers=answered.headers)


def _id(prefix: str) -> str:
    return f"{prefix}_{new_id()}"


def _head(model: str, body: ResponsesRequest) -> dict[str, Any]:
    names = {
        "instructions",
        "max_output_tokens",
        "temperature",
        "top_p",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning",
    }
    asked = body.model_dump(include=names)
    made = {"id": _id("resp"), "object": "response", "created_at": int(time.time()), "model": model, "output": []}
    rest = {"metadata": body.metadata or {}, "store": False, "usage": None}
    return {**asked, **made, **rest, "status": "in_progress", "error": None, "incomplete_details": None}


def _ended(output: list[dict[str, Any]], finish: str, usage: Usage) -> dict[str, Any]:
    cut = finish == "length"
    counted = {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
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


def _reasoning_part(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}


def _reasoning_item(id_: str, text: str, status: str = "completed") -> dict[str, Any]:
    content = [_reasoning_part(text)] if status == "completed" else []
    return {"type": "reasoning", "id": id_, "summary": [], "content": content, "status": status}


def _call_item(id_: str, call: ToolCall, arguments: str | None = None) -> dict[str, Any]:
    given = call.arguments if arguments is None else arguments
    status = "completed" if arguments is None else "in_progress"
    item = {"type": "function_call", "id": id_, "call_id": call.id, "name": call.name}
    return {**item, "arguments": given, "status": status}


async def _events(answer: Answer, body: ResponsesRequest) -> AsyncIterator[str]:
    """https://platform.openai.com/docs/api-reference/responses-streaming"""
    items, finish = _Items(), "stop"
    head = _head(answer.model, body)
    yield items.event("created", response=head)
    yield items.event("in_progress", response=head)
    async for piece in answer.pieces():
        if not piece:
            yield WAITING
        for event in items.of(piece):
            yield event
        finish = piece.finish or finish
    for event in items.end():
        yield event
    response = head | _ended(items.output, finish, answer.usage)
    yield items.event("incomplete" if finish == "length" else "completed", response=response)


_TEXTS: dict[str, tuple[str, Callable[..., dict[str, Any]], Callable[[str], dict[str, Any]], dict[str, Any]]] = {
    "msg": ("output_text", _message_item, _part, {"logprobs": []}),
    "rs": ("reasoning_text", _reasoning_item, _reasoning_part, {}),
}
"""By the prefix of an item's id: how its events are called, the item, its part, and what each event has besides."""


class _Items:
    """The items of one answer, as events; at most one of them is open."""

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self._numbers = itertools.count()
        self._kind = self._id = self._text = ""

    def event(self, kind: str, **fields: Any) -> str:
        name = f"response.{kind}"
        return data({"type": name, "sequence_number": next(self._numbers), **fields}, name)

    def of(self, piece: Piece) -> Iterator[str]:
        for kind, text in (("rs", piece.reasoning), ("msg", piece.text)):
            if text:
                yield from self._said(kind, text)
        for call in piece.calls:
            yield from self.end()
            yield from self._called(call)

    def end(self) -> Iterator[str]:
        """Of the item that is open."""
        if not self._kind:
            return
        name, item, part, more = _TEXTS[self._kind]
        at = self._place()
        self.output.append(item(self._id, self._text))
        yield self.event(f"{name}.done", **at, text=self._text, **more)
        yield self.event("content_part.done", **at, part=part(self._text))
        yield self.event("output_item.done", output_index=at["output_index"], item=self.output[-1])
        self._kind = self._text = ""

    def _said(self, kind: str, text: str) -> Iterator[str]:
        name, item, part, more = _TEXTS[kind]
        if kind != self._kind:
            yield from self.end()
            self._kind, self._id = kind, _id(kind)
            begun = item(self._id, "", "in_progress")
            yield self.event("output_item.added", output_index=len(self.output), item=begun)
            yield self.event("content_part.added", **self._place(), part=part(""))
        self._text += text
        yield self.event(f"{name}.delta", **self._place(), delta=text, **more)

    def _called(self, call: ToolCall) -> Iterator[str]:
        place, id_ = {"output_index": len(self.output)}, _id("fc")
        said = {"item_id": id_, **place}
        yield self.event("output_item.added", **place, item=_call_item(id_, call, ""))
        yield self.event("function_call_arguments.delta", **said, delta=call.arguments)
        yield self.event("function_call_arguments.done", **said, name=call.name, arguments=call.arguments)
        self.output.append(_call_item(id_, call))
        yield self.event("output_item.done", **place, item=self.output[-1])

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": len(self.output), "content_index": 0}
