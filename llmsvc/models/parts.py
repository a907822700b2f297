"""Which parts of a checkpoint are loaded. Of models that see or hear, the language model alone: the seam for images.

What is no part of the language model is found by asking the model, not by its type. ``used`` says the same of tensors'
names before there is a model, for the forecast.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from llmsvc.errors import BadRequest
from llmsvc.models import quantised, tables
from llmsvc.models.headers import Contents

_SENSES = re.compile(
    r"(^|[._])(vision|visual|image|images|img|video|audio|sound|speech|patch|vit|sam|aligner|projectors?|connector|perceiver|"
    r"resampler|qformer|mm|multimodal|multi_modal|merger|vqmodel|vpm|qwen2_model)([._\d]|$)"
    r"|(^|\.)generation_(embeddings|aligner|head)\.|^(blocks|mlp1)\."
)
"""How parts that see or hear are called in files, by the models of transformers' image-text-to-text mapping."""
SENSE = re.compile("vision|audio|image|speech|sound|^vq_")
"""How configurations of such parts are called within a model's."""
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
    return any(SENSE.search(name) for name in inner)


def model_class(config: Any, *, keep_quantised: bool = False) -> tuple[Any, Any]:
    """The class that loads the language model of a transformers configuration, and the configuration it takes.

    ``keep_quantised``: whether transformers is to see the checkpoint's own quantisation; packed weights are unpacked
    before it sees them. Raises BadRequest for a model that does not write text.
    """
    text = config.get_text_config()
    own = getattr(config, "quantization_config", None)
    for part in (config, text):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    if keep_quantised:
        config.quantization_config = text.quantization_config = own
    made = next(_classes(config, text), None)
    if made is None:
        raise BadRequest(
            f'This version of transformers has no class that writes text for models of the type "{config.model_type}". '
            "Choose another model."
        )
    if made.config_class is type(text) and not composite(text.to_dict()):
        return made, text
    from llmsvc.models.text_only import text_only

    return text_only(made), config


def _classes(config: Any, text: Any) -> Iterator[Any]:
    """Classes that write text with this configuration: first the one that it names itself, which wrote the files."""
    import transformers
    from transformers.models.auto.auto_factory import _get_model_class

    for name in tables.writers().intersection(config.architectures or ()):
        named = getattr(transformers, name, None)
        if getattr(named, "config_class", None) in (type(config), type(text)):
            yield named
    for auto in (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForImageTextToText,
        transformers.AutoModelForMultimodalLM,
    ):
        if type(config) in auto._model_mapping:
            yield _get_model_class(config, auto._model_mapping)
