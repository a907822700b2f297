"""What an engine is asked for: a prompt by its model's template, and the bounds of the template's family."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmsvc.chat import options
from llmsvc.engine import GenerationRequest, SamplingParams, TokenEvent
from llmsvc.engine.request import Source, ThinkingLimit
from llmsvc.formats import templates
from llmsvc.formats.calls import compact
from llmsvc.formats.reader import AnswerReader, closing
from llmsvc.formats.templates import Rendered, Thinking
from llmsvc.formats.tools import Tool, Tools
from llmsvc.models.loader import LoadedModel
from llmsvc.store.database import Row

_AS_MADE = Thinking()


@dataclass(frozen=True)
class Manner:
    """How an answer begins. ``bound``: with its words, as one of a form must: nothing is reasoned before.

    ``variables``: for the template.
    """

    thinking: Thinking = _AS_MADE
    bound: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, chosen: Row, tokenizer: Any, variables: Mapping[str, Any] | None = None) -> "Manner":
        """By all options, as near as this model can come to them."""
        bound = bool(chosen["json_schema"] or chosen["regex"])
        wanted = {**chosen, "thinking": "off"} if bound else chosen
        return cls(options.thinking(wanted, templates.can_think(tokenizer)), bound, variables or {})


AS_MADE = Manner()


def rendered(
    tokenizer: Any,
    messages: Sequence[Row],
    manner: Manner = AS_MADE,
    *,
    tools: Sequence[Tool] = (),
    answer: str = "",
    reasoning: str = "",
) -> Rendered:
    """The prompt as text. See ``templates.render``, also for what it raises."""
    prompt = templates.render(
        tokenizer,
        messages,
        tools=tools,
        thinking=manner.thinking,
        answer=answer,
        reasoning=reasoning,
        variables=manner.variables,
    )
    marks = prompt.family.reasoning
    if marks is None or answer or not manner.bound:
        return prompt
    end = closing(prompt.family) if prompt.opened else marks.answer
    begun = prompt.continued or bool(end)
    return replace(prompt, text=prompt.text + end, opened=False, continued=begun)


def bound_to_calls(sampling: SamplingParams, prompt: Rendered, tools: Tools, remote: bool) -> SamplingParams:
    """The answer is calls: written in the family's own way, behind reasoning that is open.

    Other servers are bound to one call by a schema.
    """
    sampling = replace(sampling, json_schema="", regex="")
    if remote:
        return replace(sampling, json_schema=_call_schema(tools))
    marks = prompt.family.reasoning
    ends = marks.closes[0] if marks and prompt.opened else ""
    return replace(sampling, grammar=prompt.family.calls.grammar(tools, ends))


def _call_schema(tools: Tools) -> str:
    """What the tools define is shared by them."""
    calls: list[Row] = []
    shared: dict[str, Row] = {"$defs": {}, "definitions": {}}
    for tool in tools.callable:
        parameters = dict(tool.parameters)
        for key, definitions in shared.items():
            definitions |= parameters.pop(key, None) or {}
        properties = {"name": {"const": tool.name}, "arguments": parameters}
        calls.append({"type": "object", "properties": properties, "required": ["name", "arguments"]})
        calls[-1]["additionalProperties"] = False
    whole = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return compact({**whole, **{key: known for key, known in shared.items() if known}})


def reader(prompt: Rendered, tools: Sequence[Tool] = ()) -> AnswerReader:
    """What tells the parts of the answer to a prompt apart."""
    return AnswerReader(prompt.family, tools, opened=prompt.opened, continued=prompt.continued)


def request(
    id_: str,
    loaded: LoadedModel,
    tokens: tuple[int, ...],
    sampling: SamplingParams,
    deliver: Callable[[TokenEvent], None],
    *,
    group: str = "",
    source: Source = (),
    prompt: Rendered | None = None,
    budget: int = 0,
) -> GenerationRequest:
    """``prompt``: what the tokens say, by a template; None for a text that is none. ``budget``: tokens of reasoning."""
    if prompt is None:
        return GenerationRequest(id_, tokens, sampling, deliver, group, source)
    if not isinstance(source, str):  # other servers need not know of reasoning
        source = tuple({name: value for name, value in row.items() if name != "reasoning"} for row in source)
    if loaded.plain_template:
        sampling = replace(sampling, stop=(*sampling.stop, *templates.plain_stops()))
    limit = _limit(loaded.tokenizer, prompt, budget)
    return GenerationRequest(id_, tokens, sampling, deliver, group, source, prompt.family.marks, limit)


def _limit(tokenizer: Any, prompt: Rendered, budget: int) -> ThinkingLimit | None:
    """From where the reasoning begins: at once, or where the model opens it. None behind words of the answer."""
    end, marks = closing(prompt.family), prompt.family.reasoning
    if not (budget and end and marks) or (prompt.continued and not prompt.opened):
        return None
    until = (*marks.closes, *marks.interrupts)
    return ThinkingLimit(budget, until, templates.encode(tokenizer, end), () if prompt.opened else marks.begins)
