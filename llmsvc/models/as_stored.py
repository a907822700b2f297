"""Weights left in the type that their file has, in a model that computes in 32 bits.

Safetensors are mapped, not read: what needs no other type takes no memory, and no time on the thread that loads.
Weights that are rounded to 8 bits are then never there in 32; ``widen`` is for the others. It goes where transformers
lets a quantization change a model that is not filled yet (``transformers.quantizers.HfQuantizer``).
"""

from typing import Any

import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from llmsvc.engine.compute import compute_if_idle

_NAME = "llmsvc_as_stored"


@register_quantization_config(_NAME)
class AsStored(QuantizationConfigMixin):  # type: ignore[misc]
    """``stored``: the type of the file's weights."""

    def __init__(self, stored: torch.dtype) -> None:
        self.quant_method, self.stored = _NAME, stored


@register_quantizer(_NAME)
class _Quantizer(HfQuantizer):  # type: ignore[misc]
    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        for module in model.modules():
            if hasattr(module, "create_weight"):  # it makes what the file has not: a table of positions
                continue
            for parameter in module.parameters(recurse=False):
                parameter.data = torch.empty_like(parameter, dtype=self.quantization_config.stored)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
        self.remove_quantization_config(model)


@torch.no_grad()
def widen(model: nn.Module) -> None:
    """Make 32 bits of what was not rounded."""
    for parameter in model.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = compute_if_idle(parameter.data.float)
