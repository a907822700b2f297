"""transformers' tables of model types and classes, read where they stand: importing them would import torch."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def pairs(table: str, place: str = "models/auto/modeling_auto.py") -> dict[str, tuple[str, ...]]:
    """Of a table such as MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, the class names for each model type.

    Empty when this version of transformers has no such table.
    """
    rows: dict[str, tuple[str, ...]] = {}
    for node in ast.walk(_tables(place).get(table, ast.Pass())):
        if isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[0], ast.Constant):
            named = [value.value for value in ast.walk(node.elts[1]) if isinstance(value, ast.Constant)]
            rows[str(node.elts[0].value)] = tuple(name for name in named if isinstance(name, str))
    return rows


@cache
def keys(table: str, place: str) -> frozenset[str]:
    """The keys of a table that is written as a dict."""
    node = _tables(place).get(table)
    entries = node.keys if isinstance(node, ast.Dict) else ()
    return frozenset(str(key.value) for key in entries if isinstance(key, ast.Constant))


@cache
def classes_for(task: str) -> dict[str, tuple[str, ...]]:
    """Class names by model type for a task such as "CAUSAL_LM"."""
    return pairs(f"MODEL_FOR_{task}_MAPPING_NAMES")


@cache
def names_for(*tasks: str) -> frozenset[str]:
    """The classes for any of these tasks."""
    return frozenset(name for task in tasks for names in classes_for(task).values() for name in names)


@cache
def other_classes() -> frozenset[str]:
    """Classes that do something else than write text."""
    return _named_in("") - writers()


@cache
def classifiers() -> frozenset[str]:
    """Classes that sort texts, pictures or sounds."""
    return _named_in("CLASSIFICATION")


def _named_in(part: str) -> frozenset[str]:
    tables = [name for name in _tables("models/auto/modeling_auto.py") if part in name and name.endswith("_NAMES")]
    return frozenset(name for table in tables for names in pairs(table).values() for name in names)


@cache
def writers() -> frozenset[str]:
    """Classes that write text, some of them about pictures or sounds."""
    return names_for("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")


@cache
def model_types() -> frozenset[str]:
    """Every model type that this version of transformers has a configuration for."""
    return frozenset(pairs("CONFIG_MAPPING_NAMES", "models/auto/auto_mappings.py"))


@cache
def needed(kind: str, name: str) -> frozenset[str]:
    """What a pass of the class ``name`` of a model type has no default for, such as pixel_values."""
    module = kind.replace("-", "_")
    classes = [node for node in _parsed(f"models/{module}/modeling_{module}.py") if isinstance(node, ast.ClassDef)]
    methods = [node for made in classes if made.name == name for node in made.body]
    for node in methods:
        if isinstance(node, ast.FunctionDef) and node.name == "forward":
            names = [argument.arg for argument in node.args.args]
            return frozenset(names[1 : len(names) - len(node.args.defaults)])
    return frozenset()


@cache
def _tables(place: str) -> dict[str, ast.expr]:
    nodes = [node for node in _parsed(place) if isinstance(node, ast.Assign)]
    return {target.id: node.value for node in nodes for target in node.targets if isinstance(target, ast.Name)}


def _parsed(place: str) -> list[ast.stmt]:
    """A file of transformers; empty where this version has none of this name."""
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / place
    return ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
