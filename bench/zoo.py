"""Tiny random models of every architecture that transformers knows as a text generator."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from bench.shrink import END, shrunk

Task = Literal["text", "image"]


@dataclass(frozen=True)
class Species:
    """One type of transformers' mappings. ``task``: "image" for image-text-to-text models, which are asked for text."""

    type: str
    task: Task = "text"

    @property
    def name(self) -> str:
        return self.type if self.task == "text" else f"{self.type} (vision)"


def species() -> list[Species]:
    """Every type of the causal mapping, then every one of the image-text-to-text mapping."""
    from transformers.models.auto import modeling_auto as auto

    texts = [Species(name) for name in sorted(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)]
    return texts + [Species(name, "image") for name in sorted(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)]


def tiny(type: str, task: Task = "text", seed: int = 0) -> tuple[Any, Any]:
    """(configuration, model in float32 on the CPU): the same weights for the same seed.

    Raises whatever transformers raises where the type cannot be made.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    config = shrunk(type)
    torch.manual_seed(seed)
    maker = AutoModelForCausalLM if task == "text" else AutoModelForImageTextToText
    return config, _finished(maker.from_config(config, dtype=torch.float32))


def checkpoint(one: Species, folder: Path) -> Any:
    """Write a tiny checkpoint of the type, as it would be published but for a tokenizer; its model.

    A type whose towers need a package that is not here is written without them: its language model, under the names
    that it has within the whole, and what the whole has beside. Raises as ``tiny``.
    """
    try:
        _, model = tiny(one.type, one.task)
        model.save_pretrained(folder)
    except ImportError:
        whole = shrunk(one.type)
        if not hasattr(whole, "text_config"):
            raise
        model = _text_model(whole)
        weights = {name: weight.contiguous() for name, weight in _beside_towers(one.type, whole).state_dict().items()}
        weights |= {
            re.sub(r"^model\.", "model.language_model.", name): weight.contiguous()
            for name, weight in model.state_dict().items()
        }
        whole.architectures = [_image_class(one.type)]
        whole.save_pretrained(folder)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return model


def _text_model(whole: Any) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return _finished(AutoModelForCausalLM.from_config(whole.get_text_config(), dtype=torch.float32))


def _beside_towers(type: str, whole: Any) -> Any:
    import transformers

    from llmsvc.models.text_only import text_only

    return _finished(text_only(getattr(transformers, _image_class(type)))(whole))


def _image_class(type: str) -> str:
    from transformers.models.auto import modeling_auto as auto

    return str(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[type])


def _finished(model: Any) -> Any:
    """Ready to be asked: with spread weights, and with the tokenizer's ends."""
    spread(model.eval())
    ends = model.generation_config
    ends.bos_token_id, ends.eos_token_id, ends.pad_token_id = 1, END, 0
    return model


def spread(model: nn.Module) -> None:
    """Give the weights enough spread that the likeliest token changes from step to step, with nothing constant.

    Matrices get a gain of about one and a half; constants (norms, biases, gates) are moved a little.
    """
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.is_floating_point() or not weight.numel():
                continue
            deviation = float(weight.float().std()) if weight.numel() > 1 else 0.0
            if not math.isfinite(deviation) or not bool(torch.isfinite(weight).all()):
                weight.normal_(0, 0.1)
            elif weight.dim() >= 2 and 0 < deviation < 0.2:
                weight.mul_(0.2 / deviation)
            elif deviation == 0:
                weight.add_(torch.randn_like(weight) * 0.1)
