"""Configurations at the size of a toy: a type's own defaults, shrunk field by field.

What makes an architecture special (kinds of layers, latent attention, experts, states) stays, with at least one layer
of each kind.
"""

import re
from typing import Any

VOCABULARY = 300
END = 2
"""The token that ends an answer."""
HIDDEN = 64
FIRST_IMAGE_TOKEN = 400
"""Ids of image and audio marks lie outside the vocabulary, so that no random answer writes one."""


def _table(text: str) -> dict[str, int]:
    """Fields by the size that their line begins with."""
    return {name: int(size) for size, *names in map(str.split, text.strip().splitlines()) for name in names}


SIZES = _table("""
300 vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size
64 hidden_size d_model n_embd embed_dim emb_dim out_hidden_size text_hidden_size output_dim projection_dim
64 embedding_size embedding_dim input_embedding_size output_embedding_size word_embed_proj_dim hidden_size_global
64 encoder_hidden_size qformer_hidden_size attention_hidden_size lru_width adapter_out_dim projector_output_dim
64 vision_hidden_size backbone_hidden_size input_size decoder_hidden_size
128 intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim d_ff d_inner dff dim_ff ffn_hidden_size mlp_dim
128 feed_forward_size intermediate_size_mlp dense_intermediate_size alignment_intermediate_size projector_hidden_size
128 projection_hidden_size projector_input_dim projection_intermediate_size merged_hidden_size projection_hidden_dim
32 moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size shared_intermediate_size
32 moe_shared_expert_intermediate_size expert_ffn_hidden_size share_expert_dim router_hidden_size moe_hidden_size
32 moe_latent_size base_channels
4 num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads encoder_attention_heads
4 num_encoder_attention_heads num_decoder_attention_heads num_sliding_attention_heads swa_num_attention_heads
4 conf_num_attention_heads num_query_groups linear_num_heads linear_num_value_heads resampler_n_heads resampler_heads
2 num_key_value_heads num_kv_heads kv_n_heads num_global_key_value_heads swa_num_key_value_heads linear_num_key_heads
16 head_dim kv_channels d_kv d_head dim_head attention_head_size linear_key_head_dim linear_value_head_dim
16 linear_head_dim qk_nope_head_dim v_head_dim index_head_dim swa_head_dim mamba_d_head mamba_head_dim mamba_headdim
16 mamba_dt_rank time_step_rank q_lora_rank kv_lora_rank o_lora_rank laurel_rank adapter_rank gated_norm_rank
16 hidden_size_per_layer_input mamba_d_state state_size ssm_state_size resampler_head_dim resampler_dim_head
16 hc_lowrank ple_embed_dim
32 attention_head_dim
8 qk_rope_head_dim rotary_dim d_rel index_n_heads mamba_n_heads n_mamba_heads mamba_num_heads
24 qk_head_dim
128 mamba_d_ssm
4 num_experts num_local_experts n_routed_experts moe_num_experts zero_expert_num
2 num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts n_group num_expert_group n_groups
1 topk_group n_shared_experts first_k_dense_replace num_dense_layers
16 sliding_window sliding_window_size attention_window_size local_attention local_attention_window_len index_topk
16 block_size mamba_chunk_size chunk_size index_block_size rel_extent
32 attention_chunk_size
64 floor_scale log_scaling_n_floor ngram_vocab_size_base codebook_size num_embeddings
2 index_topk_blocks split_ngram_parts
512 max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length max_target_positions
512 keep_window_size encoder_hash_byte_group_vocab
""")
"""What fields are lowered to, where they are higher.

``index_n_heads`` is not smaller: scores that are sums of few rectified heads are often exactly 0, and which of equal
ones are the largest is then left to the shape of the tensors.
"""
DEPTHS = """num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers depth num_blocks layers
num_decoder_layers num_encoder_layers conf_num_hidden_layers num_global_layers resampler_depth num_layers_per_stack
""".split()  # noqa: SIM905
INITIAL = {"initializer_range": 0.2, "init_std": 0.2, "embed_init_std": 0.2}
DROPPED = """transformers_version dtype torch_dtype id2label label2id architectures model_type output_hidden_states
return_dict problem_type output_attentions chunk_size_feed_forward
""".split()  # noqa: SIM905
TOWERS = re.compile(r"vision|audio|vq_|qformer|sam_|encoder_config|perceiver|high_res|adapter")
CONVOLUTIONS = ["conv", "conv", "full_attention", "conv"]
SHORT = 1e-6
"""A step so short that none is raised to it, which transformers does in prompts, but not token by token."""
GROUPS = {"n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy"}


def _rope(*sections: int) -> dict[str, Any]:
    """Rotary embedding by three axes, with so many pairs for each."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}}


OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [3]},
    "blenderbot": {"decoder_layers": 2},
    "chameleon": {"vocabulary_map": {"<image>": 290}},
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _rope(4, 2, 2)["rope_parameters"]}},
    "cosmos3_edge_text": _rope(4, 2, 2),
    "dbrx.attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0},
    "deepseek_ocr2_text": {
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "num_experts_per_tok": 2,
    },
    "deepseek_v2": {"num_experts_per_tok": 2, **GROUPS},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": {"head_dim": 32},
    "dots3_note.audio_config": {"adapter_input_size": HIDDEN},
    "dots3_note.vision_config": {"adapter_in_dim": HIDDEN},
    "emu3": {"vocabulary_map": {"<image>": 290}},
    "ernie4_5_vl_moe_text": _rope(3, 3, 2),
    "falcon_h1": {"mamba_d_head": 16},
    "glm46v_text": _rope(4, 2, 2),
    "glm4v_text": _rope(4, 2, 2),
    "glm4v_moe_text": _rope(2, 1, 1),
    "glm5_next_text": {"num_key_value_heads": 4},
    "glm_ocr_text": _rope(4, 2, 2),
    "granite4_vision": {"downsample_rate": "1/2", "deepstack_layer_map": [[0, 0], [1, 2]]},
    "hrm_text": {"num_hidden_layers": 2, "num_layers_per_stack": None},
    "hunyuan_vl_text": _rope(2, 2, 2, 2),
    "granitemoehybrid": {"layer_types": ["linear_attention"] * 3 + ["full_attention"]},
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 3},
    "lfm2": {"layer_types": CONVOLUTIONS, "full_attn_idxs": [2]},
    "lfm2_moe": {"layer_types": CONVOLUTIONS},
    "mamba2": {"num_heads": 8},
    "molmo2.adapter_config": {"vision_feature_layer": [1, 0]},
    "paddleocr_vl_text": _rope(4, 2, 2),
    "perception_lm.vision_config": {"model_args": {"embed_dim": HIDDEN}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 401},
    "qwen2_5_omni_text": _rope(4, 2, 2),
    "qwen2_5_vl_text": _rope(4, 2, 2),
    "qwen2_vl_text": _rope(4, 2, 2),
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 401},
    "step3p7.text_config": {"sliding_window": 16},
    "nemotron_h": {"time_step_min": SHORT},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 48]},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xlm": {"mask_token_id": 0},
    "xmod": {"default_language": "en_XX"},
    "qwen4_exp_text": {
        "indexer_n_heads": 8,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "zamba": {"attention_hidden_size": 128},
    "zamba2": {"attention_hidden_size": 128, "time_step_min": SHORT},
}
"""What the rules by name miss, by model type or by path (such as ``dbrx.attn_config``)."""
KEPT = {
    "gemma3n_text": [0, 4, 20, 24],
    "zamba": [0, 2, 3, 7],
    "zamba2": [0, 6, 7, 12],
}
"""Layers that stay, where the first of each kind are not enough."""


def shrunk(type: str) -> Any:
    """The type's default configuration at the size of a toy. Raises what transformers raises."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    made = CONFIG_MAPPING[type]
    return made(**_shrink(made().to_dict(), type))


def _shrink(fields: dict[str, Any], path: str) -> dict[str, Any]:
    layers = next((fields[name] for name in DEPTHS if isinstance(fields.get(name), int)), 0)
    kept = _kept_layers(fields, layers, path)
    small = {
        name: _field(name, value, layers, kept, path)
        for name, value in fields.items()
        if name not in DROPPED and not name.startswith("_")
    }
    if "tie_word_embeddings" in small:
        small["tie_word_embeddings"] = False
    if small.get("head_dim", 0) is None:
        small["head_dim"] = HIDDEN // 4
    if fields.get("qk_rope_head_dim"):
        _latent(fields, small)
    kind = str(fields.get("model_type", ""))
    if "." in path and kind:
        small["model_type"] = kind
    return {**small, **OVERRIDES.get(kind, {}), **OVERRIDES.get(path, {})}


def _latent(fields: dict[str, Any], small: dict[str, Any]) -> None:
    """Latent attention has sizes that depend on each other."""
    if fields.get("head_dim") == fields["qk_rope_head_dim"]:
        small["head_dim"] = small["qk_rope_head_dim"]
    if fields.get("num_key_value_heads") == fields.get("num_attention_heads"):
        small["num_key_value_heads"] = small["num_attention_heads"]


def _kept_layers(fields: dict[str, Any], layers: int, path: str) -> list[int]:
    """Which of the layers stay: the first of each kind, and the first of all up to four; of towers two."""
    if str(fields.get("model_type")) in KEPT:
        return KEPT[fields["model_type"]]
    lists = [
        value
        for value in fields.values()
        if isinstance(value, list) and len(value) == layers > 0 and value != list(range(layers))
    ]
    hetero = {int(key): str(value) for key, value in (fields.get("per_layer_config") or {}).items()}
    kinds = [(*(str(value[layer]) for value in lists), hetero.get(layer, "")) for layer in range(layers)]
    first = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    least = 2 if TOWERS.search(path) else 4
    rest = [layer for layer in range(layers) if layer not in first]
    return sorted(first + rest[: max(0, least - len(first))])


def _field(name: str, value: Any, layers: int, kept: list[int], path: str) -> Any:
    if isinstance(value, dict):
        if name == "per_layer_config":
            return _per_layer(value, kept, path)
        if name == "rope_parameters":
            return value
        return _shrink(value, f"{path}.{name}") if "model_type" in value else value
    if isinstance(value, list):
        return _listed(name, value, layers, kept)
    if name in INITIAL and value is not None:
        return INITIAL[name]
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    return _number(name, value, layers, kept)


def _number(name: str, value: int, layers: int, kept: list[int]) -> Any:
    if name in DEPTHS:
        return len(kept) if value == layers else min(value, 2)
    if name == "num_kv_shared_layers":
        return min(value, 2)
    if name == "forced_eos_token_id":
        return None
    if name.endswith(("token_id", "token_index")) or name in ("boi_token_index", "eoi_token_index"):
        return _token(name, value)
    return min(value, SIZES[name]) if name in SIZES else value


def _token(name: str, value: int) -> int | None:
    if value < 0:
        return value
    known = {"bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0, "decoder_start_token_id": 1}
    if name in known:
        return known[name]
    return FIRST_IMAGE_TOKEN + sum(map(ord, name)) % 97


def _per_layer(value: dict[Any, Any], kept: list[int], path: str) -> dict[str, Any]:
    """Fields by layer, renumbered; a head that was larger than the others stays larger."""
    sizes = {"head_dim": 32, "qk_nope_head_dim": 24, "kv_lora_rank": 32}
    if any(fields.get("num_key_value_heads") == fields.get("num_attention_heads", 0) for fields in value.values()):
        sizes["num_key_value_heads"] = SIZES["num_attention_heads"]
    return {
        str(kept.index(int(layer))): {
            name: sizes.get(name, _number(name, each, 0, [])) if isinstance(each, int) else each
            for name, each in fields.items()
        }
        for layer, fields in value.items()
        if int(layer) in kept
    }


def _listed(name: str, value: list[Any], layers: int, kept: list[int]) -> list[Any]:
    if layers and len(value) == layers:
        ints = [item for item in value if isinstance(item, int)]
        if ints == list(range(layers)):
            return list(range(len(kept)))
        return [_field(name, value[layer], 0, [], "") for layer in kept]
    if name.endswith(("_indexes", "_indices", "_idxs", "_layers", "_layer_ids", "layer_idx")) and value:
        return [position for position, layer in enumerate(kept) if layer in value] or [0]
    if name == "eos_token_id":
        return [END]
    return value
