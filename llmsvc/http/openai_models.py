"""What OpenAI's clients send. https://platform.openai.com/docs/api-reference"""

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from llmsvc.chat.completions import Ask
from llmsvc.errors import BadRequest
from llmsvc.formats.calls import compact
from llmsvc.formats.templates import checked_text
from llmsvc.formats.tools import Tool, Tools
from llmsvc.http.thinking import ThinkingConfig, thinking_options

Content = str | list[dict[str, Any]] | None

_TEXTS = ("text", "input_text", "output_text", "refusal")


def text_of(content: Content) -> str:
    """The text of a message's parts. Raises BadRequest for parts of other kinds."""
    if content is None or isinstance(content, str):
        return checked_text(content or "")
    texts = []
    for part in content:
        text = part.get("text", part.get("refusal"))
        if part.get("type") not in _TEXTS or not isinstance(text, str):
            kind = str(part.get("type"))[:40]
            raise BadRequest(f'Models here read text only, and a message has a part of type "{kind}". Leave it out.')
        texts.append(checked_text(text))
    return "\n".join(texts)


class FunctionCall(BaseModel):
    name: str
    arguments: str = "{}"


class Call(BaseModel):
    id: str = ""
    function: FunctionCall


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str = ""

    def row(self) -> dict[str, Any]:
        """As chat templates take it."""
        role = "system" if self.role == "developer" else self.role
        row: dict[str, Any] = {"role": role, "content": text_of(self.content)}
        if role == "assistant" and (reasoning := self.reasoning_content or self.reasoning):
            row["reasoning"] = reasoning
        if self.tool_calls:
            calls = [call_row(call.id, call.function.name, call.function.arguments) for call in self.tool_calls]
            row["tool_calls"] = calls
        if role == "tool":
            row["tool_call_id"] = self.tool_call_id
        return row


def call_row(id_: str, name: str, arguments: Any) -> dict[str, Any]:
    """A call that was made, as chat templates take it, its arguments as JSON text or as what that says.

    Raises BadRequest.
    """
    try:
        given = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        raise BadRequest(f"The arguments of the call of {name} are no JSON.") from None
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": given}}


class Function(BaseModel):
    name: str = Field(pattern=r"^[\w.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None

    def tool(self) -> Tool:
        return Tool(self.name, self.description or "", self.parameters or {"type": "object", "properties": {}})


class FunctionTool(BaseModel):
    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    name: str


class NamedTool(BaseModel):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(BaseModel):
    name: str = ""
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def schema_text(self) -> str:
        """Raises BadRequest when it lacks its schema."""
        if self.type == "text":
            return ""
        if self.type == "json_object":
            return compact({"type": "object"})
        if self.json_schema is None:
            raise BadRequest("response_format.json_schema is missing.")
        return compact(self.json_schema.schema_)


class StreamOptions(BaseModel):
    include_usage: bool = False


class _Request(BaseModel):
    """What both kinds of completions have. The service's settings stand for what is left out."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1)
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    regex: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def options(self, **more: Any) -> dict[str, Any]:
        """Those of ``chat.options`` that were given. Raises BadRequest for what the engine does not do."""
        for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
            if getattr(self, name):
                raise BadRequest(f"{name} is not supported. Leave it out; repetition_penalty is.")
        names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "regex")
        given = {**{name: getattr(self, name) for name in names}, **more}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Request):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    reasoning_effort: str | None = None
    thinking: ThinkingConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def ask(self) -> Ask:
        """Raises BadRequest."""
        more = thinking_options(self.reasoning_effort, self.thinking)
        if self.max_completion_tokens is not None:
            more["max_tokens"] = self.max_completion_tokens
        if self.response_format is not None:
            more["json_schema"] = self.response_format.schema_text()
        choice = self.tool_choice if isinstance(self.tool_choice, str) else self.tool_choice.function.name
        return Ask(
            self.model,
            [message.row() for message in self.messages],
            options=self.options(**more),
            n=self.n,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            tools=chosen_tools([tool.function.tool() for tool in self.tools or ()], choice, self.parallel_tool_calls),
            parallel=self.parallel_tool_calls,
            variables=self.chat_template_kwargs or {},
        )


def chosen_tools(tools: Sequence[Tool], choice: str, parallel: bool = True) -> Tools:
    """``choice``: none, auto, required, or a tool's name; ``parallel``: several may be called. Raises BadRequest."""
    if choice == "required" and len(tools) == 1 and not parallel:  # the one that is named is called once
        choice = tools[0].name
    return Tools() if choice == "none" else Tools(tuple(tools), choice)


class CompletionRequest(_Request):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = None
    suffix: str | None = None

    def ask(self) -> Ask:
        """Raises BadRequest."""
        if self.echo or self.suffix or self.best_of not in (None, self.n):
            raise BadRequest("echo, suffix and best_of are not supported. Leave them out.")
        prompt = self.prompt
        prompts = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else prompt
        if not prompts:
            raise BadRequest("There is no prompt.")
        return Ask(self.model, prompts=prompts, options=self.options(), n=self.n, logprobs=self.logprobs)  # type: ignore[arg-type]
