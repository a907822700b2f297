"""Linear layers left in the type that their file has, while the rest of a model is loaded in 32 bits.

Safetensors are mapped, not read: what needs no other type takes no memory. Weights that are rounded to 8 bits anyway
are then never there in 32. It goes where transformers lets a quantization change a model that is not filled yet
(``transformers.quantizers.HfQuantizer``).
"""

from typing import Any

import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

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
            if type(module) is nn.Linear:
                empty = torch.empty_like(module.weight, dtype=self.quantization_config.stored)
                module.weight = nn.Parameter(empty, requires_grad=False)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> None:
        self.remove_quantization_config(model)


@torch.no_grad()
def widen(model: nn.Module) -> None:
    """Make 32 bits of what was not rounded."""
    for parameter in model.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
