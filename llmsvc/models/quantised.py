"""A checkpoint's own quantisation, by its config.json and headers alone: which it is, and what loading does with it.

Without torch, so that a forecast can ask. How packed tensors become weights again stands in ``unpack.py``.
Formats: transformers' quantizers and integrations, the compressed-tensors package, GPTQModel, AutoAWQ, NVIDIA's Model
Optimizer, mlx.core.quantize.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from llmsvc.models.headers import TensorInfo

INSTEAD = "Load the original model instead, or a GGUF of it."


@dataclass(frozen=True)
class Treatment:
    """What loading does with a quantised checkpoint on a device."""

    runs: bool
    reason: str = ""
    """A sentence for the user when it does not run: why, and what to take instead."""
    dequantised: bool = False
    """Held as if it had come in bf16: count the bytes of ``logical``."""


@dataclass(frozen=True)
class Packed:
    """A weight that the files have in pieces. ``scheme`` is a function of ``unpack.py``; ``name`` and ``shape`` are the
    weight's, as a model has it; ``pieces`` the tensors by the part they play."""

    name: str
    shape: tuple[int, ...]
    scheme: str
    pieces: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class _Form:
    """How the pieces of a weight are called: all begin alike, ``main`` ends the name of its numbers, ``name`` ends the
    weight's own, and ``pieces`` those of the others. Without the first of them, it is a plain weight."""

    main: str
    pieces: Mapping[str, tuple[str, ...]]
    name: str = "weight"


_COMPRESSED = {
    "scale": ("weight_scale",),
    "zeros": ("weight_zero_point",),
    "divisor": ("weight_global_scale",),
    "shape": ("weight_shape",),
}
_FORMS: dict[str, tuple[_Form, ...]] = {
    "gptq": (_Form("qweight", {"scale": ("scales",), "zeros": ("qzeros",), "groups": ("g_idx",)}),),
    "awq": (_Form("qweight", {"scale": ("scales",), "zeros": ("qzeros",)}),),
    "fp8": (
        _Form("weight", {"scale": ("weight_scale_inv", "weight_scale", "scale", "qscale_weight")}),
        _Form("", {"scale": ("_scale_inv", "_scale")}, ""),
    ),
    "compressed-tensors": (_Form("weight_packed", _COMPRESSED), _Form("weight", _COMPRESSED)),
    "modelopt": (_Form("weight", {"scale": ("weight_scale",), "factor": ("weight_scale_2",)}),),
    "mxfp4": (_Form("_blocks", {"scale": ("_scales",)}, ""),),
    "mlx": (_Form("weight", {"scale": ("scales",), "biases": ("biases",)}),),
}
_OF_ACTIVATIONS = re.compile(
    r"(^|[._])((input|activation|output|q|k|v|kv|prob)_(scale|zero_point|global_scale)|qscale_act)$"
)
"""Scales for numbers that are computed, of which no model here makes use."""
_FLOATS = ("F8_E4M3", "F8_E5M2")


def checkpoint_kind(config: dict[str, Any]) -> str:
    """Of config.json: "none", "bitsandbytes-4bit", "bitsandbytes-8bit", "gptq", "awq", "fp8", "compressed-tensors",
    "modelopt", "mxfp4", "mlx", "auto-round", or the method's own name."""
    own = settings(config)
    method = str(own.get("quant_method") or "").lower().removeprefix("intel/").replace("auto_round", "auto-round")
    if own.get("load_in_4bit") or own.get("load_in_8bit") or method == "bitsandbytes":
        return "bitsandbytes-8bit" if own.get("load_in_8bit") else "bitsandbytes-4bit"
    if method in ("fbgemm_fp8", "mxfp8"):
        return "fp8"
    if not method and "group_size" in own and ("bits" in own or "mode" in own):
        return "mlx"
    return method or ("unknown" if own else "none")


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes the quantisation; empty for plain weights."""
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        for name in ("quantization_config", "compression_config", "quantization"):
            if isinstance(place.get(name), dict) and place[name]:
                return dict(place[name])
    return {}


def treatment(config: dict[str, Any], device: str) -> Treatment:
    """What loading on ``device`` ("cpu", "cuda:0") does with this checkpoint's quantisation."""
    kind, own = checkpoint_kind(config), settings(config)
    if kind == "none":
        return Treatment(True)
    if kind.startswith("bitsandbytes"):
        return Treatment(True)
    if _layout(config) not in _FORMS:
        return Treatment(False, f"Its weights are quantised by {kind}, which cannot be read here. {INSTEAD}")
    if trouble := _trouble(kind, own):
        return Treatment(False, f"{trouble} {INSTEAD}")
    return Treatment(True, dequantised=True)


def _trouble(kind: str, own: dict[str, Any]) -> str:
    """What about a format that is read in general cannot be read; "" if nothing."""
    if kind in ("gptq", "awq", "auto-round") and own.get("bits", 4) not in (2, 3, 4, 8):
        return f"Its weights have {own.get('bits')} bits, which cannot be read here."
    variant = str(own.get("checkpoint_format") or own.get("format") or own.get("version") or "").lower()
    if kind == "gptq" and variant not in ("", "gptq", "gptq_v2"):
        return f'Its weights are laid out for one kind of GPU ("{variant}").'
    if kind == "awq" and variant not in ("", "gemm"):
        return f'Its AWQ weights are laid out for one kind of GPU ("{variant}").'
    if kind == "auto-round" and (own.get("data_type", "int") != "int" or not _auto_round(own)):
        return f'Its auto-round weights are packed as "{own.get("packing_format")}", which cannot be read here.'
    if kind == "compressed-tensors":
        if _ordered(own):
            return "Its weights are in groups of their own order (actorder), which cannot be read here."
        return next((trouble for name in _formats(own) if (trouble := _compressed(name))), "")
    if kind == "mlx" and own.get("mode", "affine") not in ("affine", "mxfp4", "mxfp8", "nvfp4"):
        return f'Its MLX weights are quantised as "{own["mode"]}", which cannot be read here.'
    return ""


def _compressed(name: str) -> str:
    if name in ("marlin-24", "sparse-24-bitmask", "sparse-bitmask", "mxfp6-pack-quantized"):
        return f'Its weights are compressed as "{name}", which cannot be read here.'
    return ""


def _ordered(own: dict[str, Any]) -> bool:
    """Whether columns belong to groups in an order that a tensor beside the weights says (``weight_g_idx``)."""
    groups = own.get("config_groups")
    parts = groups.values() if isinstance(groups, dict) else ()
    weights = [part["weights"] for part in parts if isinstance(part, dict) and isinstance(part.get("weights"), dict)]
    return any(str(one.get("actorder") or "").lower() in ("group", "true") for one in weights)


def _formats(own: dict[str, Any]) -> list[str]:
    """The formats that a configuration of compressed-tensors names."""
    groups = own.get("config_groups")
    parts = [own, own.get("sparsity_config"), *(groups.values() if isinstance(groups, dict) else ())]
    return [str(part["format"]) for part in parts if isinstance(part, dict) and part.get("format")]


def _auto_round(own: dict[str, Any]) -> str:
    """As which other format auto-round has packed the weights; "" for one of its own."""
    packing = str(own.get("packing_format") or "")
    if packing.endswith("auto_awq"):
        return "awq"
    return "gptq" if packing.endswith("auto_gptq") or own.get("sym") else ""


def _layout(config: dict[str, Any]) -> str:
    kind = checkpoint_kind(config)
    return _auto_round(settings(config)) if kind == "auto-round" else kind


def logical(tensors: Sequence[TensorInfo], config: dict[str, Any]) -> list[TensorInfo]:
    """The tensors as loading sees them: packed ones by the names and shapes of the weights they stand for, in the 16
    bits that the others have, without scales and zero points. Others, and those that stay packed, as they are."""
    plain, packed = split(tensors, config)
    stored = sixteen_bits(plain)
    return plain + [TensorInfo(one.name, one.shape, 2 * prod(one.shape), stored) for one in packed]


def sixteen_bits(plain: Sequence[TensorInfo]) -> str:
    """The type in which unpacked weights are held beside these: F16 if that is theirs, else BF16."""
    return "F16" if {tensor.stored for tensor in plain if tensor.floating} == {"F16"} else "BF16"


def kept(config: dict[str, Any]) -> str:
    """As what a checkpoint's layers stay quantised: "nf4", "fp4" or "int8" of bitsandbytes; "" when they do not."""
    kind = checkpoint_kind(config)
    if kind == "bitsandbytes-4bit":
        return str(settings(config).get("bnb_4bit_quant_type") or "fp4")
    return "int8" if kind == "bitsandbytes-8bit" else ""


def without(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it would be without quantisation, its text_config as well."""
    bare = {name: value for name, value in config.items() if name not in _KEYS}
    if isinstance(inner := bare.get("text_config"), dict):
        bare["text_config"] = {name: value for name, value in inner.items() if name not in _KEYS}
    return bare


_KEYS = ("quantization_config", "compression_config", "quantization")


def split(tensors: Sequence[TensorInfo], config: dict[str, Any]) -> tuple[list[TensorInfo], list[Packed]]:
    """Which tensors are weights as they are, and which are pieces of one."""
    forms = _FORMS.get(_layout(config))
    if forms is None:
        return list(tensors), []
    by_name = {tensor.name: tensor for tensor in tensors}
    packed = [one for tensor in tensors if (one := _packed(tensor, forms, by_name, config))]
    pieces = {piece.name for one in packed for piece in one.pieces.values()}
    plain = [tensor for tensor in tensors if tensor.name not in pieces and not _of_activations(tensor)]
    return plain, packed


def _of_activations(tensor: TensorInfo) -> bool:
    return tensor.count <= 1 and bool(_OF_ACTIVATIONS.search(tensor.name))


def _packed(
    tensor: TensorInfo, forms: tuple[_Form, ...], by_name: dict[str, TensorInfo], config: dict[str, Any]
) -> Packed | None:
    for form in forms:
        if not tensor.name.endswith(form.main) or (tensor.floating and form.main in ("", "weight")):
            continue
        start = tensor.name.removesuffix(form.main)
        pieces = {
            part: by_name[start + end]
            for part, ends in form.pieces.items()
            for end in reversed(ends)
            if start + end in by_name
        }
        if "scale" in pieces:
            return _described(start + form.name, {"main": tensor, **pieces}, config)
    return None


def _described(name: str, pieces: dict[str, TensorInfo], config: dict[str, Any]) -> Packed:
    layout, main, scale = _layout(config), pieces["main"], pieces["scale"]
    rows, columns = main.shape[:-1], main.shape[-1] if main.shape else 1
    if layout == "gptq":
        bits = 32 * pieces["zeros"].shape[1] // columns if "zeros" in pieces else int(settings(config).get("bits", 4))
        return Packed(name, (columns, main.shape[0] * 32 // bits), "gptq", pieces)
    if layout == "awq":
        return Packed(name, (scale.shape[1], main.shape[0]), "awq", pieces)
    if layout == "mxfp4":
        return Packed(name, (main.shape[0], 2 * main.shape[2] * main.shape[3], main.shape[1]), "blocks", pieces)
    if layout == "mlx":
        group = group_of(name, config)
        return Packed(name, (*rows, scale.shape[-1] * group), "affine", pieces)
    if main.stored == "I32":
        return Packed(name, (*rows, _unpacked_columns(main, scale, settings(config))), "integers", pieces)
    if main.stored == "U8" or (main.stored == "I8" and layout == "fp8"):
        return Packed(name, (*rows, 2 * columns), "fours", pieces)
    return Packed(name, main.shape, "scaled", pieces)


def _unpacked_columns(main: TensorInfo, scale: TensorInfo, own: dict[str, Any]) -> int:
    """Of integers packed by compressed-tensors; without groups this may be a few too many, since rows are padded."""
    groups = [group.get("weights") or {} for group in (own.get("config_groups") or {}).values()]
    for weights in groups:
        size, bits = weights.get("group_size") or -1, weights.get("num_bits") or 4
        columns = scale.shape[-1] * size if size > 0 else main.shape[-1] * 32 // bits
        if -(-columns * bits // 32) == main.shape[-1]:
            return int(columns)
    return main.shape[-1] * 8


def mode_of(name: str, config: dict[str, Any]) -> str:
    """In which of MLX's modes a weight is quantised."""
    return str(_of_module(name, config).get("mode") or "affine")


def group_of(name: str, config: dict[str, Any]) -> int:
    """How many numbers of a row share a scale, in MLX."""
    own = _of_module(name, config)
    return int(own.get("group_size") or {"nvfp4": 16, "mxfp4": 32, "mxfp8": 32}.get(mode_of(name, config), 64))


def _of_module(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """MLX's settings for the module of a weight, which may have its own."""
    own = settings(config)
    special = own.get(name.removesuffix(".weight"))
    return special if isinstance(special, dict) else own


def refuse_width(tensors: Sequence[TensorInfo], quantization: str, device: str) -> str:
    """Why (logical) weights cannot be held in ``quantization`` on ``device``; "" when they can.

    bitsandbytes shares a scale among 64 numbers in a row. Its CPU code multiplies wrongly where rows end within them.
    """
    for tensor in tensors if quantization == "nf4" and device == "cpu" else ():
        layer = len(tensor.shape) == 2 and tensor.floating and tensor.name.endswith(".weight")
        if layer and tensor.shape[1] % 64 and not _KEPT_WHOLE.search(tensor.name):
            return (
                f"nf4 needs layers whose width is a multiple of 64, and {tensor.name} is {tensor.shape[1]} wide. "
                'Load it with quantization "int8" or "none".'
            )
    return ""


_KEPT_WHOLE = re.compile(r"embed|norm|(^|\.)(wte|wpe|lm_head|output|gate|router)\.weight$|\.experts\.")
"""What is no linear layer, or stays as it is."""
