"""JSON schemas of tools' arguments, as clients send them: of any shape, and with references in circles."""

from collections.abc import Mapping
from typing import Any

from llmsvc.errors import BadRequest

Schema = Mapping[str, Any]

_DEEPEST = 64
"""Levels of schemas within schemas; no tool that a person wrote comes near."""
_NAMED = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
_CHOICES, _MAPS = ("anyOf", "oneOf", "allOf"), ("properties", "$defs", "definitions")
_WORDS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(_MAPS, (dict, "an object")),
    **dict.fromkeys((*_CHOICES, "required", "enum"), (list, "a list")),
    "$ref": (str, "a text"),
}


def kinds_of(schema: Any, root: Schema) -> set[str]:
    """The JSON types that a checked schema allows; none where it says nothing of them."""
    return _kinds(schema, root, {}, 0)


def resolved(schema: Any, root: Schema) -> Any:
    """The schema itself, or what its reference names in the end; an empty schema for one that names itself."""
    seen = set[str]()
    while isinstance(schema, dict) and (reference := schema.get("$ref")):
        if reference in seen:
            return {}
        seen.add(reference)
        schema = _referred(reference, root)
    return schema


def check(root: Any) -> None:
    """Raises BadRequest where a schema is none, in itself or in what its references name."""
    _check(root, references := dict[str, None](), 0)
    seen = set[str]()
    while references:
        reference, _ = references.popitem()
        if reference not in seen:
            seen.add(reference)
            _check(_referred(reference, root), references, 0)


def _kinds(schema: Any, root: Schema, known: dict[str, set[str]], depth: int) -> set[str]:
    """``known``: those of the references that were followed; nothing yet for one that is being followed."""
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return set()
    if reference := schema.get("$ref"):
        if reference not in known:
            known[reference] = set()
            known[reference] = _kinds(_referred(reference, root), root, known, depth + 1)
        return known[reference]
    if named := schema.get("type"):
        return {named} if isinstance(named, str) else set(named)
    if "const" in schema or schema.get("enum"):
        return {_NAMED.get(type(value), "null") for value in schema.get("enum") or [schema["const"]]}
    parts = [part for key in _CHOICES for part in schema.get(key) or ()]
    kinds = set[str]().union(*(_kinds(part, root, known, depth + 1) for part in parts))
    return kinds or ({"object"} if "properties" in schema else set())


def _referred(reference: str, root: Schema) -> Any:
    """The part of a schema that a local reference names; an empty schema where there is none."""
    part: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        part = part.get(step, {}) if isinstance(part, dict) else {}
    return part


def _check(schema: Any, references: dict[str, None], depth: int) -> None:
    """``references``: to which those of the schema are added."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise _wrong("a schema", "an object")
    if depth > _DEEPEST:
        raise BadRequest(f"A tool's schema is more than {_DEEPEST} levels deep. Make it flatter.")
    _check_words(schema)
    for part in _parts(schema):
        _check(part, references, depth + 1)
    if reference := schema.get("$ref"):
        references[reference] = None


def _check_words(schema: Schema) -> None:
    """What of a schema is read here must be of the kind that JSON Schema says."""
    for key, (kind, name) in _WORDS.items():
        if schema.get(key) is not None and not isinstance(schema[key], kind):
            raise _wrong(key, name)
    named = schema.get("type")
    names = [*(schema.get("required") or ()), *(named if isinstance(named, list) else [named or ""])]
    if not all(isinstance(name, str) for name in names):
        raise _wrong("type and required", "names")


def _parts(schema: Schema) -> list[Any]:
    """The schemas within a schema."""
    items = schema.get("items")
    parts = [*items] if isinstance(items, list) else [] if items is None else [items]
    for key in _MAPS:
        parts += (schema.get(key) or {}).values()
    return parts + [part for key in _CHOICES for part in schema.get(key) or ()]


def _wrong(name: str, kind: str) -> BadRequest:
    return BadRequest(f"A tool's parameters are no JSON schema: {name} must be {kind}. Correct them.")
