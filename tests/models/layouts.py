"""Quantised checkpoints as they are published, tiny: ten families of layouts, and some that nobody here can read."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import packing
import random_models
import torch
from packing import awq, eights, fours, gptq, integers, mlx, plain, repack
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GptOssConfig

FP8, INT8 = torch.float8_e4m3fn, torch.int8


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"symmetric": True, "group_size": None, **weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


LAYOUTS: dict[str, tuple[packing.Packer, dict[str, Any]]] = {
    "gptq": (gptq(4, 32), {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "gptq 8 bits, in order of activations": (
        gptq(8, 64, shuffled=True),
        {"quant_method": "gptq", "bits": 8, "group_size": 64, "desc_act": True},
    ),
    "gptq 3 bits, second format": (
        gptq(3, 32, second=True),
        {"quant_method": "gptq", "bits": 3, "group_size": 32, "checkpoint_format": "gptq_v2"},
    ),
    "auto-round": (
        gptq(4, 32),
        {"quant_method": "auto-round", "bits": 4, "sym": False, "packing_format": "auto_round:auto_gptq"},
    ),
    "awq": (awq(32), {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}),
    "fp8 in blocks": (
        eights(FP8, (48, 48), "weight_scale_inv"),
        {"quant_method": "fp8", "weight_block_size": [48, 48], "activation_scheme": "dynamic"},
    ),
    "fp8 with one scale": (
        eights(FP8, (0, 0), "weight_scale_inv", "activation_scale"),
        {"quant_method": "fp8", "activation_scheme": "static"},
    ),
    "fp8 by rows": (eights(FP8, (1, 0)), {"quant_method": "fbgemm_fp8"}),
    "compressed-tensors fp8": (
        eights(FP8, (1, 0), inputs="input_scale"),
        compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    ),
    "compressed-tensors int8": (
        eights(INT8, (1, 0)),
        compressed("int-quantized", num_bits=8, type="int", strategy="channel"),
    ),
    "compressed-tensors int4": (
        integers(4, 32, zeros=True),
        compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32, symmetric=False),
    ),
    "compressed-tensors int8 packed": (
        integers(8, 0, zeros=False),
        compressed("pack-quantized", num_bits=8, type="int", strategy="channel"),
    ),
    "compressed-tensors nvfp4": (
        fours(16, "weight_global_scale"),
        compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
    ),
    "compressed-tensors mxfp4": (
        fours(32),
        compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32),
    ),
    "modelopt nvfp4": (fours(16, "weight_scale_2"), {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "mlx": (mlx(4, 32), {"group_size": 32, "bits": 4}),
    "mlx 6 bits": (mlx(6, 64), {"group_size": 64, "bits": 6, "mode": "affine"}),
    "mlx mxfp4": (mlx(4, 32, "mxfp4"), {"group_size": 32, "bits": 4, "mode": "mxfp4"}),
}
MODELS = ("llama", "qwen2", "qwen3-moe")


def model_config(name: str) -> Any:
    made = random_models.config(name, random.Random(MODELS.index(name)), vocabulary=300)
    made.tie_word_embeddings = False
    return made


BITSANDBYTES = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}
"""As transformers quantises with bitsandbytes."""

UNREADABLE: tuple[dict[str, Any], ...] = (
    {"quant_method": "aqlm"},
    {"quant_method": "hqq"},
    {"quant_method": "quanto", "weights": "int4"},
    {"quant_method": "torchao"},
    {"quant_method": "awq", "version": "gemv"},
    {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
    {"quant_method": "gptq", "bits": 5},
    {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:gptqmodel"},
    {"quant_method": "compressed-tensors", "format": "marlin-24"},
    {"quant_method": "somebody's own"},
)
"""Settings of layouts that are refused."""


def packed_model(layout: str, model: str, folder: Path) -> dict[str, torch.Tensor]:
    """Write a model in one of ``LAYOUTS``; its weights as they stand now."""
    packer, settings = LAYOUTS[layout]
    key = "quantization" if layout.startswith("mlx") else "quantization_config"
    plain(model_config(model), folder)
    return repack(folder, packer, settings, key, also="embed_tokens.weight" if key == "quantization" else "")


def bitsandbytes_model(kind: str, model: str, folder: Path) -> Any:
    """Write a model as transformers saves it in one of ``BITSANDBYTES``; that model."""
    made = random_models.config(model, random.Random(1), vocabulary=300)
    source = plain(made, folder.parent / f"{folder.name}-plain")
    theirs = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, quantization_config=BITSANDBYTES[kind], device_map="cpu"
    )
    theirs.save_pretrained(folder)
    packing.tokenizer(folder)
    return theirs


def gpt_oss(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    """Write a gpt-oss with experts in MXFP4, as it is published; its weights as they stand now."""
    wide, dice = 64 + 32 * seed, np.random.default_rng(seed)
    config = GptOssConfig(
        vocab_size=300,
        hidden_size=wide,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    plain(config, folder)
    meant, stored = load_file(folder / "model.safetensors"), {}
    for name, weight in list(meant.items()):
        if not name.endswith(("gate_up_proj", "down_proj")):
            stored[name] = weight
            continue
        experts, columns, out = weight.shape
        codes = dice.integers(0, 16, (experts, out, columns // 32, 32))
        exponents = dice.integers(121, 125, (experts, out, columns // 32)).astype(np.uint8)
        values = packing.E2M1[codes] * 2.0 ** (exponents[..., None].astype(np.float32) - 127)
        meant[name] = torch.from_numpy(values.reshape(experts, out, columns).swapaxes(1, 2).astype(np.float32).copy())
        stored[f"{name}_blocks"] = torch.from_numpy((codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8))
        stored[f"{name}_scales"] = torch.from_numpy(exponents)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    packing.configure(folder, quantization_config={"quant_method": "mxfp4"})
    return meant
