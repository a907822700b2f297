"""What a model will take in memory, said before it is loaded, from its configuration and its files' headers alone."""

import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from llmsvc.errors import BadRequest
from llmsvc.models.headers import Contents, TensorInfo

QUANTIZATIONS = ("none", "int8", "nf4")
SMALL_BYTES = 2**31
"""Models up to here are computed in 32 bits on a CPU, with 8-bit weights. In bf16 a token hangs on the shape of the
batch and on what was cached, since sums round differently, and it is small models that are often undecided. Larger ones
are too where it saves memory: half the bytes are read for each token, and many processors know no bf16."""
CHAT_TOKENS = 4096
"""What a chat is reckoned to take in the KV cache when nobody says how long it will be."""

_TOKENIZER_BYTES = 48_000_000
"""What a load takes beside tensors: the tokenizer, and code that was not needed before."""

_EMBEDDING = re.compile(r"embed(?!_out)|(^|\.)(wte|wpe|token_types)\.|_embd\.|embd_")
_STACKED = re.compile(r"\.experts\.|_exps\.|\.(gate|router)\.weight$|_gate_inp\.")
"""Mixtures of experts: transformers holds the experts in one tensor, and routes with a tensor that is no layer."""
_EXPERT = re.compile(r"\.experts\.\d+\.")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
_TRANSPOSED = ("gpt2", "openai-gpt")
"""Types whose layers are Conv1D, (in, out): bitsandbytes takes them for linear ones, our 8-bit layers do not."""
_OWN_LAYERS = ("falcon",)
"""Types with linear layers of a class of their own, which neither takes."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_KEYS, _VALUES = (re.compile(rf"{name}\.weight$") for name in (r"\.(k_proj|attn_k)", r"\.(v_proj|attn_v)"))


@dataclass(frozen=True)
class Weights:
    """How the weights of a model will be held."""

    precise: bool
    """In 32 bits, before any rounding."""
    rounded: bool
    """The linear layers as the engine's own 8-bit ones."""
    quantization: str = "none"
    stored: str = ""
    """The type in which weights stay in their mapped file until they are rounded or widened, in safetensors' words."""

    @property
    def item(self) -> int:
        """Bytes of a number that the model computes with."""
        return 4 if self.precise else 2


@dataclass(frozen=True)
class ModelForecast:
    """Bytes. ``peak_bytes``: the most while it loads, or afterwards with a chat of ``context`` tokens."""

    weights_bytes: int
    kv_bytes_per_token: int
    load_peak_bytes: int
    window: int
    context: int

    @property
    def peak_bytes(self) -> int:
        return max(self.load_peak_bytes, self.weights_bytes + self.context * self.kv_bytes_per_token)

    def row(self) -> dict[str, Any]:
        return {**asdict(self), "peak_bytes": self.peak_bytes}


def plan(contents: Contents, device: str, quantization: str, full_weights: bool) -> Weights:
    """How loading is to hold the weights. Raises BadRequest for an unknown quantization."""
    if quantization not in QUANTIZATIONS:
        raise BadRequest(f'Unknown quantization "{quantization}". Use one of: {", ".join(QUANTIZATIONS)}.')
    stored = sum(tensor.bytes or 2 * tensor.count for tensor in contents.tensors)  # GGUF is unpacked to 16 bits
    kind = _stored(contents)
    if device != "cpu" or quantization != "none" or (stored > SMALL_BYTES and (full_weights or not kind)):
        return Weights(False, False, quantization)
    if full_weights:
        return Weights(True, False)
    rounded = Weights(True, True, stored=kind)
    half = Weights(False, False)
    saves = stored <= SMALL_BYTES or forecast(contents, rounded).peak_bytes < forecast(contents, half).peak_bytes
    return rounded if saves else half


def _stored(contents: Contents) -> str:
    """The one type of all weights, if it is one that need not be changed before they are rounded."""
    kinds = {tensor.stored for tensor in contents.tensors if tensor.floating}
    alone = len(kinds) == 1 and kinds <= {"F32", "F16", "BF16"} and not contents.config.get("quantization_config")
    return kinds.pop() if alone else ""


def window_of(config: dict[str, Any]) -> int:
    """The window that a model was made for, in tokens."""
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 2048)


def forecast(contents: Contents, weights: Weights, context: int = 0) -> ModelForecast:
    """What a model will take. ``context``: tokens of the chats to come, 0 for one usual chat."""
    window = window_of(contents.config)
    held, peak = _weights(contents, weights)
    if contents.packed:
        peak = max(peak, _unpacking(contents))
    return ModelForecast(
        held, kv_bytes(contents, weights.item), peak + _TOKENIZER_BYTES, window, context or min(window, CHAT_TOKENS)
    )


def kv_bytes(contents: Contents, item: int) -> int:
    """Bytes that a token takes in the KV cache, of ``item`` bytes for each number.

    Layers with a sliding window keep all of their tokens too, so that a chat can be gone on with from anywhere in it.
    """
    config = contents.config
    layers = _first(config, *_LAYERS)
    if config.get("kv_lora_rank"):  # multi-head latent attention caches what keys and values are made of
        return layers * int(config["kv_lora_rank"] + config.get("qk_rope_head_dim", 0)) * item
    keys, values = (
        [tensor.shape[0] for tensor in contents.tensors if kind.search(tensor.name) and len(tensor.shape) == 2]
        for kind in (_KEYS, _VALUES)
    )
    if keys and values and not config.get("num_kv_shared_layers"):
        return (sum(keys) + sum(values)) * item
    heads = _first(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
    shared = config.get("num_key_value_heads") or config.get("num_kv_heads") or heads
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        shared = 1
    size = config.get("head_dim") or _first(config, "hidden_size", "n_embd", "d_model") // heads
    return int(2 * (layers - (config.get("num_kv_shared_layers") or 0)) * shared * size * item)


def _first(config: dict[str, Any], *names: str) -> int:
    return int(next((config[name] for name in names if config.get(name)), 1))


def _weights(contents: Contents, weights: Weights) -> tuple[int, int]:
    """Bytes of all tensors once loaded, and the most while they are."""
    config, item = contents.config, weights.item
    kind = str(config.get("model_type"))
    heads = [tensor for tensor in contents.tensors if _HEAD.search(tensor.name)]
    tied = not heads or config.get("tie_word_embeddings") is True
    tensors = [tensor for tensor in contents.tensors if not (tied and tensor in heads)]
    held = wide = _buffers(config, kind)
    layers: list[TensorInfo] = []
    rounding: list[TensorInfo] = []
    embeddings: list[TensorInfo] = []
    for tensor in tensors:
        full = item * tensor.count if tensor.floating else tensor.bytes
        wide += full
        if _EMBEDDING.search(tensor.name):
            embeddings.append(tensor)
        layer = _is_layer(tensor) and (kind not in _OWN_LAYERS or tensor in heads)
        if layer and weights.quantization != "none" and tensor not in heads:
            held += _bitsandbytes(tensor, weights.quantization, 1 if kind in _TRANSPOSED else 0)
        elif layer and weights.rounded and (kind not in _TRANSPOSED or tensor in heads):
            held += _rounded(tensor)
            rounding.append(tensor)
        else:
            held += full
        if layer:
            layers.append(tensor)
    if weights.rounded and tied and embeddings:  # the head gets its own 8-bit copy
        rounding.append(max(embeddings, key=lambda tensor: tensor.count))
        held += _rounded(rounding[-1])
    if weights.rounded:
        if weights.stored:  # all else is widened afterwards; experts were put together, the last ones are there twice
            return held, held + 2 * _largest_stack(tensors)
        now = peak = wide
        for tensor in rounding:  # one after the other is rounded; the head comes last
            now += _rounded(tensor)
            peak = max(peak, now)
            now -= item * tensor.count
        return held, peak
    largest = max((tensor.count for tensor in layers), default=0)
    return held, held + (2 * item + 4) * largest if weights.quantization != "none" else held


def _buffers(config: dict[str, Any], kind: str) -> int:
    """What some older types keep beside their weights: masks and tables of positions."""
    positions = _first(config, "max_position_embeddings", "n_positions")
    layers = _first(config, *_LAYERS)
    if kind == "gpt_neo":
        return layers * positions**2
    if kind in ("gptj", "codegen"):
        return layers * positions * 4 * (config.get("rotary_dim") or 0)
    return 0


def _is_layer(tensor: TensorInfo) -> bool:
    """Whether a tensor is the weight of a linear layer."""
    name = tensor.name
    return (
        len(tensor.shape) == 2
        and tensor.floating
        and name.endswith(".weight")
        and not (_EMBEDDING.search(name) or _STACKED.search(name) or "norm" in name)
    )


def _largest_stack(tensors: list[TensorInfo]) -> int:
    """Numbers in the largest tensor that is put together of experts that the file has one by one; 0 without such."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        whole, experts = _EXPERT.subn(".experts.", tensor.name)
        counts[whole] += tensor.count if experts else 0
    return max(counts.values(), default=0)


def _rounded(tensor: TensorInfo) -> int:
    return tensor.count + 4 * tensor.shape[0]


def _bitsandbytes(tensor: TensorInfo, quantization: str, out: int) -> int:
    """A linear layer's weight, with its scales: one for each of dimension ``out`` (int8) or for 64 numbers (nf4)."""
    if quantization == "int8":
        return tensor.count + 4 * tensor.shape[out]
    return -(-tensor.count // 2) + 4 * -(-tensor.count // 64) + 64


def _unpacking(contents: Contents) -> int:
    """What the process takes that makes safetensors of a GGUF file: all weights in 32 bits, then in 16."""
    return 6 * sum(tensor.count for tensor in contents.tensors)
