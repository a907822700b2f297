"""Weights packed as other programs pack them, bit by bit, each with what it then stands for; and tiny models of such.

Written from the formats' descriptions, apart from what the service unpacks them with.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

Pieces = dict[str, torch.Tensor]
Packer = Callable[[torch.Tensor, np.random.Generator], tuple[Pieces, torch.Tensor]]
"""A weight (out, in) to its pieces by their ends of names, and the weight that they stand for."""

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def tokenizer(folder: Path, words: int = 300) -> None:
    """A tokenizer of so many words, "w3" and the like."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, words)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)


def plain(config: Any, folder: Path, seed: int = 0) -> Path:
    """A random model of this configuration in float32, with a tokenizer."""
    torch.manual_seed(seed)
    config.initializer_range = 0.2
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    tokenizer(folder, config.get_text_config().vocab_size)
    return folder


def repack(
    folder: Path, packer: Packer, settings: dict[str, Any], key: str = "quantization_config", also: str = ""
) -> dict[str, torch.Tensor]:
    """Pack the layers' weights of a plain model where it lies; gives its weights as they stand now.

    ``also``: the end of the names of other weights that are packed.
    """
    dice = np.random.default_rng(0)
    meant, stored = load_file(folder / "model.safetensors"), {}
    for name, weight in meant.items():
        if weight.dim() == 2 and (name.endswith("proj.weight") or (also and name.endswith(also))):
            pieces, meant[name] = packer(weight, dice)
            stored |= {name.removesuffix("weight") + end: piece.contiguous() for end, piece in pieces.items()}
        else:
            stored[name] = meant[name] = weight.half().float() if weight.dim() == 1 else weight
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    configure(folder, **{key: settings})
    return meant


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def stream(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Rows of numbers as rows of 32-bit words, lowest bit first."""
    single = (numbers[..., None] >> np.arange(bits)) & 1
    flat = single.reshape(*numbers.shape[:-1], -1).astype(np.uint8)
    missing = -flat.shape[-1] % 32
    flat = np.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, missing)])
    return np.packbits(flat, axis=-1, bitorder="little").view("<i4")


def gptq(bits: int, group: int, second: bool = False, shuffled: bool = False) -> Packer:
    def pack(weight: torch.Tensor, dice: np.random.Generator) -> tuple[Pieces, torch.Tensor]:
        out, columns = weight.shape
        groups = columns // group
        numbers = dice.integers(0, 2**bits, (out, columns))
        zeros = dice.integers(1, 2**bits, (groups, out))
        scales = dice.uniform(0.2, 1, (groups, out)).astype(np.float16) / np.float16(2**bits)
        index = np.arange(columns) // group
        index = dice.permutation(index) if shuffled else index
        meant = (numbers - zeros[index].T) * scales[index].T.astype(np.float32)
        pieces = {
            "qweight": stream(numbers, bits).T,  # words go down the columns of (in, out)
            "qzeros": stream(zeros - (0 if second else 1), bits),
            "scales": scales,
            "g_idx": index.astype(np.int32),
        }
        return tensors(pieces), torch.from_numpy(meant.astype(np.float32))

    return pack


def awq(group: int) -> Packer:
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # which of eight outputs each nibble of a word holds

    def interleaved(numbers: np.ndarray) -> np.ndarray:
        eights = numbers.reshape(numbers.shape[0], -1, 8)[..., order].astype(np.int64)
        return (eights << (4 * np.arange(8))).sum(-1).astype(np.uint32).view(np.int32)

    def pack(weight: torch.Tensor, dice: np.random.Generator) -> tuple[Pieces, torch.Tensor]:
        out, columns = weight.shape
        groups = columns // group
        numbers, zeros = dice.integers(0, 16, (columns, out)), dice.integers(0, 16, (groups, out))
        scales = dice.uniform(0.01, 0.06, (groups, out)).astype(np.float16)
        meant = (numbers - zeros.repeat(group, 0)) * scales.repeat(group, 0).astype(np.float32)
        pieces = {"qweight": interleaved(numbers), "qzeros": interleaved(zeros), "scales": scales}
        return tensors(pieces), torch.from_numpy(meant.T.astype(np.float32))

    return pack


def integers(bits: int, group: int, zeros: bool) -> Packer:
    """compressed-tensors' pack-quantized; ``group`` 0: a scale for each row."""

    def pack(weight: torch.Tensor, dice: np.random.Generator) -> tuple[Pieces, torch.Tensor]:
        out, columns = weight.shape
        many, least = columns // (group or columns), 2 ** (bits - 1)
        numbers = dice.integers(-least, least, (out, columns))
        zero = dice.integers(-least, least, (out, many)) * zeros
        scales = (dice.uniform(0.2, 1, (out, many)) / 2**bits).astype(np.float32)
        meant = (numbers - zero.repeat(columns // many, 1)) * scales.repeat(columns // many, 1)
        pieces = {"weight_packed": stream(numbers + least, bits), "weight_scale": scales}
        pieces["weight_shape"] = np.array([out, columns])
        if zeros:
            pieces["weight_zero_point"] = stream(zero.T + least, bits).T
        return tensors(pieces), torch.from_numpy(meant.astype(np.float32))

    return pack


def eights(kind: torch.dtype, block: tuple[int, int], end: str = "weight_scale", inputs: str = "") -> Packer:
    """8-bit numbers with a scale for each block; 0 for as many rows or columns as there are."""

    def pack(weight: torch.Tensor, dice: np.random.Generator) -> tuple[Pieces, torch.Tensor]:
        rows, columns = weight.shape
        high, wide = block[0] or rows, block[1] or columns
        numbers = torch.from_numpy(dice.integers(-100, 100, (rows, columns)).astype(np.float32)).to(kind)
        grid = (-(-rows // high), -(-columns // wide))
        scales = torch.from_numpy(dice.uniform(0.001, 0.005, grid).astype(np.float32))
        meant = numbers.float().clone()
        for i in range(grid[0]):
            for j in range(grid[1]):
                meant[i * high : (i + 1) * high, j * wide : (j + 1) * wide] *= scales[i, j]
        pieces = {"weight": numbers, end: scales.reshape(()) if grid == (1, 1) else scales}
        if inputs:
            pieces[inputs] = torch.tensor(0.5)
        return pieces, meant

    return pack


def fours(group: int, whole: str = "") -> Packer:
    """Two E2M1 numbers in a byte. ``whole``: the name of a scale for all; its groups then have E4M3 scales, else E8M0.

    compressed-tensors divides by it ("weight_global_scale"), Model Optimizer multiplies ("weight_scale_2").
    """

    def pack(weight: torch.Tensor, dice: np.random.Generator) -> tuple[Pieces, torch.Tensor]:
        rows, columns = weight.shape
        codes = dice.integers(0, 16, (rows, columns))
        packed = torch.from_numpy((codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8))
        if whole:
            small = torch.from_numpy(dice.uniform(1, 400, (rows, columns // group)).astype(np.float32))
            small = small.to(torch.float8_e4m3fn)
            factor = 1 / 4096
            scale = small.float() * factor
            extra = {whole: torch.tensor([1 / factor if "global" in whole else factor])}
        else:
            exponents = dice.integers(120, 126, (rows, columns // group)).astype(np.uint8)
            small, extra = torch.from_numpy(exponents), {}
            scale = torch.from_numpy(2.0 ** (exponents.astype(np.float32) - 127))
        meant = torch.from_numpy(E2M1[codes]) * scale.repeat_interleave(group, 1)
        main = "weight" if whole == "weight_scale_2" else "weight_packed"
        return {main: packed, "weight_scale": small, **extra}, meant

    return pack


def mlx(bits: int, group: int, mode: str = "affine") -> Packer:
    def pack(weight: torch.Tensor, dice: np.random.Generator) -> tuple[Pieces, torch.Tensor]:
        rows, columns = weight.shape
        codes = dice.integers(0, 2**bits, (rows, columns))
        words = stream(codes, bits).view(np.uint32)
        if mode == "mxfp4":
            exponents = dice.integers(120, 126, (rows, columns // group)).astype(np.uint8)
            meant = E2M1[codes] * (2.0 ** (exponents.astype(np.float32) - 127)).repeat(group, 1)
            return tensors({"weight": words, "scales": exponents}), torch.from_numpy(meant.astype(np.float32))
        scales = (dice.uniform(0.2, 1, (rows, columns // group)) / 2**bits).astype(np.float16)
        biases = -scales * np.float16(2 ** (bits - 1))
        meant = codes * scales.repeat(group, 1).astype(np.float32) + biases.repeat(group, 1).astype(np.float32)
        return tensors({"weight": words, "scales": scales, "biases": biases}), torch.from_numpy(
            meant.astype(np.float32)
        )

    return pack


def tensors(arrays: dict[str, np.ndarray]) -> Pieces:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def reference(folder: Path, meant: dict[str, torch.Tensor]) -> Any:
    """The model of a folder's configuration with these weights, in float32, by transformers."""
    config = json.loads((folder / "config.json").read_text())
    for key in ("quantization_config", "quantization"):
        config.pop(key, None)
    beside = folder.parent / f"{folder.name}-meant"
    beside.mkdir()
    (beside / "config.json").write_text(json.dumps(config))
    save_file(
        {name: weight.contiguous() for name, weight in meant.items()},
        beside / "model.safetensors",
        metadata={"format": "pt"},
    )
    return AutoModelForCausalLM.from_pretrained(beside, dtype=torch.float32).eval()


def likeness(first: Any, second: Any, vocabulary: int = 300) -> float:
    """The least cosine of two models' logits, over the places of a random text."""
    dice = random.Random(0)
    ids = torch.tensor([[dice.randrange(3, vocabulary) for _ in range(24)]])
    with torch.no_grad():
        ours, theirs = (model(input_ids=ids).logits.float() for model in (first, second))
    return float(torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min())


def packed_file(path: Path, architecture: str, without: str = "", broken: str = "") -> Path:
    """A GGUF file of a llama with two layers, whatever architecture it says it has. ``without`` and ``broken``: tensors
    that are missing, or hold something that is no number."""
    out, dice = gguf.GGUFWriter(str(path), architecture), np.random.default_rng(0)
    out.add_context_length(128)
    out.add_block_count(2)
    out.add_embedding_length(64)
    out.add_feed_forward_length(128)
    out.add_head_count(4)
    out.add_head_count_kv(2)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(16)
    out.add_expert_count(4)
    out.add_expert_used_count(2)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(["<unk>", "<s>", "</s>", "w", "3", "w3", *(f"q{number}" for number in range(6, 300))])
    out.add_token_merges(["w 3"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    shapes = {"token_embd.weight": (300, 64), "output_norm.weight": (64,), "output.weight": (300, 64)}
    for layer in range(2):
        sizes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
        sizes |= {
            "ffn_gate": (128, 64),
            "ffn_up": (128, 64),
            "ffn_down": (64, 128),
            "attn_norm": (64,),
            "ffn_norm": (64,),
        }
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in sizes.items()}
    for name, shape in shapes.items():
        values = dice.normal(0, 0.1, shape).astype(np.float32)
        values.flat[3] = np.nan if name == broken else values.flat[3]
        if name != without:
            out.add_tensor(name, values)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
