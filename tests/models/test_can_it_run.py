"""What is said of models before they are loaded: from the words of config.json, from headers, and of whole folders."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from random_models import bytes_alone, config, save

from llmsvc.errors import BadRequest
from llmsvc.models import speed
from llmsvc.models.can_it_run import verdict
from llmsvc.models.catalogue import Catalogue
from llmsvc.models.forecast import plan
from llmsvc.models.headers import Contents, TensorInfo, read
from llmsvc.models.loader import load
from llmsvc.models.pool import ModelPool

ROOT = Path(__file__).resolve().parents[2]
CODE = {"AutoModelForCausalLM": "modeling_x.X"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}


@pytest.mark.parametrize(
    ("described", "kind", "checkpoint", "served"),
    [
        ({"model_type": "llama"}, "text", "none", ""),
        ({"model_type": "deepseek_v3", "auto_map": CODE}, "text", "none", ""),
        ({"model_type": "qwen3", "quantization_config": GPTQ}, "text", "gptq", "4-bit GPTQ, dequantised"),
        ({"model_type": "qwen3_vl", "vision_config": {"depth": 2}}, "vision", "none", "text only"),
        (
            {"model_type": "mistral3", "text_config": {"model_type": "mistral"}, "vision_config": {}},
            "vision",
            "none",
            "text only",
        ),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else None,
)
def test_what_runs_says_how(described: dict[str, Any], kind: str, checkpoint: str, served: str) -> None:
    said = verdict(Contents(described, ()))
    assert said.runs, said.reason
    assert said.row() == {"runs": True, "reason": "", "kind": kind, "checkpoint": checkpoint, "served": served}


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "not made to write text"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "baichuan", "auto_map": CODE}, "own Python code, which is never run"),
        ({"model_type": "model_of_2031"}, "update transformers"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "aqlm"}}, "Load the original model instead"),
        ({}, "names no model_type"),
    ],
    ids=lambda value: str(value.get("model_type")) if isinstance(value, dict) else None,
)
def test_what_does_not_run_says_why_in_sentences_that_name_the_way_out(described: dict[str, Any], reason: str) -> None:
    said = verdict(Contents(described, ()))
    assert not said.runs
    assert reason in said.reason
    assert said.reason.endswith(".")
    assert said.reason.count(". ") >= 1  # what to do follows


@pytest.mark.parametrize(
    ("architecture", "runs"),
    [("llama", True), ("qwen3moe", True), ("gpt-oss", True), ("lfm2", True), ("qwen3next", False), ("glm4moe", False)],
)
def test_a_gguf_file_is_known_by_its_architecture(architecture: str, runs: bool) -> None:
    said = verdict(Contents({"model_type": architecture}, (), packed=True))
    assert said.runs is runs
    assert said.checkpoint == "gguf"
    assert runs or "safetensors instead" in said.reason


def test_a_gguf_file_that_cannot_be_read_is_refused_before_it_is_converted(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return len(value).to_bytes(8, "little") + value.encode()

    field = text("general.architecture") + (8).to_bytes(4, "little") + text("qwen3next")
    file = tmp_path / "next.gguf"
    file.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little") + field)
    pool = ModelPool(Catalogue(tmp_path / "models"), "cpu")
    row = pool.forecast(str(file))
    assert (row["runs"], row["fits"], row["weights_bytes"]) == (False, False, 0)
    assert '"qwen3next"' in row["reason"]
    pooled = pool.request(str(file))
    with pytest.raises(BadRequest, match='"qwen3next"'):
        pooled.ready.result(60)
    pool.close()


def test_what_the_forecast_refuses_the_loader_refuses_too(tmp_path: Path, tokenizer: Any) -> None:
    """Files that are missing, or of another model."""
    pool = ModelPool(Catalogue(tmp_path / "models"), "cpu")
    folder = save(config("llama", random.Random(1)), tmp_path / "model", bytes_alone())
    assert pool.forecast(str(folder))["runs"]
    weights, words = folder / "model.safetensors", (folder / "tokenizer.json").read_bytes()

    tokenizer.save_pretrained(folder)
    assert "another model's" in refused(pool, folder)
    (folder / "tokenizer.json").write_bytes(words)
    weights.rename(folder / "model-00001-of-00002.safetensors")
    assert "has no model-00002-of-00002.safetensors" in refused(pool, folder)
    (folder / "model-00001-of-00002.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert pool.forecast(str(folder))["runs"]  # without an index
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer" in refused(pool, folder)


def refused(pool: ModelPool, folder: Path) -> str:
    """Why a folder will not run, by a forecast that is as good as its load."""
    row = pool.forecast(str(folder))
    with pytest.raises(Exception, match=folder.name):
        load(folder, "cpu", "none", lambda *_: None)
    assert not row["runs"]
    assert [other["runs"] for other in pool.catalogued() if other["id"] == str(folder)] in ([], [False])
    return str(row["reason"])


def test_an_adapter_is_forecast_as_its_base_model(tmp_path: Path) -> None:
    base = save(config("llama", random.Random(1)), tmp_path / "base", bytes_alone())
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 4, "lora_alpha": 4})
    )
    (adapter / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    pool = ModelPool(Catalogue(tmp_path / "models"), "cpu")
    row, whole = pool.forecast(str(adapter)), pool.forecast(str(base))
    assert row["weights_bytes"] == whole["weights_bytes"] > 0
    assert row["served"] == f"LoRA on {base}"


def test_a_model_that_sees_is_forecast_without_what_it_sees_with() -> None:
    words = {f"model.language_model.layers.0.self_attn.{name}_proj.weight": (64, 64) for name in "qkvo"}
    sight = {"model.visual.blocks.0.attn.qkv.weight": (900, 300), "model.visual.patch_embed.proj.weight": (300, 900)}
    described = {"model_type": "qwen3_vl_text", "num_hidden_layers": 1, "vision_config": {"depth": 1}}

    def contents(shapes: dict[str, tuple[int, int]]) -> Contents:
        return Contents(described, tuple(TensorInfo(n, s, 2 * s[0] * s[1]) for n, s in shapes.items()))

    assert plan(contents(words | sight), "cpu", "none", False) == plan(contents(words), "cpu", "none", False)
    from llmsvc.models.forecast import forecast

    expected = [forecast(c, plan(c, "cuda:0", "none", False)) for c in (contents(words | sight), contents(words))]
    assert expected[0] == expected[1]
    assert expected[0].weights_bytes == 2 * 4 * 64 * 64


def test_of_a_mixture_of_experts_only_those_that_are_asked_count_for_its_speed(tmp_path: Path) -> None:
    def rate(asked: int) -> float:
        made = config("qwen3-moe", random.Random(1))
        made.num_experts_per_tok = asked
        contents = read(save(made, tmp_path / str(asked)))
        return speed.expected(contents, plan(contents, "cpu", "none", False), 1e9, kernel=True)

    assert rate(1) > rate(2) > rate(4)


def test_the_memorys_speed_is_measured_once(tmp_path: Path) -> None:
    first = speed.Bandwidth(tmp_path / "data" / "bandwidth.json")
    assert first.known() == 0
    measured = first.measured()
    assert 10**8 < measured < 10**12
    assert speed.Bandwidth(tmp_path / "data" / "bandwidth.json").known() == measured
    assert first.known("cuda:0") == 0


def test_all_of_it_is_said_without_torch(tmp_path: Path) -> None:
    folder = save(config("llama", random.Random(1)), tmp_path / "model", bytes_alone())
    code = """
import sys
from pathlib import Path
from llmsvc.models.catalogue import Catalogue
from llmsvc.models.pool import ModelPool
pool = ModelPool(Catalogue(Path(sys.argv[1])), "cpu")
row = pool.forecast(sys.argv[2])
assert row["runs"] and row["tokens_per_second"] > 0, row
print(pool.catalogued()[0]["runs"], [name for name in ("torch", "transformers") if name in sys.modules])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "models"), str(folder)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "True []"
