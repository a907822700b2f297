"""A model's folder beside its weights: whether it may be loaded, its vocabulary, and how its authors generate."""

import json
import re
from pathlib import Path
from typing import Any

from llmsvc.errors import BadRequest
from llmsvc.models import adapters, quantised
from llmsvc.models.can_it_run import refuse_type

_TOKENIZER_FILES = ("tokenizer.json", "tekken.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors$")


def check_folder(folder: Path) -> None:
    """Refuse what must not or cannot be loaded, before anything of it runs. Raises BadRequest."""
    if adapters.is_adapter(folder):
        adapters.base_of(folder)
        return
    config = _config(folder)
    if trouble := refuse_type(config):
        raise BadRequest(f"{folder.name}: {trouble}")
    if not any(folder.glob("*.safetensors")):
        raise BadRequest(f"{folder} has no safetensors weights. Pickled weights (.bin, .pt) are never loaded.")
    if absent := missing_file(folder):
        raise BadRequest(f"{folder} has no {absent}, which holds a part of its weights. Download the model again.")
    if not has_tokenizer(folder):  # transformers would make an empty one
        raise BadRequest(f"{folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)}). Download the model again.")
    if trouble := quantised.treatment(config, "").reason:
        raise BadRequest(f"{folder.name}: {trouble}")


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise BadRequest(f"{folder} has no config.json, so it is not a Hugging Face model.") from None
    except (OSError, ValueError) as error:
        raise BadRequest(f"{folder / 'config.json'} cannot be read ({error}). Download the model again.") from None
    if not isinstance(config, dict):
        raise BadRequest(f"{folder / 'config.json'} is not a model's configuration. Download the model again.")
    return config


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def missing_file(folder: Path) -> str:
    """The first file of weights that the index or the others' names speak of and that is not there; "" if none."""
    present = {path.name for path in folder.glob("*.safetensors")}
    if "model.safetensors" in present:
        return ""
    index = folder / "model.safetensors.index.json"
    try:
        wanted = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else _shards(present)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRequest(f"{index} cannot be read ({error}). Download the model again.") from None
    return next(iter(sorted(wanted - present)), "")


def _shards(present: set[str]) -> set[str]:
    """All the files of a model that lies in several, by the name of one of them."""
    parts = [match for name in present if (match := _SHARD.match(name))]
    return {
        f"{part[1]}-{number:05}-of-{part[3]}.safetensors" for part in parts for number in range(1, int(part[3]) + 1)
    }


def check_words(tokenizer: Any, model: Any, name: str) -> None:
    """Refuse a tokenizer of another model: it has tokens that this one has no row for. Raises BadRequest.

    Tokens that were added afterwards may have none, such as Gemma 3's for images in a model without.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        known = f"a tokenizer of {tokenizer.vocab_size} tokens"
    elif (mark := max(tokenizer.bos_token_id or 0, tokenizer.eos_token_id or 0)) >= rows:
        known = f"a tokenizer that begins or ends texts with token {mark}"
    else:
        return
    raise BadRequest(
        f"{name} has {known} and weights for {rows}: it belongs to another model. Download the model again, tokenizer "
        "and all."
    )


def sampling(folder: Path) -> dict[str, float]:
    """What the authors sample with, by generation_config.json: temperature, top_p, top_k, min_p, repetition_penalty.

    Empty where they say nothing, or want the likeliest token always.
    """
    try:
        config = json.loads((folder / "generation_config.json").read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict) or config.get("do_sample") is False:
        return {}
    given = {name: config.get(name) for name in _SAMPLING}
    return {name: value for name, value in given.items() if isinstance(value, int | float) and value is not True}


def generation_config(*folders: Path) -> Any:
    """The first of the folders' generation_config.json; what config.json says where there is none."""
    from transformers import GenerationConfig

    for folder in folders:
        if (folder / "generation_config.json").is_file():
            return GenerationConfig.from_pretrained(folder, local_files_only=True)
    return GenerationConfig.from_pretrained(
        folders[-1], config_file_name="config.json", _from_model_config=True, local_files_only=True
    )
