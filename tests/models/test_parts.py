"""Vision-language repositories, loaded for text: as they would read it whole, and without what only pictures need."""

import json
from pathlib import Path
from typing import Any

import packing
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bench.zoo import Species, Task, checkpoint, tiny
from llmsvc.errors import BadRequest
from llmsvc.models import parts
from llmsvc.models.headers import read, weight_files
from llmsvc.models.loader import check_folder, load

TYPES = (
    "aya_vision",
    "emu3",
    "gemma3",
    "glm4v",
    "idefics3",
    "internvl",
    "kimi_k25",
    "lfm2_vl",
    "llama4",
    "llava",
    "llava_onevision",
    "mistral3",
    "mllama",
    "paligemma",
    "qwen3_5",
    "qwen3_vl",
    "smolvlm",
)


def nothing(*_: Any) -> None: ...


def saved(kind: str, folder: Path) -> Any:
    """A tiny random model of the type, whole, as it lies in ``folder``."""
    config, whole = tiny(kind, "image")
    whole.save_pretrained(folder)
    packing.tokenizer(folder, config.get_text_config().vocab_size)
    return whole


@pytest.mark.parametrize("kind", TYPES)
def test_text_is_read_as_the_whole_model_reads_it(tmp_path: Path, kind: str) -> None:
    whole = saved(kind, tmp_path / "model")
    loaded = load(tmp_path / "model", "cpu", "none", nothing, full_weights=True)
    ids = torch.randint(3, 250, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-4, rtol=1e-4
        )
    names = [name for name, _ in loaded.model.named_parameters()]
    assert not [name for name in names if "vision_tower" in name or "visual." in name]
    assert sum(p.numel() for p in loaded.model.parameters()) < sum(p.numel() for p in whole.parameters())
    assert loaded.parts == "text"


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_counted_is_what_is_loaded(tmp_path: Path, kind: str) -> None:
    saved(kind, tmp_path / "model")
    counted = sum(tensor.count for tensor in parts.effective(read(tmp_path / "model")).tensors)
    model = load(tmp_path / "model", "cpu", "none", nothing, full_weights=True).model
    held = sum(parameter.numel() for parameter in model.parameters())
    assert counted == pytest.approx(held, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("gemma3n", "image"),  # timm
        ("fast_vlm", "image"),
        ("perception_lm", "image"),
        ("inkling_mm_model", "image"),  # scipy
        ("granite4_vision", "image"),
        ("nemotron_h_omni", "image"),
        ("emu3", "text"),
        ("mllama", "text"),
    ],
)
def test_text_needs_no_library_of_the_towers(tmp_path: Path, kind: str, task: Task) -> None:
    right = checkpoint(Species(kind, task), tmp_path / "model")
    packing.tokenizer(tmp_path / "model", 300)
    loaded = load(tmp_path / "model", "cpu", "none", nothing, full_weights=True)
    ids = torch.randint(3, 250, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(input_ids=ids).logits, right(input_ids=ids).logits, atol=1e-4, rtol=1e-4
        )


def test_a_model_that_hears_is_read_for_text(tmp_path: Path) -> None:
    from transformers import AutoModelForMultimodalLM

    from bench.shrink import shrunk

    torch.manual_seed(0)
    whole = AutoModelForMultimodalLM.from_config(shrunk("voxtral"), dtype=torch.float32)
    whole.save_pretrained(tmp_path / "model")
    packing.tokenizer(tmp_path / "model", 300)
    loaded = load(tmp_path / "model", "cpu", "none", nothing, full_weights=True)
    ids = torch.randint(3, 250, (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-4, rtol=1e-4
        )
    assert not [name for name, _ in loaded.model.named_parameters() if "audio" in name]


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl"])
def test_pictures_parts_may_be_broken_or_gone(tmp_path: Path, kind: str) -> None:
    whole = saved(kind, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    for file in weight_files(tmp_path / "model"):
        weights = {name: weight for name, weight in load_file(file).items() if parts.used(name, config)}
        with safe_open(file, "pt") as opened:
            assert len(weights) < len(opened.keys())
        save_file(weights, file, metadata={"format": "pt"})
    loaded = load(tmp_path / "model", "cpu", "none", nothing, full_weights=True)
    ids = torch.randint(3, 250, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("kind", ["mistral3", "qwen3_vl", "qwen3_5"])
def test_quantised_repositories_are_read_for_text_too(tmp_path: Path, kind: str) -> None:
    saved(kind, tmp_path / "model")
    one = packing.eights(torch.float8_e4m3fn, (0, 0), "weight_scale_inv", "activation_scale")
    meant = packing.repack(tmp_path / "model", one, {"quant_method": "fp8", "activation_scheme": "static"})
    saved(kind, tmp_path / "meant")
    save_file(meant, tmp_path / "meant" / "model.safetensors", metadata={"format": "pt"})
    packed, plain = (load(tmp_path / name, "cpu", "none", nothing, full_weights=True) for name in ("model", "meant"))
    assert packing.likeness(packed.model, plain.model, 250) > 0.9999
    assert packed.note == "Its fp8 weights were unpacked. It reads text only here."


def test_a_part_of_the_language_model_that_is_gone_is_missed(tmp_path: Path) -> None:
    saved("llava", tmp_path / "model")
    (file,) = weight_files(tmp_path / "model")
    weights = load_file(file)
    gone = next(name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight") and "vision" not in name)
    del weights[gone]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        Exception, match=r"its files have no model\.language_model\.layers\.0\.self_attn\.q_proj\.weight"
    ):
        load(tmp_path / "model", "cpu", "none", nothing)


@pytest.mark.parametrize("kind", ["blip-2", "instructblip"])
def test_what_cannot_do_without_a_picture_is_refused_before_it_is_read(tmp_path: Path, kind: str) -> None:
    saved(kind, tmp_path / "model")
    with pytest.raises(BadRequest, match="It answers only together with a picture"):
        check_folder(tmp_path / "model")


@pytest.mark.parametrize("kind", ["idefics", "kosmos-2"])
def test_what_answers_no_text_alone_is_refused(tmp_path: Path, kind: str) -> None:
    saved(kind, tmp_path / "model")
    with pytest.raises(BadRequest, match="answers only together with a picture or a sound"):
        load(tmp_path / "model", "cpu", "none", nothing)


def test_a_reader_of_pictures_that_is_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    saved("florence2", tmp_path / "model")
    with pytest.raises(BadRequest, match="is an encoder-decoder"):
        check_folder(tmp_path / "model")
