"""Whether a model can chat, before it is loaded; and whether its load did all it should: no tensor missing, left over,
of another shape or not finite."""

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

from llmsvc.errors import BadRequest, Unavailable
from llmsvc.models import parts, tables
from llmsvc.models.quantised import INSTEAD

log = logging.getLogger(__name__)

_INSTEAD = "Choose a model that writes text."


def refuse_kind(config: dict[str, Any]) -> str:
    """Why the model of this config.json cannot chat, as a sentence; "" when it can. Without importing torch."""
    kind, inner = str(config.get("model_type") or ""), config.get("text_config")
    named = [str(name) for name in config.get("architectures") or ()]
    called = ", ".join(named) or kind
    if _encodes_and_decodes(config, kind, named):
        return f"It is an encoder-decoder ({called}), made to turn one text into another. {_INSTEAD}"
    if _classifies(kind, named):
        return f"It is a classifier ({called}), made to sort texts or pictures. {_INSTEAD}"
    writes = [name for name in named if name in tables.writers()]
    if named and not writes and all(name in tables.other_classes() for name in named):
        return f"It was not made to write text ({called}). {_INSTEAD}"
    if kind in tables.classes_for("MASKED_LM") and kind in tables.classes_for("CAUSAL_LM"):
        reads = not config.get("is_decoder") and not config.get("causal")
        return f"It is an encoder ({called}), made to understand text. {_INSTEAD}" if reads else ""
    if _needs_pictures(kind, writes):
        return f"It answers only together with a picture ({called}). Choose a model that answers texts."
    merged = isinstance(inner, dict) and inner.get("model_type") == kind
    return "" if writes or merged else _refuse_type(kind)


def _encodes_and_decodes(config: dict[str, Any], kind: str, named: list[str]) -> bool:
    """Whether it takes both halves of an encoder-decoder; a decoder that was saved by itself does not."""
    translators = tables.names_for("SEQ_TO_SEQ_CAUSAL_LM") - tables.writers()
    if tables.names_for("CAUSAL_LM").intersection(named):
        return False
    if config.get("is_encoder_decoder") or translators.intersection(named):
        return True
    unsaid = not named and "is_encoder_decoder" not in config
    return unsaid and bool(translators.intersection(tables.classes_for("SEQ_TO_SEQ_CAUSAL_LM").get(kind, ())))


def _classifies(kind: str, named: list[str]) -> bool:
    """By the names of its classes, or since a type that also takes text has a class that sorts pictures."""
    if named and all(name in tables.classifiers() for name in named):
        return True
    return kind in tables.classes_for("IMAGE_CLASSIFICATION") and kind in tables.classes_for("IMAGE_TEXT_TO_TEXT")


def _needs_pictures(kind: str, writes: list[str]) -> bool:
    classes = writes or tables.classes_for("IMAGE_TEXT_TO_TEXT").get(kind, ())
    sees = tables.names_for("IMAGE_TEXT_TO_TEXT").intersection(classes)
    return bool(sees) and all("pixel_values" in tables.needed(kind, name) for name in sees)


def _refuse_type(kind: str) -> str:
    if any(kind in tables.classes_for(task) for task in ("CAUSAL_LM", "MULTIMODAL_LM", "IMAGE_TEXT_TO_TEXT")):
        return ""
    if kind in tables.model_types():
        return f'It was not made to write text (model type "{kind}"). {_INSTEAD}'
    return (
        f'It could not be loaded: this version of transformers knows no model type "{kind}". Choose another model, or '
        "update transformers."
    )


def sees(config: dict[str, Any]) -> bool:
    """Whether the model of this config.json takes more than text."""
    return config.get("model_type") in tables.classes_for("IMAGE_TEXT_TO_TEXT") or parts.composite(config)


def load_error(name: str, error: Exception) -> Unavailable:
    """What a user is told of a load that ended in a library's error, whose own words go to the log."""
    import torch

    log.warning("loading %s failed: %s: %s", name, type(error).__name__, error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        why = "it does not fit into the memory that is free. Unload another model, or choose a smaller one."
    elif isinstance(error, ImportError):
        why = "it needs a library that this server does not have. Choose another model."
    else:
        why = (
            "its files are damaged, or this version of transformers cannot read them. Download it again, or choose "
            "another model."
        )
    return Unavailable(f"{name} could not be loaded: {why}")


def check_loaded(model: Any, report: dict[str, Any], stored: Callable[[str], Any], name: str) -> None:
    """Refuse a load that left something undone, by transformers' ``report``.

    ``stored``: a tensor of the files by its name there, or None. Raises Unavailable naming the tensor.
    """
    if missing := sorted(report["missing_keys"]):
        raise Unavailable(
            f"{name} could not be loaded: its files have no {missing[0]}{_more(missing)}, and so do not hold the model "
            "that its configuration describes. Download it again, or choose another."
        )
    for tensor, here, wanted in sorted(report["mismatched_keys"]):
        raise Unavailable(
            f"{name} could not be loaded: {tensor} has the shape {_shape(here)}, and its configuration wants "
            f"{_shape(wanted)}. Download it again, or choose another."
        )
    left = sorted(report["unexpected_keys"])
    wrong = [key for key in left if _matters(model, key) and _says_something(stored(key))]
    if wrong:
        raise Unavailable(
            f"{name} could not be loaded: its files have {wrong[0]}{_more(wrong)}, for which this version of "
            "transformers has no place, so its answers would be wrong. Choose another model, or update transformers."
        )


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} other tensors" if len(names) > 1 else ""


def _shape(sizes: Any) -> str:
    return " x ".join(str(size) for size in sizes) or "()"


def _matters(model: Any, key: str) -> bool:
    """Whether a tensor that was left over belongs to a part that is used: to a module, or into a layer."""
    out = tuple(f"{path}." for path in getattr(model, "left_out", ()))
    if (out and f"{key}.".startswith(out)) or not parts.used(key, model.config.to_dict()):
        return False
    path = key.split(".")[:-1]
    there = [module for step in range(len(path)) if (module := _module(model, path[: step + 1])) is not None]
    return len(there) == len(path) or any(step.isdigit() for step in path[: len(there)])


def _module(model: Any, path: list[str]) -> Any:
    for step in path:
        model = getattr(model, step, None)
    return model


def _says_something(tensor: Any) -> bool:
    """AutoGPTQ writes biases of zeros for layers that have none."""
    return tensor is None or bool(tensor.any())


def check_finite(model: Any, name: str) -> None:
    """Refuse weights that are no numbers. Of rounded ones the scales say it. Raises Unavailable naming the tensor."""
    import torch

    for path, tensor in _numbers(model):
        low, high = torch.aminmax(tensor.detach())  # NaN if any is; forty times as fast as isfinite
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise Unavailable(
                f"{name} could not be loaded: {path} holds values that are no numbers (NaN or infinity). Download the "
                "model again, or choose another."
            )


def _numbers(model: Any) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        state, scales = getattr(tensor, "quant_state", None), getattr(tensor, "SCB", None)
        stands = state.absmax if state is not None else tensor if scales is None else scales
        if stands.is_floating_point() and stands.numel() and stands.data_ptr() not in seen:
            seen.add(stands.data_ptr())
            yield path, stands


def check_answers(model: Any, name: str) -> None:
    """Refuse a model that reads nothing without a picture or a sound. Raises BadRequest."""
    import torch

    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([[1, 1]], device=model.device))
    except Exception as error:  # whatever such a model's code runs into
        log.warning("%s makes no pass over a text: %s", name, error)
        if re.search("pixel|image|audio|input_features", str(error)):
            raise BadRequest(
                f"{name} answers only together with a picture or a sound. Choose a model that answers texts."
            ) from None
        raise BadRequest(
            f"This version of transformers cannot run {name} on a text by itself. Choose another model."
        ) from None


def check_quantised(model: Any, quantization: str, name: str) -> None:
    """Refuse what was asked for and not done, or what bitsandbytes would multiply wrongly. Raises BadRequest."""
    layers = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}.get(quantization)
    if layers and not any(type(module).__name__ == layers for module in model.modules()):
        raise BadRequest(
            f'{name} has no layers that can be held in {quantization}. Load it with quantization "none" instead.'
        )
    for path, module in model.named_modules() if model.device.type == "cpu" else ():
        if type(module).__name__ == "Linear4bit" and module.in_features % 64:
            raise BadRequest(
                f"{name} cannot run on a CPU: {path} has 4 bits and is {module.in_features} wide, which is no multiple "
                f"of 64. {INSTEAD}"
            )
