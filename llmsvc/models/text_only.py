"""The language model alone of a model that also sees or hears: the other parts are neither built nor kept.

What belongs to it is found by asking the model, not by its type.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from llmsvc.errors import BadRequest
from llmsvc.models.parts import SENSE


def text_only(whole: Any) -> Any:
    """A class like ``whole`` whose models have no parts but the language model's; ``left_out`` names the others.

    Building one raises BadRequest where the language model cannot be told from them.
    """

    def build(self: Any, config: Any, *args: Any, **options: Any) -> None:
        try:
            with _senses_left_out(whole, config):
                whole.__init__(self, config, *args, **options)
        except Exception:  # it asks something of those parts, which then have to be there
            whole.__init__(self, config, *args, **options)
        try:
            self.left_out = strip(self)
        except NotImplementedError:
            raise BadRequest(
                "This version of transformers cannot take the language model out of a model of the type "
                f'"{config.model_type}". Choose another model.'
            ) from None

    return type(whole.__name__, (whole,), {"__init__": build, "__module__": whole.__module__})


class _Absent(nn.Module):
    """Stands where a part that sees or hears would be built; its one parameter, without numbers, says a type."""

    def __init__(self, config: Any, *_: Any, **__: Any) -> None:
        super().__init__()
        self.config, self.nothing = config, nn.Parameter(torch.empty(0))

    @classmethod
    def _from_config(cls, config: Any, **_: Any) -> "_Absent":
        return cls(config)


@contextmanager
def _senses_left_out(whole: Any, config: Any) -> Iterator[None]:
    """While ``whole`` is built, its module builds no parts that see or hear, which may need libraries of their own."""
    inner = [part for name, part in vars(config).items() if SENSE.search(name) and isinstance(part, PreTrainedConfig)]
    kinds = {type(part) for part in inner} - {type(config), type(config.get_text_config())}
    module = inspect.getmodule(whole)
    classes = {name: value for name, value in vars(module).items() if inspect.isclass(value)}
    stand_ins = {name: stand for name, made in classes.items() if (stand := _stand_in(made, kinds))}
    try:
        for name, stand in stand_ins.items():
            setattr(module, name, stand)
        yield
    finally:
        for name in stand_ins:
            setattr(module, name, classes[name])


def _stand_in(made: Any, kinds: set[type]) -> Any:
    """What takes the place of a class that can build parts by configurations of these ``kinds``; None for others."""
    if issubclass(made, PreTrainedModel) and made.config_class in kinds:
        return _Absent
    if not issubclass(made, _BaseAutoModelClass):
        return None

    def from_config(config: Any, **options: Any) -> Any:
        return _Absent(config) if type(config) in kinds else made.from_config(config, **options)

    return type(made.__name__, (made,), {"from_config": staticmethod(from_config)})


def strip(model: Any) -> list[str]:
    """Take away what the language model does not need; the names of what is gone."""
    kept = {id(module) for module in (model.get_decoder(), model.get_output_embeddings(), model.get_input_embeddings())}
    gone = [path for path, part in model.named_modules() if isinstance(part, _Absent)]
    for path in gone:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, None)
    _strip(model, "", kept, gone)
    parts = tuple(f"{part}." for part in gone)
    tied = getattr(model, "all_tied_weights_keys", {})
    for name in [name for name, source in tied.items() if f"{name}.".startswith(parts) or source.startswith(parts)]:
        del tied[name]
    return gone


def _strip(module: Any, path: str, kept: set[int], gone: list[str]) -> None:
    for name, child in list(module.named_children()):
        if id(child) in kept or _reads_tokens(child):
            continue
        if any(id(inner) in kept for inner in child.modules()):
            _strip(child, f"{path}{name}.", kept, gone)
        elif any(True for _ in child.parameters()):
            setattr(module, name, None)
            gone.append(path + name)


def _reads_tokens(part: nn.Module) -> bool:
    """Whether a small part beside the towers has embeddings of its own for tokens, which each pass looks up."""
    return not isinstance(part, PreTrainedModel) and any(isinstance(inner, nn.Embedding) for inner in part.children())
