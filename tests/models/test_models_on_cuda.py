"""Models that come and go on a GPU: what they hold there, what was forecast, and that they come back as they were.

On a machine that has little else: python -m pytest --noconftest tests/models/test_models_on_cuda.py
"""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from asking import ask
from random_models import save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from llmsvc.models.catalogue import Catalogue
from llmsvc.models.forecast import forecast, plan
from llmsvc.models.headers import read
from llmsvc.models.loader import load
from llmsvc.models.pool import Budget, ModelPool
from llmsvc.models.pooled import PooledModel

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
WORDS = 2000
PROMPT, TOKENS = tuple(range(40, 940)), 24
SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three of one size: two of one shape and different weights, and one of another kind."""
    words = Tokenizer(WordLevel({f"w{n}": n for n in range(WORDS)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2")
    folder, llama = tmp_path_factory.mktemp("models"), LlamaConfig(**SHAPE, head_dim=64)
    made = [llama, llama, Qwen3Config(**SHAPE, head_dim=64, tie_word_embeddings=True)]
    return [str(save(one, folder / f"m{n}", tokenizer, seed=n)) for n, one in enumerate(made)]


@pytest.fixture
def pool_of(tmp_path: Path) -> Iterator[Callable[..., ModelPool]]:
    pools: list[ModelPool] = []

    def make(compiled: bool = False, **budget: Any) -> ModelPool:
        kernels = tmp_path / "kernels" if compiled else None
        pools.append(ModelPool(Catalogue(tmp_path / "models"), "cuda", kernels, budget=Budget(**budget)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def there(pool: ModelPool, model: str) -> PooledModel:
    pooled = pool.get(model)
    assert pooled is not None
    return pooled


def warm(pool: ModelPool, model: str, compiled: bool = True) -> None:
    """Wait until passes are recorded, where they are."""
    end, engine = time.monotonic() + 120, there(pool, model).engine
    while not (engine.warm and engine.compiled == ({"recorded"} if compiled else set())):
        assert time.monotonic() < end
        time.sleep(0.01)


def held() -> int:
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # those of threads that have ended are for the next ones
    return torch.cuda.memory_allocated()


@pytest.mark.parametrize("compiled", [False, True])
def test_two_in_turns_where_one_has_room(models: list[str], pool_of: Callable[..., ModelPool], compiled: bool) -> None:
    """A parked one holds nothing on the GPU, and what it had read is still there when it comes back."""
    row = ModelPool(Catalogue(Path("none")), "cuda").forecast(models[0])
    room = int(row["weights_bytes"] + 4096 * row["kv_bytes_per_token"])
    pool, before = pool_of(compiled, memory=max(room, row["peak_bytes"])), held()

    async def turns() -> None:
        said: dict[str, str] = {}
        for turn in range(6):
            model = models[turn % 2]
            text, cached = await ask(pool, model, PROMPT, TOKENS)
            if turn > 1:  # before, nothing was cached or recorded, and sums rounded in another order
                assert said.setdefault(model, text) == text
                assert cached >= len(PROMPT) - 1
            assert [row["state"] for row in pool.list() if row["id"] != model] in ([], ["parked"])
            warm(pool, model, compiled)
        assert said[models[0]] != said[models[1]]
        away = there(pool, models[0])
        assert away.loaded is not None
        assert sum(tensor.untyped_storage().nbytes() for tensor in away.loaded.model.parameters()) == 0

    asyncio.run(turns())
    for model in models[:2]:
        pool.unload(model)
    assert held() <= before + 2**20


def test_requests_at_once_for_three_where_two_have_room(models: list[str], pool_of: Callable[..., ModelPool]) -> None:
    row = ModelPool(Catalogue(Path("none")), "cuda").forecast(models[0])
    pool = pool_of(True, memory=int(2.2 * row["weights_bytes"] + 2 * 4096 * row["kv_bytes_per_token"]))

    async def crowd() -> None:
        for _ in range(3):
            wanted = [models[n] for n in (0, 1, 2, 2, 1, 0, 0, 0, 1)]
            assert all(
                text for text, _ in await asyncio.gather(*(ask(pool, model, PROMPT, TOKENS) for model in wanted))
            )
            pool.tidy()
            assert pool.usage()["used"] <= pool.usage()["limit"]

    asyncio.run(crowd())


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_a_model_holds_what_was_forecast_and_answers(
    models: list[str], pool_of: Callable[..., ModelPool], quantization: str
) -> None:
    if quantization != "none":
        pytest.importorskip("bitsandbytes")
    contents = read(Path(models[0]))
    expected = forecast(contents, plan(contents, "cuda", quantization, False))
    before = held()
    loaded = load(Path(models[0]), "cuda", quantization, lambda *_: None)
    assert loaded.device == "cuda:0"
    assert loaded.memory_bytes == pytest.approx(expected.weights_bytes, rel=0.01)
    assert held() - before == pytest.approx(expected.weights_bytes, rel=0.05, abs=2**20)
    del loaded
    assert held() <= before + 2**20

    pool = pool_of(True)
    pool.request(models[0], quantization)
    assert asyncio.run(ask(pool, models[0], PROMPT, TOKENS))[0]
    warm(pool, models[0], quantization != "int8")  # which looks for outliers on the CPU
    text, cached = asyncio.run(ask(pool, models[0], PROMPT, TOKENS))
    assert text
    assert cached >= len(PROMPT) - 1
