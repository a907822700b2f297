"""Which family of models a chat template belongs to, by the marks that it writes itself."""

from dataclasses import dataclass, replace
from functools import lru_cache

from llmsvc.formats.calls import CallFormat, call_format_of
from llmsvc.formats.calls.families import HERMES
from llmsvc.formats.reasoning import ReasoningFormat, reasoning_format_of


@dataclass(frozen=True)
class Family:
    """How answers of one chat template are written.

    ``reasoning``: None for base models, which have no marks. ``calls``: how tools are called.
    ``marks``: texts of special tokens which decoding must keep because a reader needs them.
    """

    name: str
    reasoning: ReasoningFormat | None
    calls: CallFormat
    marks: tuple[str, ...]


PLAIN_TEMPLATE = (
    "{% for m in messages %}"
    "{{ m['role'].capitalize() + ': ' + m['content'] + '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For base models, which come without a chat template; the page says when it is used."""


@lru_cache(maxsize=64)
def family_of(template: str) -> Family:
    """By the template's own marks; an empty one stands for one that is on another server."""
    calls = call_format_of(template)
    if template == PLAIN_TEMPLATE:
        return Family("plain", None, calls, tuple(calls.marks))
    reasoning = reasoning_format_of(template)
    name = reasoning.name if reasoning.name == calls.name else f"{reasoning.name}, {calls.name}"
    return Family(name, reasoning, calls, tuple(dict.fromkeys((*reasoning.marks, *calls.marks))))


@lru_cache(maxsize=64)
def told_in_text(family: Family, tools: bool) -> Family:
    """The same family where its template shows no calls: earlier ones are there in Hermes' form.

    ``tools``: they are told of in Hermes' words as well, so that is how they are to be called.
    """
    known, marks = family.calls, tuple(dict.fromkeys((*family.calls.marks, *HERMES.marks)))
    if HERMES.forms[0] in known.forms:
        return family
    calls = replace(
        known,
        marks=marks,
        forms=(HERMES.forms[0], *known.forms),
        writer=HERMES.writer if tools else known.writer,
        closers=(*(known.closers or known.marks[1:]), *HERMES.marks[1:]),
    )
    return replace(family, calls=calls, marks=tuple(dict.fromkeys((*family.marks, *marks))))
