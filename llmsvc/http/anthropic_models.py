"""What Anthropic's clients send. https://docs.anthropic.com/en/api/messages"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from llmsvc.chat.completions import Ask
from llmsvc.formats.calls import compact
from llmsvc.formats.tools import Tool
from llmsvc.http.openai_models import call_row, chosen_tools, text_of
from llmsvc.http.thinking import ThinkingConfig, thinking_options

Block = dict[str, Any]


class Message(BaseModel):
    role: Literal["user", "assistant"]
    content: str | list[Block]

    def rows(self) -> list[dict[str, Any]]:
        """As chat templates take it: results of tools are messages of their own. Raises BadRequest."""
        if isinstance(self.content, str):
            return [{"role": self.role, "content": self.content}]
        kinds: dict[str, list[Block]] = {"tool_use": [], "tool_result": [], "thinking": [], "redacted_thinking": []}
        words: list[Block] = []
        for block in self.content:
            kinds.get(str(block.get("type", "")), words).append(block)
        rows = [_result_row(block) for block in kinds["tool_result"]]
        row: dict[str, Any] = {"role": self.role, "content": text_of(words)}
        if reasoning := "\n\n".join(filter(None, (str(b.get("thinking") or "") for b in kinds["thinking"]))):
            row["reasoning"] = reasoning
        if calls := kinds["tool_use"]:
            row["tool_calls"] = [call_row(str(b.get("id")), str(b.get("name")), b.get("input", {})) for b in calls]
        return [*rows, row] if words or calls or not rows else rows


def _result_row(block: Block) -> dict[str, Any]:
    said = text_of(block.get("content"))
    text = f"Error: {said}" if block.get("is_error") else said
    return {"role": "tool", "content": text, "tool_call_id": str(block.get("tool_use_id"))}


class ToolDefinition(BaseModel):
    type: Literal["custom"] | None = None
    name: str = Field(pattern=r"^[\w.-]{1,64}$")
    description: str = ""
    input_schema: dict[str, Any]


class ToolChoice(BaseModel):
    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool = False

    @property
    def choice(self) -> str:
        return {"any": "required", "tool": self.name}.get(self.type, self.type)


class OutputFormat(BaseModel):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    format: OutputFormat | None = None
    effort: str | None = None


class CountRequest(BaseModel):
    model: str
    messages: list[Message] = Field(min_length=1)
    system: str | list[Block] = ""
    tools: list[ToolDefinition] = []
    tool_choice: ToolChoice = ToolChoice(type="auto")
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def ask(self) -> Ask:
        """Raises BadRequest."""
        system = text_of(self.system)
        rows = [{"role": "system", "content": system}] if system else []
        rows += [row for message in self.messages for row in message.rows()]
        tools = [Tool(tool.name, tool.description, tool.input_schema) for tool in self.tools]
        parallel = not self.tool_choice.disable_parallel_tool_use
        chosen = chosen_tools(tools, self.tool_choice.choice, parallel)
        variables = self.chat_template_kwargs or {}
        return Ask(self.model, rows, options=self.options(), tools=chosen, parallel=parallel, variables=variables)

    def options(self) -> dict[str, Any]:
        """Those of ``chat.options`` that were set. Raises BadRequest."""
        effort = self.output_config.effort if self.output_config else None
        return thinking_options(effort, self.thinking, "output_config.effort")


class MessagesRequest(CountRequest):
    max_tokens: int
    stop_sequences: list[str] = []
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stream: bool = False

    def options(self) -> dict[str, Any]:
        names = ("max_tokens", "temperature", "top_p", "top_k")
        given = {**{name: getattr(self, name) for name in names}, "stop": self.stop_sequences or None}
        if self.output_config is not None and self.output_config.format is not None:
            given["json_schema"] = compact(self.output_config.format.schema_)
        return super().options() | {name: value for name, value in given.items() if value is not None}
