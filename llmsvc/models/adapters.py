"""LoRA adapters: a folder with adapter_config.json, whose weights are added to those of its base model as they load.

``W + scale * B @ A`` (Hu et al. 2021), with rsLoRA's scale and DoRA's magnitudes, by the names of peft
(src/peft/tuners/lora). Every tensor of an adapter has to find its place, or it is refused.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

from llmsvc.errors import BadRequest

CONFIG = "adapter_config.json"
_OTHER_WAYS = (
    "use_qalora",
    "layer_replication",
    "megatron_config",
    "arrow_config",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
)
"""Settings of peft that need more than adding two matrices."""
_STARTS = (True, False, None, "default", "gaussian", "orthogonal", "eva")
"""Ways to begin training that leave the base model's weights as they were."""
_PREFIX = re.compile(r"^base_model\.model\.")
_PART = re.compile(r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.(default|weight))*$")


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """The id or folder of an adapter's base model. Raises BadRequest for an adapter that cannot be added."""
    settings = read(folder)
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise BadRequest(_refused(folder, "that names no base model"))
    return base


def read(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises BadRequest for what is no LoRA, or one that is more than two matrices."""
    try:
        settings = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise BadRequest(f"{folder / CONFIG} cannot be read ({error}). Download the adapter again.") from None
    kind = str(settings.get("peft_type") if isinstance(settings, dict) else None)
    if kind != "LORA":
        raise BadRequest(_refused(folder, f'of the kind "{kind}", and only LoRA adapters are read'))
    for name in _OTHER_WAYS:
        if settings.get(name):
            raise BadRequest(_refused(folder, f'made with "{name}", which is not read'))
    if settings.get("init_lora_weights", True) not in _STARTS:
        start = settings["init_lora_weights"]
        raise BadRequest(_refused(folder, f'made with "{start}", which changes its base model as well'))
    if not (folder / "adapter_model.safetensors").is_file():
        raise BadRequest(f"{folder.name} has no adapter_model.safetensors. Pickled adapters (.bin) are never loaded.")
    return dict(settings)


def _refused(folder: Path, why: str) -> str:
    return f"{folder.name} is an adapter {why}. Merge it into its model with peft, and load the merged model."


def merge(weights: dict[str, Any], folder: Path, used: Callable[[str], bool]) -> None:
    """Put what an adapter makes of them in the place of its base model's ``weights``, of those that are ``used``.

    Raises BadRequest for an adapter that does not fit them.
    """
    from safetensors.torch import load_file

    settings = read(folder)
    whole, weights = weights, {name: weight for name, weight in weights.items() if used(name)}
    by_module: dict[str, dict[str, Any]] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        path = _PREFIX.sub("", name)
        part = _PART.search(path)
        if part is None:
            _replace(weights, path, tensor, folder)
        else:
            by_module.setdefault(path[: part.start()], {})[part[1]] = tensor
    for module, parts in by_module.items():
        _add(weights, _place(weights, f"{module}.weight", folder), module, parts, settings, folder)
    whole.update(weights)


def _replace(weights: dict[str, Any], path: str, tensor: Any, folder: Path) -> None:
    """A weight or bias that was trained whole."""
    name = re.sub(r"\.(modules_to_save|base_layer|original_module)(\.default)?\.", ".", path)
    if name.endswith(".lora_bias"):
        raise BadRequest(_refused(folder, 'made with "lora_bias", which is not read'))
    weights[_place(weights, name, folder)] = tensor


def _place(weights: dict[str, Any], name: str, folder: Path) -> str:
    """The weight of the files that an adapter calls ``name``: the same, or the only one that is alike from its first
    number on, since what is before a layer depends on the version of transformers."""
    if name in weights:
        return name
    ending = _ending(name)
    alike = [other for other in weights if _ending(other) == ending]
    if len(alike) != 1:
        raise BadRequest(
            f"{folder.name} does not fit its base model: that has no {name}. Merge it into its model with peft, and "
            "load the merged model."
        )
    return alike[0]


def _ending(name: str) -> str:
    layer = re.search(r"[^.]+\.\d+\..*", name)
    return layer[0] if layer else ".".join(name.split(".")[-2:])


def _add(
    weights: dict[str, Any], name: str, module: str, parts: dict[str, Any], settings: dict[str, Any], folder: Path
) -> None:
    from llmsvc.models.checkpoint import Lazy

    embedding = "lora_embedding_A" in parts
    first, second = (parts.get(f"lora_{'embedding_' if embedding else ''}{side}") for side in "AB")
    base = weights[name]
    shape = list(base.get_shape() if hasattr(base, "get_shape") else base.shape)
    turned = embedding or bool(settings.get("fan_in_fan_out"))
    if first is None or second is None or [second.shape[0], first.shape[1]] != (shape[::-1] if turned else shape):
        raise BadRequest(f"{folder.name} does not fit its base model: {name} has the shape {shape}. Choose another.")
    scale = _scale(settings, module, first.shape[0])
    magnitude = parts.get("lora_magnitude_vector")
    make = partial(_merged, base, first, second, scale, turned, magnitude)
    weights[name] = Lazy(make, tuple(shape))


def _scale(settings: dict[str, Any], module: str, rank: int) -> float:
    """By which a module's product is multiplied; ``alpha_pattern`` is matched as peft does (get_pattern_key)."""
    pattern = settings.get("alpha_pattern") or {}
    alpha = next(
        (value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)),
        settings.get("lora_alpha", rank),
    )
    return float(alpha) / (sqrt(rank) if settings.get("use_rslora") else rank)


def _merged(base: Any, first: Any, second: Any, scale: float, turned: bool, magnitude: Any) -> Any:
    weight = base[...].float()
    change = scale * (second.float() @ first.float())
    weight = weight + (change.t() if turned else change)
    if magnitude is None:
        return weight
    lengths = weight.norm(dim=0 if turned else 1)
    share = magnitude.flatten().float() / lengths
    return weight * (share[None] if turned else share[:, None])
