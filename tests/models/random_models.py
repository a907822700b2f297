"""Models of random small shapes, with random weights, as they lie on a disk."""

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

ARCHITECTURES: dict[str, Any] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "gemma3": Gemma3TextConfig,
    "mistral": MistralConfig,
    "mixtral": MixtralConfig,
    "qwen3-moe": Qwen3MoeConfig,
    "phi": PhiConfig,
    "phi3": Phi3Config,
    "gpt2": GPT2Config,
    "gpt-neox": GPTNeoXConfig,
    "falcon": FalconConfig,
    "olmo2": Olmo2Config,
    "cohere": CohereConfig,
    "smollm3": SmolLM3Config,
    "deepseek-v3": DeepseekV3Config,
}


def config(name: str, dice: random.Random, *, vocabulary: int = 0, wide: int = 1) -> Any:
    """A configuration of about a million parameters, or ``wide`` squared times as many."""
    heads, size = dice.choice([2, 4, 8]), 32 * wide
    width, layers = dice.choice([2, 4]) * 64 * wide, dice.randint(2, 5)
    positions, vocabulary = dice.choice([512, 1024]), vocabulary or dice.randint(500, 4000)
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    if name == "gpt2":
        shape = {"n_embd": width, "n_layer": layers, "n_head": 4, "n_positions": positions}
        return GPT2Config(vocab_size=vocabulary, **shape, **tokens)
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": dice.choice([2, 3]) * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": dice.choice([1, 2, heads]),
        "head_dim": size,
        "max_position_embeddings": positions,
        "tie_word_embeddings": dice.random() < 0.5,
        **tokens,
    }
    if name in ("phi", "phi3", "gpt-neox", "falcon", "olmo2", "cohere", "smollm3"):
        shape |= {"head_dim": width // heads}
    if name in ("gpt-neox", "falcon", "deepseek-v3"):
        shape |= {"num_key_value_heads": heads}
        del shape["head_dim"]
    special: dict[str, Any] = {
        "gemma3": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 3},
        "mistral": {"sliding_window": 16},
        "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "qwen3-moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
        "falcon": {"multi_query": dice.random() < 0.5},
        "deepseek-v3": {
            "kv_lora_rank": 64,
            "q_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
    }
    shape |= special.get(name, {})
    if "layer_types" in shape:
        shape["layer_types"] = shape["layer_types"][:layers]
    return ARCHITECTURES[name](**shape)


def save(made: Any, folder: Path, tokenizer: Any = None, seed: int = 0) -> Path:
    """Write a model of this configuration; with a tokenizer it can be chatted with, by one of bytes if it is small."""
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(made).to(torch.bfloat16).save_pretrained(folder)
    if tokenizer is not None:
        fits = made.get_text_config().vocab_size >= len(tokenizer)
        (tokenizer if fits else bytes_alone(tokenizer.chat_template)).save_pretrained(folder)
    return folder


def bytes_alone(chat_template: str = "") -> Any:
    """A tokenizer that has a token for each byte, and no others but a beginning and an end."""
    marks = ["<unk>", "<s>", "</s>"]
    words = {word: number for number, word in enumerate([*marks, *sorted(ByteLevel.alphabet())])}
    made = Tokenizer(BPE(words, []))
    made.pre_tokenizer, made.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.chat_template = chat_template or None
    return tokenizer
