"""What a model will take in memory, said before it is loaded, from its configuration and its files' headers alone."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmsvc.errors import BadRequest
from llmsvc.models import quantised
from llmsvc.models.fields import completed
from llmsvc.models.headers import Contents, TensorInfo
from llmsvc.models.layers import TRANSPOSED, Kept, depth, first, kept
from llmsvc.models.parts import effective

QUANTIZATIONS = ("none", "int8", "nf4")
SMALL_BYTES = 2**31
"""Models up to here are computed in 32 bits on a CPU, with 8-bit weights. In bf16 a token hangs on the shape of the
batch and on what was cached, since sums round differently, and it is small models that are often undecided. Larger ones
are too where it saves memory: half the bytes are read for each token, and many processors know no bf16."""
CHAT_TOKENS = 4096
"""What a chat is reckoned to take in the KV cache when nobody says how long it will be."""

_TOKENIZER_BYTES = 48_000_000
"""What a load takes beside tensors: the tokenizer, and code that was not needed before."""

_EMBEDDING = re.compile(r"(?<!un)embed(?!_out)|(^|\.)(wte|wpe|token_types)\.|_embd\.|embd_")
_POSITIONS = re.compile(r"wpe|position|(^|[._])pos([._]|$)")
_STACKED = re.compile(r"\.experts\.|_exps\.|\.(gate|router)\.weight$|_gate_inp\.")
"""Mixtures of experts: transformers holds the experts in one tensor, and routes with a tensor that is no layer."""
_EXPERT = re.compile(r"\.experts\.\d+\.")
_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_k")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
_OF_PACKED = re.compile(r"(^|\.)(SCB|absmax|quant_map|nested_absmax|nested_quant_map)$")
"""What bitsandbytes has beside its weights, held in the type that it is stored in."""
_OWN_LAYERS = ("falcon",)
"""Types with linear layers of a class of their own, which neither takes."""


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
    state_bytes: int
    """What a chat takes however long it is."""
    load_peak_bytes: int
    window: int
    context: int

    @property
    def chat_bytes(self) -> int:
        """Of one chat of ``context`` tokens."""
        return self.context * self.kv_bytes_per_token + self.state_bytes

    @property
    def peak_bytes(self) -> int:
        return max(self.load_peak_bytes, self.weights_bytes + self.chat_bytes)

    def row(self) -> dict[str, Any]:
        return {**asdict(self), "peak_bytes": self.peak_bytes}


def plan(contents: Contents, device: str, quantization: str, full_weights: bool) -> Weights:
    """How loading is to hold the weights. Raises BadRequest for an unknown quantization."""
    if quantization not in QUANTIZATIONS:
        raise BadRequest(f'Unknown quantization "{quantization}". Use one of: {", ".join(QUANTIZATIONS)}.')
    contents = effective(contents)
    if quantised.kept(contents.config):
        return Weights(False, False)
    stored = sum(tensor.bytes or 2 * tensor.count for tensor in contents.tensors)  # what is unpacked has 16 bits then
    kind = _stored(contents)
    if device != "cpu" or quantization != "none" or (stored > SMALL_BYTES and (full_weights or not kind)):
        return Weights(False, False, quantization)
    if full_weights:
        return Weights(True, False)
    rounded = Weights(True, True, stored=kind)
    half = Weights(False, False)
    if stored <= SMALL_BYTES:
        return rounded
    saves = _forecast(contents, rounded, 0).peak_bytes < _forecast(contents, half, 0).peak_bytes
    return rounded if saves else half


def _stored(contents: Contents) -> str:
    """The one type of all weights, if it is one that need not be changed before they are rounded."""
    kinds = {tensor.stored for tensor in contents.tensors if tensor.floating}
    return kinds.pop() if len(kinds) == 1 and kinds <= {"F32", "F16", "BF16"} else ""


def window_of(config: dict[str, Any]) -> int:
    """The window that a model was made for, in tokens."""
    whole = completed(config)
    return int(whole.get("max_position_embeddings") or whole.get("n_positions") or 2048)


def forecast(contents: Contents, weights: Weights, context: int = 0) -> ModelForecast:
    """What a model will take. ``context``: tokens of the chats to come, 0 for one usual chat."""
    return _forecast(effective(contents), weights, context)


def _forecast(contents: Contents, weights: Weights, context: int) -> ModelForecast:
    config, tensors = completed(contents.config), contents.tensors
    window, cache = window_of(contents.config), kept(config, tensors)
    holding = _Holding(config, tensors, weights)
    peak = max(holding.peak, _unpacking(contents) if contents.packed else 0)
    return ModelForecast(
        weights_bytes=holding.held,
        kv_bytes_per_token=cache.token * weights.item,
        state_bytes=_states(cache, weights),
        load_peak_bytes=peak + _TOKENIZER_BYTES,
        window=window,
        context=context or min(window, CHAT_TOKENS),
    )


def has_layers(contents: Contents) -> bool:
    """Whether bitsandbytes finds a layer that it can hold in fewer bits."""
    contents = effective(contents)
    return _Holding(completed(contents.config), contents.tensors, Weights(False, False, "int8")).quantised


def read_bytes(contents: Contents, weights: Weights) -> int:
    """What is read of the weights for one token of one answer: all layers, and of experts those that are asked."""
    contents = effective(contents)
    return _Holding(completed(contents.config), contents.tensors, weights).read


def _states(cache: Kept, weights: Weights) -> int:
    return cache.convolutions * weights.item + cache.states * 4


class _Holding:
    """The tensors of one model, sorted by how each of them is held."""

    def __init__(self, config: dict[str, Any], tensors: Sequence[TensorInfo], weights: Weights) -> None:
        self._kind, self._weights = str(config.get("model_type")), weights
        self._buffers = _buffers(config, self._kind)
        heads = [tensor for tensor in tensors if _HEAD.search(tensor.name)]
        tied = not heads or config.get("tie_word_embeddings") is True
        self._heads = set() if tied else {tensor.name for tensor in heads}
        self._tensors = [tensor for tensor in tensors if not (tied and _HEAD.search(tensor.name))]
        self._layers = [tensor for tensor in self._tensors if self._is_layer(tensor)]
        self._in_layers = {tensor.name for tensor in self._layers}
        self._embeddings = [tensor for tensor in self._tensors if _EMBEDDING.search(tensor.name)]
        words = [tensor for tensor in self._embeddings if not _POSITIONS.search(tensor.name)]
        self._copied = [max(words, key=lambda tensor: tensor.count)] if tied and words else []
        """What the head is tied to: with 8-bit layers it gets a copy of its own."""
        self._asked = min(1.0, first(config, *_ACTIVE) / first(config, *EXPERTS))
        """Of a layer's experts the share that reads a token."""
        self._experts = first(config, *EXPERTS)

    @property
    def held(self) -> int:
        copies = sum(map(_rounded, self._copied)) if self._weights.rounded else 0
        return self._buffers + copies + sum(map(self._bytes, self._tensors))

    @property
    def quantised(self) -> bool:
        return bool(self._in_layers - self._heads)

    @property
    def read(self) -> int:
        """Bytes that a token takes part in; of embeddings it is one row."""
        rows = {tensor.name for tensor in self._embeddings}
        layers = [tensor for tensor in self._tensors if tensor.name not in rows]
        experts = sum(self._bytes(tensor) for tensor in layers if self._is_expert(tensor))
        head = sum(map(_rounded if self._weights.rounded else self._whole, self._copied))
        return sum(map(self._bytes, layers)) + head - int(experts * (1 - self._asked))

    def _is_expert(self, tensor: TensorInfo) -> bool:
        stacked = len(tensor.shape) == 3 and tensor.shape[0] == self._experts > 1
        return stacked or bool(_EXPERT.search(tensor.name))

    @property
    def peak(self) -> int:
        weights = self._weights
        if weights.rounded and weights.stored:
            # all else is widened afterwards; experts were put together, the last ones are there twice
            return self.held + 2 * _largest_stack(self._tensors)
        if weights.rounded:
            return self._peak_of_rounding()
        largest = max((tensor.count for tensor in self._layers), default=0)
        return self.held + (2 * weights.item + 4) * largest * (weights.quantization != "none")

    def _peak_of_rounding(self) -> int:
        """One layer after the other is rounded; the head comes last."""
        now = peak = self._buffers + sum(map(self._whole, self._tensors))
        for tensor in [*filter(self._is_rounded, self._layers), *self._copied]:
            now += _rounded(tensor)
            peak = max(peak, now)
            now -= self._weights.item * tensor.count
        return peak

    def _is_layer(self, tensor: TensorInfo) -> bool:
        """Whether it is the weight of a linear layer."""
        name = tensor.name
        return (
            len(tensor.shape) == 2
            and tensor.floating
            and name.endswith(".weight")
            and not (_EMBEDDING.search(name) or _STACKED.search(name) or "norm" in name)
            and (self._kind not in _OWN_LAYERS or name in self._heads)
        )

    def _is_rounded(self, tensor: TensorInfo) -> bool:
        turned = self._kind in TRANSPOSED and tensor.name not in self._heads
        return self._weights.rounded and tensor.name in self._in_layers and not turned

    def _bytes(self, tensor: TensorInfo) -> int:
        quantization = self._weights.quantization
        if self._is_rounded(tensor):
            return _rounded(tensor)
        if quantization != "none" and tensor.name in self._in_layers and tensor.name not in self._heads:
            return _bitsandbytes(tensor, quantization, 1 if self._kind in TRANSPOSED else 0)
        return self._whole(tensor)

    def _whole(self, tensor: TensorInfo) -> int:
        plain = tensor.floating and not _OF_PACKED.search(tensor.name)
        return self._weights.item * tensor.count if plain else tensor.bytes


def _buffers(config: dict[str, Any], kind: str) -> int:
    """What some older types keep beside their weights: masks and tables of positions."""
    positions = first(config, "max_position_embeddings", "n_positions")
    layers = depth(config)
    if kind == "gpt_neo":
        return layers * positions**2
    if kind == "gpt_bigcode":
        return positions**2
    if kind in ("gptj", "codegen"):
        return layers * positions * 4 * (config.get("rotary_dim") or 0)
    return 0


def _largest_stack(tensors: Sequence[TensorInfo]) -> int:
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
