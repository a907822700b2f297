"""Calls of tools: how each family of models writes them, how they are read, and grammars that demand them."""

from functools import lru_cache

from llmsvc.formats.calls.families import CHOICES, HERMES, PLAIN
from llmsvc.formats.calls.format import CallFormat
from llmsvc.formats.calls.grammar import compact
from llmsvc.formats.calls.plain import as_text
from llmsvc.formats.calls.reader import CallReader
from llmsvc.formats.calls.values import Known, NotACall, json_value

__all__ = [
    "HERMES",
    "CallFormat",
    "CallReader",
    "Known",
    "NotACall",
    "as_text",
    "call_format_of",
    "compact",
    "json_value",
]


@lru_cache(maxsize=64)
def call_format_of(template: str) -> CallFormat:
    """The format of a chat template, by the marks in it, never by a model's name; plain JSON where it has none."""
    return next((known for marks, known in CHOICES if all(mark in template for mark in marks)), PLAIN)
