"""Tiny random models of several architectures, and what an engine says of them."""

import atexit
import copy
import functools
import queue
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from llmsvc.engine import Engine, GenerationRequest, SamplingParams, TokenEvent

SIZE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZE),
    "qwen3": Qwen3Config(**SIZE),
    "mistral-window": MistralConfig(**SIZE, sliding_window=16),
    "gemma3-mixed": Gemma3TextConfig(
        **SIZE,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
        query_pre_attn_scalar=8,
    ),
    "phi": PhiConfig(**SIZE),
    "gpt2": GPT2Config(
        vocab_size=300, n_embd=32, n_layer=4, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2, pad_token_id=2
    ),
    "mixtral": MixtralConfig(**SIZE, num_local_experts=4, num_experts_per_tok=2),
    "qwen3-moe": Qwen3MoeConfig(**SIZE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
}


@functools.cache
def kept_kernels() -> Path:
    """Where kernels are kept as long as the tests run."""
    folder = tempfile.mkdtemp(prefix="kernels")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


HEADS_OF_16 = LlamaConfig(**{**SIZE, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2})
"""As long as kernels on a CPU want them."""


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    config = HEADS_OF_16 if name == "heads-of-16" else CONFIGS[name]
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config)).float().eval()
    model.generation_config.eos_token_id = 2
    return model


def of_4_bits(generator: torch.Generator, channels: int, width: int, levels: int, least: float) -> torch.Tensor:
    """As GGUF unpacks them. ``levels``: that each block uses, ``least``: of the smallest weights, in steps."""
    places = torch.randint(levels + 1, (channels, width // 32, 32), generator=generator)
    places[..., 0], places[..., 1] = 0, levels
    step = 0.001 + torch.rand(channels, width // 32, 1, generator=generator)
    return (step * (places + least)).view(channels, width)


class Collected:
    """The events of several requests."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._queue = engine, queue.Queue[TokenEvent]()

    def submit(self, name: str, prompt: list[int], **sampling: Any) -> None:
        params = SamplingParams(**{"temperature": 0, "max_tokens": 24, **sampling})
        self._engine.submit(GenerationRequest(name, tuple(prompt), params, self._queue.put))

    def next(self) -> TokenEvent:
        return self._queue.get(timeout=60)

    def all(self, count: int) -> dict[str, tuple[str, TokenEvent]]:
        texts: dict[str, str] = {}
        ended: dict[str, tuple[str, TokenEvent]] = {}
        while len(ended) < count:
            event = self.next()
            texts[event.request_id] = texts.get(event.request_id, "") + event.text
            if event.finish_reason is not None:
                ended[event.request_id] = (texts[event.request_id], event)
        return ended
