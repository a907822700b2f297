"""Which parts of a checkpoint are loaded. Of models that see or hear, the language model alone: the seam for images.

What is no part of the language model is found by asking the model, not by its type. ``used`` says the same of tensors'
names before there is a model, for the forecast.
"""

import re
from dataclasses import replace
from typing import Any

from llmsvc.errors import BadRequest
from llmsvc.models import quantised
from llmsvc.models.headers import Contents

_SENSES = re.compile(
    r"(^|[._])(vision|visual|image|images|img|video|audio|sound|speech|patch|vit|sam|aligner|projectors?|connector|perceiver|"
    r"resampler|qformer|mm|multimodal|multi_modal|merger|vqmodel|vpm|qwen2_model)([._\d]|$)"
    r"|(^|\.)generation_(embeddings|aligner|head)\.|^(blocks|mlp1)\."
)
"""How parts that see or hear are called in files, by the models of transformers' image-text-to-text mapping."""
_GUESSES = re.compile(r"(^|\.)mtp(\.|_)")
"""Layers that guess several tokens ahead, which transformers leaves out."""


def used(name: str, config: dict[str, Any]) -> bool:
    """Whether a tensor of this (logical) name in the files is read. ``config``: config.json. Without torch."""
    if _GUESSES.search(name):
        return False
    return not (composite(config) and _SENSES.search(re.split("language_model|text_model", name)[0]))


def effective(contents: Contents) -> Contents:
    """What of a model's files is loaded, and how: packed weights whole, and only the parts that are used."""
    config = contents.config
    if contents.packed:
        return contents
    tensors = tuple(tensor for tensor in quantised.logical(contents.tensors, config) if used(tensor.name, config))
    bare = config if quantised.kept(config) else quantised.without(config)
    return replace(contents, config=bare, tensors=tensors)


def composite(config: dict[str, Any]) -> bool:
    """Whether a model has other parts beside its language model."""
    inner = [name for name, value in config.items() if name.endswith("_config") and isinstance(value, dict)]
    return any(re.search("vision|audio|image|speech|sound", name) for name in inner)


def model_class(config: Any, *, keep_quantised: bool = False) -> tuple[Any, Any]:
    """The class that loads the language model of a transformers configuration, and the configuration it takes.

    ``keep_quantised``: whether transformers is to see the checkpoint's own quantisation; packed weights are unpacked
    before it sees them. Raises BadRequest for a model that does not write text.
    """
    import transformers
    from transformers.models.auto.auto_factory import _get_model_class

    text = config.get_text_config()
    own = getattr(config, "quantization_config", None)
    for part in (config, text):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    if keep_quantised:
        config.quantization_config = text.quantization_config = own
    if getattr(config, "is_encoder_decoder", False):
        raise BadRequest(f"A model of the type {config.model_type} turns one text into another. Choose one that chats.")
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            made = _get_model_class(config, auto._model_mapping)
            if text is not config and made.config_class is type(text):
                return made, text
            return (_text_only(made), config) if text is not config else (made, config)
    raise BadRequest(f"transformers has no class that writes text for models of the type {config.model_type}.")


def _text_only(whole: Any) -> Any:
    """A class like ``whole`` whose models have no parts but the language model's."""

    def build(self: Any, *args: Any, **options: Any) -> None:
        whole.__init__(self, *args, **options)
        self.left_out = strip(self)

    return type(whole.__name__, (whole,), {"__init__": build, "__module__": whole.__module__})


def strip(model: Any) -> list[str]:
    """Take away what the language model does not need; the names of what is gone."""
    kept = {id(module) for module in (model.get_decoder(), model.get_output_embeddings(), model.get_input_embeddings())}
    gone: list[str] = []
    _strip(model, "", kept, gone)
    parts = tuple(f"{part}." for part in gone)
    tied = getattr(model, "all_tied_weights_keys", {})
    for name in [name for name, source in tied.items() if f"{name}.".startswith(parts) or source.startswith(parts)]:
        del tied[name]
    return gone


def _strip(module: Any, path: str, kept: set[int], gone: list[str]) -> None:
    for name, child in list(module.named_children()):
        if id(child) in kept:
            continue
        if any(id(inner) in kept for inner in child.modules()):
            _strip(child, f"{path}{name}.", kept, gone)
        elif any(True for _ in child.parameters()):
            setattr(module, name, None)
            gone.append(path + name)
