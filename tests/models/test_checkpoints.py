"""Checkpoints that come quantised, damaged, as adapters, or as something else than a chat model."""

import json
from pathlib import Path
from typing import Any

import packing
import pytest
import torch
from layouts import (
    BITSANDBYTES,
    FP8,
    LAYOUTS,
    MODELS,
    UNREADABLE,
    bitsandbytes_model,
    gpt_oss,
    model_config,
    packed_model,
)
from packing import configure, likeness, plain, reference, repack
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig

from llmsvc.errors import BadRequest, LlmsvcError
from llmsvc.models import quantised
from llmsvc.models.convert import convert
from llmsvc.models.headers import TensorInfo
from llmsvc.models.loader import LoadedModel, check_folder, load


def nothing(*_: Any) -> None: ...


def quick_load(folder: Path, **options: Any) -> LoadedModel:
    return load(folder, "cpu", options.pop("quantization", "none"), nothing, full_weights=True, **options)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantised_weights_are_what_they_stand_for(tmp_path: Path, layout: str, model: str) -> None:
    folder, settings = tmp_path / "model", LAYOUTS[layout][1]
    meant = packed_model(layout, model, folder)
    loaded = quick_load(folder)
    assert likeness(loaded.model, reference(folder, meant)) > 0.9999
    assert loaded.checkpoint == quantised.checkpoint_kind({"quantization_config": settings})
    assert loaded.dtype == "fp32"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_forecast_knows_the_shapes_of_packed_weights(tmp_path: Path, layout: str) -> None:
    packer, settings = LAYOUTS[layout]
    folder = plain(model_config("llama"), tmp_path / "model")
    meant = repack(folder, packer, settings)
    stored = load_file(folder / "model.safetensors")
    kinds = {torch.int32: "I32", torch.uint32: "U32", torch.int8: "I8", torch.uint8: "U8", FP8: "F8_E4M3"}
    infos = [TensorInfo(name, tuple(t.shape), t.nbytes, kinds.get(t.dtype, "F32")) for name, t in stored.items()]
    said = quantised.logical(infos, {"quantization_config": settings})
    assert {info.name: info.shape for info in said} == {name: tuple(weight.shape) for name, weight in meant.items()}


@pytest.mark.parametrize("seed", range(3))
def test_gpt_oss_as_published(tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "model"
    meant = gpt_oss(folder, seed)
    loaded = quick_load(folder)
    assert likeness(loaded.model, reference(folder, meant)) > 0.9999
    assert loaded.checkpoint == "mxfp4"
    assert loaded.note == "Its mxfp4 weights were unpacked."


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("layout", ["gptq", "awq", "mlx", "fp8 in blocks"])
def test_unpacked_weights_are_quantised_anew_as_others_are(tmp_path: Path, layout: str, quantization: str) -> None:
    packer, settings = LAYOUTS[layout]
    folder = plain(model_config("llama"), tmp_path / "model")
    reference(folder, repack(folder, packer, settings))
    packing.tokenizer(tmp_path / "model-meant")
    loaded, meant = (load(place, "cpu", quantization, nothing) for place in (folder, tmp_path / "model-meant"))
    assert likeness(loaded.model, meant.model) > 0.9999
    assert loaded.dtype == meant.dtype == {"none": "int8 weights"}.get(quantization, quantization)


@pytest.mark.parametrize("model", ["llama", "qwen2", "qwen3-moe"])
@pytest.mark.parametrize("kind", BITSANDBYTES)
def test_what_bitsandbytes_saved_stays_as_it_is(tmp_path: Path, kind: str, model: str) -> None:
    theirs = bitsandbytes_model(kind, model, tmp_path / "model")
    loaded = load(tmp_path / "model", "cpu", "none", nothing)
    assert loaded.dtype == kind
    assert likeness(loaded.model, theirs) > 0.999
    for asked in {"nf4", "int8"} - {kind}:
        with pytest.raises(BadRequest, match=f"already quantised to {kind}"):
            load(tmp_path / "model", "cpu", asked, nothing)


def test_4_bits_that_a_cpu_multiplies_wrongly_are_refused(tmp_path: Path) -> None:
    made = model_config("llama")
    made.intermediate_size = 96
    theirs = AutoModelForCausalLM.from_pretrained(
        plain(made, tmp_path / "plain"), quantization_config=BITSANDBYTES["nf4"], device_map="cpu"
    )
    theirs.save_pretrained(tmp_path / "model")
    packing.tokenizer(tmp_path / "model")
    with pytest.raises(BadRequest, match=r"model\.layers\.0\.mlp\.down_proj has 4 bits and is 96 wide"):
        load(tmp_path / "model", "cpu", "none", nothing)


@pytest.mark.parametrize(
    "settings",
    UNREADABLE,
    ids=lambda settings: str(settings.get("quant_method")),
)
def test_what_cannot_be_unpacked_is_refused_before_it_is_read(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = plain(model_config("llama"), tmp_path / "model")
    configure(folder, quantization_config=settings)
    with pytest.raises(BadRequest, match="Load the original model instead, or a GGUF of it"):
        check_folder(folder)


def test_nf4_wants_widths_of_64(tmp_path: Path) -> None:
    made = model_config("llama")
    made.intermediate_size = 96
    folder = plain(made, tmp_path / "model")
    with pytest.raises(BadRequest, match=r"multiple of 64, and model\.layers\.0\.mlp\.down_proj\.weight is 96 wide"):
        load(folder, "cpu", "nf4", nothing)
    assert load(folder, "cpu", "int8", nothing).dtype == "int8"


DAMAGES = {
    "removed": "its files have no model.layers.1.self_attn.q_proj.weight",
    "prefixed": "its files have no lm_head.weight and 2",
    "shape": r"model.layers.1.self_attn.q_proj.weight has the shape 8 x 4, and its configuration wants",
    "nan": "model.layers.1.input_layernorm.weight holds values that are no numbers",
    "nan in a layer": "model.layers.1.mlp.up_proj.*holds values that are no numbers",
    "more": "its files have model.layers.1.self_attn.q_norm.weight, for which",
    "bias": "its files have model.layers.1.self_attn.q_proj.bias, for which",
}


@pytest.mark.parametrize("full_weights", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_load_that_is_not_whole_names_the_tensor(tmp_path: Path, damage: str, full_weights: bool) -> None:
    folder = plain(model_config("llama"), tmp_path / "model")
    damaged(folder, damage)
    with pytest.raises(LlmsvcError, match=DAMAGES[damage]) as refused:
        load(folder, "cpu", "none", nothing, full_weights=full_weights)
    assert len(str(refused.value).splitlines()) == 1


def damaged(folder: Path, damage: str) -> None:
    weights = load_file(folder / "model.safetensors")
    layer = "model.layers.1"
    if damage == "removed":
        del weights[f"{layer}.self_attn.q_proj.weight"]
    elif damage == "prefixed":
        weights = {f"wrapped.{name}": weight for name, weight in weights.items()}
    elif damage == "shape":
        weights[f"{layer}.self_attn.q_proj.weight"] = torch.ones(8, 4)
    elif damage == "nan":
        weights[f"{layer}.input_layernorm.weight"][3] = float("nan")
    elif damage == "nan in a layer":
        weights[f"{layer}.mlp.up_proj.weight"][5, 3] = float("inf")
    elif damage == "more":
        weights[f"{layer}.self_attn.q_norm.weight"] = torch.ones(32)
    elif damage == "bias":
        weights[f"{layer}.self_attn.q_proj.bias"] = torch.ones(32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_is_left_over_and_means_nothing_is_left_out(tmp_path: Path) -> None:
    folder = plain(model_config("llama"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    meant = dict(weights)
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)  # as AutoGPTQ writes
    weights["v_head.summary.weight"] = torch.ones(1, 32)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert likeness(quick_load(folder).model, reference(folder, meant)) > 0.9999


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "was not made to write text"),
        ({"model_type": "bert", "architectures": None}, "is an encoder"),
        ({"model_type": "roberta", "architectures": ["RobertaModel"]}, "was not made to write text"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "is an encoder-decoder"),
        ({"model_type": "t5", "architectures": None}, "is an encoder-decoder"),
        ({"model_type": "marian", "architectures": ["MarianMTModel"]}, "is an encoder-decoder"),
        ({"model_type": "mbart", "architectures": ["MBartForConditionalGeneration"]}, "is an encoder-decoder"),
        (
            {"model_type": "bart", "architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True},
            r"encoder-decoder \(BartForConditionalGeneration\), made to turn one text into another\. Choose a model",
        ),
        ({"model_type": "bart", "architectures": None, "is_encoder_decoder": True}, "is an encoder-decoder"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is a classifier"),
        ({"model_type": "shieldgemma2", "architectures": ["Gemma3ForConditionalGeneration"]}, "is a classifier"),
        ({"model_type": "clip", "architectures": None}, "was not made to write text"),
        ({"model_type": "unheard_of", "architectures": None}, "could not be loaded: this version of transformers"),
    ],
)
def test_what_does_not_write_text_is_no_chat_model(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    folder = plain(model_config("llama"), tmp_path / "model")
    configure(folder, **changes)
    with pytest.raises(BadRequest, match=why):
        check_folder(folder)


def test_an_encoder_that_does_not_say_so_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    made = BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    plain(made, folder)
    with pytest.raises(BadRequest, match="BertLMHeadModel"):
        load(folder, "cpu", "none", nothing)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = plain(model_config("llama"), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    (folder / "model.safetensors.index.json").unlink()
    assert likeness(quick_load(folder).model, model) > 0.9999  # all of them are there
    (folder / shards[1]).unlink()
    with pytest.raises(BadRequest, match=f"has no {shards[1]}, which holds a part"):
        check_folder(folder)


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = plain(model_config("llama"), tmp_path / "model")
    packing.tokenizer(folder, 301)
    with pytest.raises(BadRequest, match="has a tokenizer of 301 tokens and weights for 300"):
        load(folder, "cpu", "none", nothing)


def test_a_tokenizer_whose_ends_have_no_weights_is_refused(tmp_path: Path) -> None:
    folder = plain(model_config("llama"), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(BadRequest, match="begins or ends texts with token 300 and weights for 300"):
        load(folder, "cpu", "none", nothing)


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"do_sample": True, "top_k": 20, "top_p": 0.95}, {"top_k": 20, "top_p": 0.95}),
        ({"temperature": 0.7, "repetition_penalty": 1.1}, {"temperature": 0.7, "repetition_penalty": 1.1}),
        ({"do_sample": False, "temperature": 0.6}, {}),
        ({}, {}),
    ],
)
def test_what_the_authors_sample_with_is_known(tmp_path: Path, said: dict[str, Any], wanted: dict[str, float]) -> None:
    folder = plain(model_config("llama"), tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({**said, "eos_token_id": [2, 7]}))
    loaded = quick_load(folder)
    assert loaded.sampling == wanted
    assert loaded.model.generation_config.eos_token_id == [2, 7]


LORA = {"peft_type": "LORA", "base_model_name_or_path": "some/base", "r": 4, "lora_alpha": 8}


def adapter(folder: Path, weights: dict[str, torch.Tensor], **settings: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**LORA, **settings}))
    named = {f"base_model.model.{name}": weight for name, weight in weights.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def two(out: int, columns: int, rank: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(out)
    return torch.randn(rank, columns, generator=dice) / 4, torch.randn(out, rank, generator=dice) / 4


@pytest.mark.parametrize("packed", [False, True])
def test_an_adapter_is_added_to_its_base_model(tmp_path: Path, packed: bool) -> None:
    base = plain(model_config("llama"), tmp_path / "base")
    meant = repack(base, *LAYOUTS["gptq"]) if packed else load_file(base / "model.safetensors")
    weights, scales = {}, {"q_proj": 2.0, "down_proj": 3 / 4}
    for layer in range(2):
        for part, scale in scales.items():
            module = f"model.layers.{layer}.{'self_attn' if part == 'q_proj' else 'mlp'}.{part}"
            down, up = two(*meant[f"{module}.weight"].shape)
            weights |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
            meant[f"{module}.weight"] = meant[f"{module}.weight"] + scale * up @ down
    weights["model.norm.weight"] = meant["model.norm.weight"] = meant["model.norm.weight"] * 1.5
    folder = adapter(tmp_path / "adapter", weights, alpha_pattern={"down_proj": 3}, modules_to_save=["norm"])
    check_folder(folder)
    asked = []
    loaded = quick_load(folder, resolve=lambda name: (asked.append(name), base)[1])
    assert asked == ["some/base"]
    assert likeness(loaded.model, reference(base, meant)) > 0.9999
    assert "An adapter on base." in loaded.note


def test_magnitudes_and_scales_by_the_root_of_the_rank(tmp_path: Path) -> None:
    base = plain(model_config("llama"), tmp_path / "base")
    meant, module = load_file(base / "model.safetensors"), "model.layers.0.self_attn.v_proj"
    weight = meant[f"{module}.weight"]
    down, up = two(*weight.shape)
    lengths = torch.rand(len(weight)) + 1
    changed = weight + 8 / 2 * up @ down
    meant[f"{module}.weight"] = changed / changed.norm(dim=1, keepdim=True) * lengths[:, None]
    weights = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": lengths}
    folder = adapter(
        tmp_path / "adapter", {f"{module}.{name}": piece for name, piece in weights.items()}, use_rslora=True
    )
    assert likeness(quick_load(folder, resolve=lambda _: base).model, reference(base, meant)) > 0.9999


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"peft_type": "IA3"}, 'of the kind "IA3", and only LoRA'),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, 'made with "target_parameters"'),
        ({"init_lora_weights": "pissa"}, 'made with "pissa"'),
        ({"base_model_name_or_path": None}, "names no base model"),
    ],
)
def test_an_adapter_that_is_more_than_two_matrices_is_refused(
    tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    folder = adapter(tmp_path / "adapter", {}, **settings)
    with pytest.raises(BadRequest, match=f"{why}.*Merge it into its model with peft"):
        check_folder(folder)


@pytest.mark.parametrize("misfit", ["shape", "name"])
def test_an_adapter_of_another_model_is_refused(tmp_path: Path, misfit: str) -> None:
    base = plain(model_config("llama"), tmp_path / "base")
    down, up = two(8, 8)
    module = "model.layers.0.self_attn.q_proj" if misfit == "shape" else "model.layers.7.self_attn.q_proj"
    folder = adapter(tmp_path / "adapter", {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up})
    with pytest.raises(BadRequest, match=f"does not fit its base model.*{module}"):
        load(folder, "cpu", "none", nothing, resolve=lambda _: base)
    with pytest.raises(BadRequest, match="is an adapter for some/base"):
        load(folder, "cpu", "none", nothing)


@pytest.mark.parametrize(
    ("architecture", "damage", "why"),
    [
        ("gpt-oss", {}, r"its files have no model\.layers\.0\.mlp\.experts\.down_proj and \d+ other tensors"),
        (
            "llama",
            {"without": "blk.1.attn_q.weight"},
            r"its files have no model\.layers\.1\.self_attn\.q_proj\.weight,",
        ),
        ("llama", {"broken": "blk.1.attn_norm.weight"}, r"layers\.1\.input_layernorm\.weight holds .* no numbers"),
        ("qwen3next", {}, r'cannot read GGUF files of the architecture "qwen3next"'),
        ("bert", {}, "writes no text"),
    ],
)
def test_a_gguf_file_that_is_not_what_it_says_is_refused(
    tmp_path: Path, architecture: str, damage: dict[str, str], why: str
) -> None:
    file = packing.packed_file(tmp_path / "model.gguf", architecture, **damage)
    with pytest.raises(LlmsvcError, match=why):
        convert(file, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_gguf_file_that_is_what_it_says_is_converted(tmp_path: Path) -> None:
    convert(packing.packed_file(tmp_path / "model.gguf", "llama"), tmp_path / "made")
    loaded = load(tmp_path / "made", "cpu", "none", nothing)
    assert loaded.model.generate(torch.tensor([[5, 6]]), max_new_tokens=3).shape[1] > 2
