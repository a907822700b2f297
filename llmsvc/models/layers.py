"""What a model keeps of the tokens it has read, layer by layer, from its configuration and its files' headers.

The engine asks a loaded model the same (``engine/cache``). Here the tensors say it: rows that make keys and values, the
width of a convolution, how many heads have a decay; so hardly any type of model has to be known by its name.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmsvc.models.headers import TensorInfo

Module = Mapping[str, TensorInfo]
"""The tensors of one module of a layer, by the last part of their names."""

_IN_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block|blk)\.(\d+)\.(.+)$")
_PLACE = re.compile(r"^attn_(k|v|qkv|output|kv_a_mqa)\.weight$|^(ssm|shortconv|linear_attn)[_.]")
_KEYS = re.compile(r"^(k_proj|attn_k|project_k|key_proj|k|key)\.weight$")
_VALUES = re.compile(r"^(v_proj|attn_v|project_v|value_proj|v|value)\.weight$")
_FUSED = re.compile(r"^(qkv_proj|query_key_value|c_attn|Wqkv|attn_qkv|qkv|wqkv|W_pack)\.weight$")
_BOTH = re.compile(r"^(kv_proj|c_kv)\.weight$")
_LATENT = re.compile(r"^(kv_a_proj_with_mqa|attn_kv_a_mqa)\.weight$")
_INDEXED = re.compile(r"^wk\.weight$")
_OUT = re.compile(r"^(o_proj|out_proj|dense|c_proj|attn_output|attention_out|wo|ssm_out|linear_out|proj|out)\.weight$")
_CONVOLUTION = re.compile(r"conv(1d|_1d)?\.weight$")
_DECAY = re.compile(r"^(A_log|ssm_a|slope_rate|fgate_preact\.weight|time_decay|recurrent_param)$")
_KEY_SIZES = (
    "linear_key_head_dim", "mamba_d_state", "ssm_state_size", "state_size", "d_state",
)  # fmt: skip
_SHARED, _LAYERS = "num_kv_shared_layers", ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SAME = ("hybrid",)
"""Layers that may compute with the weights of one before them, which the files then have once."""
_OTHER = re.compile(r"(^|\.)(feed_forward|mlp|ffn|encoder_attn|cross_?attn|crossattention)$")
"""Modules that keep nothing of the text, though their tensors may be called as if they did."""
_STATES = ("linear_attention", "conv", "mamba", "recurrent")
TRANSPOSED = ("gpt2", "openai-gpt", "gpt-sw3")
"""Types whose layers are Conv1D, (in, out): bitsandbytes takes them for linear ones, our 8-bit layers do not."""


@dataclass(frozen=True)
class Kept:
    """Numbers that the cache holds."""

    token: int = 0
    """Of each token."""
    convolutions: int = 0
    """Of each sequence, in the type that the model computes with."""
    states: int = 0
    """Of each sequence, in 32 bits: sums over all that was read."""


def depth(config: Mapping[str, Any]) -> int:
    """How many layers there are."""
    return len(_kinds(config)) or first(config, *_LAYERS)


def first(config: Mapping[str, Any], *names: str) -> int:
    """The first of these that a configuration has and is a number above 0, else 1."""
    return int(next((config[name] for name in names if isinstance(config.get(name), int) and config[name]), 1))


def kept(config: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> Kept:
    """What the layers of a language model keep. ``tensors``: its own, as a model has them."""
    layers: dict[int, dict[str, dict[str, TensorInfo]]] = defaultdict(lambda: defaultdict(dict))
    for tensor in tensors:
        if ".experts." not in tensor.name and (found := _IN_LAYER.search(tensor.name)):
            place, name = _module(found[2])
            layers[int(found[1])][tensor.name[: found.start(2)] + place][name] = tensor
    token = convolutions = states = last = 0
    for number in range(depth(config)):
        own = False
        for place, module in layers[number].items():
            if _OTHER.search(place):
                continue
            width = sum(tensor.count for name, tensor in module.items() if _is_convolution(name, tensor))
            state = _state(config, module, _kind(config, number))
            convolutions, states = convolutions + width, states + state
            held = 0 if state or _reads_another(config, number) else _token(config, module)
            token, last = token + held, held or last
            own = own or bool(held)
        token += 0 if own or _kind(config, number) not in _SAME else last
    return Kept(token or _by_heads(config) * (not states), convolutions, states)


def _module(rest: str) -> tuple[str, str]:
    """The module that a tensor of a layer belongs to, and its name there; GGUF has them all in one."""
    parts = rest.split(".")
    count = 1 if len(parts) == 1 or parts[-1] not in ("weight", "bias") or parts[-2] in ("0", "1") else 2
    return ".".join(parts[:-count]), ".".join(parts[-count:])


def _is_convolution(name: str, tensor: TensorInfo) -> bool:
    """Whether each channel has a short filter of its own."""
    return bool(_CONVOLUTION.search(name)) and (len(tensor.shape) == 2 or tensor.shape[1:2] == (1,))


def _kinds(config: Mapping[str, Any]) -> Sequence[str]:
    return config.get("layer_types") or config.get("layers_block_type") or ()


def _kind(config: Mapping[str, Any], number: int) -> str:
    kinds = _kinds(config)
    return str(kinds[number]) if number < len(kinds) else ""


def _reads_another(config: Mapping[str, Any], number: int) -> bool:
    """Whether a layer attends to the keys and values of one before it."""
    return number >= depth(config) - int(config.get(_SHARED) or 0)


def _rows(module: Module, name: re.Pattern[str]) -> int:
    return sum(tensor.shape[0] for own, tensor in module.items() if name.search(own) and _has_rows(tensor))


def _has_rows(tensor: TensorInfo) -> bool:
    """Whether its shape is the layer's: bitsandbytes' 4 bits lie in one column."""
    return len(tensor.shape) == 2 and not (tensor.shape[1] == 1 and tensor.stored == "U8")


def _out_width(module: Module, kind: str = "") -> int:
    """How many numbers its heads give together."""
    found = next((tensor for name, tensor in module.items() if _OUT.search(name) and _has_rows(tensor)), None)
    return 0 if found is None else found.shape[0 if kind in TRANSPOSED else 1]


def _state(config: Mapping[str, Any], module: Module, kind: str) -> int:
    """Numbers of a recurrent state; 0 for a module that has none."""
    decay = next(((name, tensor) for name, tensor in module.items() if _DECAY.search(name)), None)
    if decay is None:
        fused = any(_FUSED.search(name) for name in module)
        return _out_width(module) * first(config, "head_dim") if fused and kind in _STATES else 0
    name, tensor = decay
    if name == "time_decay":  # RWKV: two inputs before, and three sums
        return 5 * tensor.count
    if name == "recurrent_param":
        return tensor.count
    if len(tensor.shape) == 2 and tensor.shape[1] > 1 and name != "fgate_preact.weight":  # Mamba 1
        return tensor.count
    if name == "fgate_preact.weight":  # mLSTM: a matrix, a vector and a number for each head
        heads, keys = tensor.shape[0], _rows(module, _KEYS)
        return keys * _rows(module, _VALUES) // heads + keys + heads
    size = first(config, "head_dim") if name == "slope_rate" else _key_size(config, module, tensor.count)
    return _out_width(module) * size


def _key_size(config: Mapping[str, Any], module: Module, heads: int) -> int:
    known = first(config, *_KEY_SIZES)
    return known if known > 1 else max(1, _rows(module, _KEYS) // heads)


def _token(config: Mapping[str, Any], module: Module) -> int:
    """Numbers that a module's cache holds of a token."""
    if latent := _rows(module, _LATENT):  # what keys and values are made of
        return latent
    keys, values = _rows(module, _KEYS), _rows(module, _VALUES)
    if keys:
        return keys + (values or keys * bool(config.get("attention_k_eq_v")))
    if both := _rows(module, _BOTH):
        return both
    fused = next((tensor for name, tensor in module.items() if _FUSED.search(name)), None)
    if fused is not None:
        kind = str(config.get("model_type"))
        return max(0, fused.shape[1 if kind in TRANSPOSED else 0] - _out_width(module, kind))
    return _rows(module, _INDEXED)


def _by_heads(config: Mapping[str, Any]) -> int:
    """Where no tensor says it: by the heads of all layers."""
    heads = first(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
    shared = first(config, "num_key_value_heads", "num_kv_heads") if config.get("num_key_value_heads") else heads
    size = first(config, "head_dim") if config.get("head_dim") else first(config, "hidden_size", "d_model") // heads
    attending = [number for number in range(depth(config)) if _kind(config, number) not in (*_STATES, "mlp", "moe")]
    return 2 * sum(not _reads_another(config, number) for number in attending) * shared * size
