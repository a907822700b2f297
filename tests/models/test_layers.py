"""What layers keep, by headers alone, against what transformers' own cache holds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import save
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llmsvc.models.fields import completed
from llmsvc.models.headers import read
from llmsvc.models.layers import kept

COMMON = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LINEAR = {
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 8, "mamba_n_groups": 2}
LATENT = {"kv_lora_rank": 32, "q_lora_rank": 48, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32}
EXPERTS = {"num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
KINDS: dict[str, dict[str, Any]] = {
    "qwen3_next": LINEAR | EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_5_text": LINEAR,
    "olmo_hybrid": LINEAR,
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"] * 2, "num_local_experts": 0},
    "bamba": MAMBA | {"attn_layer_indices": [1, 3]},
    "falcon_h1": MAMBA | {"head_dim": 16, "mamba_d_ssm": 128},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 32, "state_size": 8, "n_groups": 2},
    "rwkv": {"attention_hidden_size": 64},
    "deepseek_v3": LATENT | EXPERTS | {"num_key_value_heads": 4, "n_group": 1, "topk_group": 1},
    "minicpm3": LATENT | {"num_key_value_heads": 4},
    "gemma4_text": {
        "head_dim": 16,
        "num_kv_shared_layers": 1,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 320,
        "sliding_window": 128,
    },
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4},
    "falcon": {"new_decoder_architecture": False, "multi_query": True},
}  # fmt: skip


def held(states: Any, seen: set[int]) -> int:
    """Bytes of all tensors in a cache, each once."""
    if isinstance(states, torch.Tensor):
        fresh = states.data_ptr() not in seen
        seen.add(states.data_ptr())
        return states.nbytes if fresh else 0
    inner = states.values() if isinstance(states, dict) else states if isinstance(states, list | tuple) else ()
    inner = vars(states).values() if hasattr(states, "__dict__") else inner
    return sum(held(one, seen) for one in inner)


def cached(model: Any, tokens: int) -> int:
    with torch.no_grad():
        out = model(torch.arange(3, 3 + tokens)[None], use_cache=True)
    return held(
        next(
            getattr(out, n) for n in ("past_key_values", "cache_params", "state") if getattr(out, n, None) is not None
        ),
        set(),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_keys_values_and_states_are_those_of_the_librarys_cache(kind: str, tmp_path: Path) -> None:
    made = CONFIG_MAPPING[kind](**{**COMMON, **KINDS[kind]})
    contents = read(save(made, tmp_path))
    model = AutoModelForCausalLM.from_config(made).float().eval()
    shorter, longer = cached(model, 20), cached(model, 40)
    expected = kept(completed(contents.config), contents.tensors)
    assert 4 * expected.token * 20 == pytest.approx(longer - shorter, rel=0.001)
    state = shorter - (longer - shorter)
    assert 4 * (expected.convolutions + expected.states) == pytest.approx(state, rel=0.001, abs=100)
