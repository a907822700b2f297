"""Chat templates are rendered here only: one policy for what they refuse and what they read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llmsvc.errors import BadRequest
from llmsvc.formats.calls import as_text
from llmsvc.formats.families import PLAIN_TEMPLATE, Family, family_of, told_in_text
from llmsvc.formats.messages import fitted, needs_text, plain, with_word
from llmsvc.formats.reasoning import HARMONY, ReasoningFormat
from llmsvc.formats.scan import trailing
from llmsvc.formats.tools import Row, Tool
from llmsvc.formats.traits import FAILURES, Mode, Traits, traits_of

__all__ = ["PLAIN_TEMPLATE", "Rendered", "Thinking", "can_think", "encode", "plain_stops", "render"]

MOST_VARIABLES, LONGEST_VARIABLES = 32, 16_384
"""How many variables a caller may pass on to the template, and their length as JSON."""
_OURS = frozenset(
    [
        *("self", "messages", "conversation", "conversations", "tools", "documents", "chat_template", "tokenize"),
        *("add_generation_prompt", "continue_final_message", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
        "sanitize_control_tokens",
    ]
)
"""Names that belong to the rendering itself."""


@dataclass(frozen=True)
class Thinking:
    """``mode``: "" (as the model is made), off, on, low, medium, high.

    ``budget``: tokens of reasoning; 0 for no bound.
    """

    mode: str = ""
    budget: int = 0


@dataclass(frozen=True)
class Rendered:
    """A prompt. ``opened``: it ends inside the reasoning, so the answer has no mark that begins it.

    ``continued``: it ends with the first words of the answer, or of its reasoning.
    """

    text: str
    opened: bool
    family: Family
    continued: bool = False


_AS_MADE = Thinking()
_NONE: Mapping[str, Any] = MappingProxyType({})


def render(
    tokenizer: Any,
    messages: Sequence[Row],
    *,
    tools: Sequence[Tool] = (),
    thinking: Thinking = _AS_MADE,
    answer: str = "",
    reasoning: str = "",
    variables: Mapping[str, Any] = _NONE,
) -> Rendered:
    """The messages by the model's chat template, up to where its answer begins or goes on.

    ``messages``: role, content (text), and for assistants also ``reasoning`` and ``tool_calls``.
    ``answer`` and ``reasoning``: the begin of an answer to be continued. ``variables``: for the
    template (``chat_template_kwargs``). Raises BadRequest.
    """
    if not messages:
        raise BadRequest("There are no messages. Send at least one.")
    shown = [tool.row() for tool in tools]
    template = _template(tokenizer, shown)
    traits, family = _traits(tokenizer, template), family_of(template)
    mode = _mode(traits, thinking)
    rows = with_word([plain(row) for row in messages], mode.word)
    if needs_text(rows, tools, traits):
        rows, shown = as_text(rows, () if traits.tools else tools), shown if traits.tools else []
        family = told_in_text(family, tools=not traits.tools)
    rows = fitted(rows, traits, family)
    given = {**mode.variables, **_budget(traits, thinking), **_checked(variables)}
    text = _bos(tokenizer, template) + _rendered(tokenizer, template, rows, shown, given)
    return _begun(text, family, answer, reasoning)


def encode(tokenizer: Any, rendered: Rendered | str) -> tuple[int, ...]:
    """Tokens of a prompt, none added."""
    text = rendered if isinstance(rendered, str) else rendered.text
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def can_think(tokenizer: Any) -> tuple[str, ...]:
    """The modes of thinking that its template knows: ("off", "on"), ("low", "medium", "high"), …

    None of a model that cannot be asked at all: ``render`` says why.
    """
    try:
        return tuple(_traits(tokenizer, _template(tokenizer, [])).modes)
    except BadRequest:
        return ()


def plain_stops() -> tuple[str, ...]:
    """Texts at which an answer to PLAIN_TEMPLATE ends: there the next speaker's line begins."""
    speakers = ("User", "System", "Assistant")
    return tuple(f"{gap}{speaker}:" for gap in ("\n\n", "\n") for speaker in speakers)


def _template(tokenizer: Any, tools: Sequence[Row]) -> str:
    """The one that will be used; "" for a model on another server. Raises BadRequest for none."""
    if not getattr(tokenizer, "chat_template", "elsewhere"):
        return PLAIN_TEMPLATE
    try:
        return str(tokenizer.get_chat_template(tools=list(tools) or None))
    except ValueError:  # several, and none is the default
        raise BadRequest(
            "This model has several chat templates and names none as its default. Choose another."
        ) from None


def _traits(tokenizer: Any, template: str) -> Traits:
    specials = getattr(tokenizer, "special_tokens_map", {})
    return traits_of(template, tuple((name, text) for name, text in specials.items() if isinstance(text, str)))


def _rendered(tokenizer: Any, template: str, rows: list[Row], tools: list[Row], given: Row) -> str:
    """Raises BadRequest for what the template refuses."""
    import jinja2

    if template:
        given = {"chat_template": template, **given}
    try:
        rendered = tokenizer.apply_chat_template(
            rows, tools or None, tokenize=False, add_generation_prompt=True, **given
        )
    except (jinja2.TemplateError, *FAILURES) as error:
        # What a template raises by itself is said in words; everything else is jinja's.
        reason = f' It says: "{str(error).rstrip(". ")}".' if type(error) is jinja2.TemplateError else ""
        raise BadRequest(
            f"The model's chat template cannot take these messages.{reason} Begin with a system or a user message, let "
            "user and assistant take turns, and end with the user's; or choose another model."
        ) from error
    return checked_text(str(rendered))


def checked_text(text: str) -> str:
    """The text. Raises BadRequest for one that has half of a character in it, which is no Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest(
            "A text has half of a surrogate pair in it, as \\ud83d alone. Send whole characters."
        ) from None
    return text


def _bos(tokenizer: Any, template: str) -> str:
    """The token that its tokenizer puts before every text, for a base model: its template has none."""
    if template != PLAIN_TEMPLATE:
        return ""
    bos = getattr(tokenizer, "bos_token", None)
    ids = tokenizer("")["input_ids"] if bos else ()
    return str(bos) if ids and ids[0] == tokenizer.bos_token_id else ""


# Thinking, and the template's variables


def _mode(traits: Traits, thinking: Thinking) -> Mode:
    """Raises BadRequest for a mode that the model has not."""
    if not thinking.mode:
        return Mode()
    if thinking.mode in traits.modes:
        return traits.modes[thinking.mode]
    if not traits.modes:
        raise BadRequest(
            f'This model cannot be told how to think, so thinking cannot be "{thinking.mode[:40]}". Leave it out.'
        )
    known = ", ".join(traits.modes)
    raise BadRequest(
        f'This model has no thinking mode "{thinking.mode[:40]}". Choose one of: {known}; or leave it out.'
    )


def _budget(traits: Traits, thinking: Thinking) -> Row:
    return {"thinking_budget": thinking.budget} if traits.budget and thinking.budget and thinking.mode != "off" else {}


def _checked(variables: Mapping[str, Any]) -> Row:
    """Raises BadRequest for what a template must not be given."""
    if taken := sorted(name for name in variables if name in _OURS or not name.isidentifier()):
        raise BadRequest(
            f"chat_template_kwargs cannot set {', '.join(taken)[:200]}. Send these as they are named elsewhere."
        )
    try:
        length = len(json.dumps(variables if isinstance(variables, dict) else dict(variables), allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise BadRequest(
            "chat_template_kwargs must be plain JSON: texts, numbers, true, false, lists, objects."
        ) from None
    if len(variables) > MOST_VARIABLES or length > LONGEST_VARIABLES:
        raise BadRequest(
            f"chat_template_kwargs has {len(variables)} names and {length:,} characters; at most {MOST_VARIABLES} and "
            f"{LONGEST_VARIABLES:,} are taken. Put long texts into the messages."
        )
    return dict(variables)


# The begin of an answer


def _begun(text: str, family: Family, answer: str, reasoning: str) -> Rendered:
    """With what is there of the answer: reasoning is ended where there are words of the answer."""
    format_ = family.reasoning
    opened = format_ is not None and _ends_open(text, format_)
    if not (answer or reasoning):
        return Rendered(text, opened, family)
    if format_ is None:
        return Rendered(text + answer, False, family, True)
    closed = not opened and bool(trailing(text.rstrip(), format_.closes))  # it shall not reason
    if reasoning and not (closed and answer):
        text = (text if opened else _opened(text, format_)) + reasoning
        opened = True
    if not answer:
        return Rendered(text, True, family, True)
    before = format_.closing if opened else ""
    if format_ is not HARMONY or not before:  # its closing begins the answer as well
        before += format_.answer
    return Rendered(text + before + answer, False, family, True)


def _opened(text: str, format_: ReasoningFormat) -> str:
    """A prompt that goes on with reasoning, also where the template closed it at once."""
    if mark := trailing(text.rstrip(), format_.closes):
        text = text.rstrip().removesuffix(mark).rstrip().removesuffix(format_.label.rstrip())
        text = text.removesuffix(trailing(text, format_.opens))
    return text + format_.opening


def _ends_open(text: str, format_: ReasoningFormat) -> bool:
    """Whether the template opened the reasoning itself."""
    end = text[-200:].rstrip()
    if format_ is HARMONY:
        return end.endswith(format_.opening)
    for mark in format_.hidden:
        end = end.removesuffix(mark)
    return end.removesuffix(format_.label.rstrip() or "\0").endswith(format_.opens)
