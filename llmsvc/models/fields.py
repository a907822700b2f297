"""What a configuration says where config.json does not: the defaults of its type, read from transformers' source.

Importing them would import torch. Checked against transformers 5.23; where a later version writes them otherwise, only
what config.json says is known.
"""

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmsvc.models import tables

_AUTO = "models/auto/auto_mappings.py"


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with its type's defaults, and with the usual names for what the type calls otherwise."""
    kind = str(config.get("model_type"))
    own = {name: value for name, value in config.items() if value is not None}
    whole = {**defaults(kind), **own}
    usual = {name: whole[other] for name, other in other_names(kind).items() if other in whole and name not in own}
    return {**whole, **usual}


@cache
def defaults(kind: str) -> dict[str, Any]:
    """The fields of a type's configuration that have a plain value."""
    name = "".join(tables.pairs("CONFIG_MAPPING_NAMES", _AUTO).get(kind, ())[:1])
    return _literals(_module(kind), name) if name else {}


@cache
def other_names(kind: str) -> dict[str, str]:
    """By the usual name of a field the one that the type has for it."""
    named = defaults(kind).get("attribute_map")
    return named if isinstance(named, dict) else {}


def _module(kind: str) -> str:
    """The folder that has a type's code."""
    special = tables.pairs("SPECIAL_MODEL_TYPE_TO_MODULE_NAME", _AUTO).get(kind, ())
    return "".join(special[:1]) or kind.replace("-", "_")


def _literals(module: str, name: str) -> dict[str, Any]:
    """Plain values that a class of this module gives its fields, with those of the classes that it stands on."""
    node = _classes(module).get(name)
    values: dict[str, Any] = {}
    if node is not None:
        for base in node.bases:
            values |= _literals(module, base.id) if isinstance(base, ast.Name) else {}
        for statement in node.body:
            values |= _assigned(statement)
    return values


def _assigned(statement: ast.stmt) -> dict[str, Any]:
    if isinstance(statement, ast.AnnAssign):
        target: ast.expr = statement.target
    elif isinstance(statement, ast.Assign):
        target = statement.targets[0]
    else:
        return {}
    if not isinstance(target, ast.Name) or statement.value is None:
        return {}
    try:
        return {target.id: ast.literal_eval(statement.value)}
    except ValueError:  # it is computed
        return {}


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    library = find_spec("transformers")
    places = (library.submodule_search_locations if library else None) or []
    try:
        text = Path(places[0], "models", module, f"configuration_{module}.py").read_text(encoding="utf-8")
    except (OSError, IndexError):  # this version has it elsewhere
        return {}
    return {node.name: node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)}
