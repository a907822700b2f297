"""What needs a GPU: kernels, recorded passes, and an engine that takes them.

On a machine that has little else: python -m pytest --noconftest tests/engine/test_cuda.py
"""

import gc
import random
import time
from typing import Any

import pytest
import torch
from tiny import CONFIGS, Collected, tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from llmsvc.engine import Engine, SamplingParams, gemv
from llmsvc.engine.paged_attention import PAGE, _kernels, _plain
from llmsvc.engine.paged_runner import can_follow, says_the_same
from llmsvc.engine.sampling import sample

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
LONG = [(7 * n) % 290 + 3 for n in range(3 * PAGE)]


@pytest.fixture(scope="module")
def words() -> Any:
    vocabulary = {f"w{n}": n for n in range(300)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="w0")), eos_token="w2")


def wait(engine: Engine) -> None:
    while not engine.warm:
        time.sleep(0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "heads", "shared", "size"),
    [(1, 32, 8, 128), (3, 8, 2, 64), (70, 9, 3, 80), (2, 4, 4, 8), (300, 16, 8, 128)],
)
def test_the_kernels_compute_attention(tokens: int, heads: int, shared: int, size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(heads, tokens, size, generator=generator).to(dtype).transpose(0, 1)
    keys, values = (torch.randn(99, shared, PAGE, size, generator=generator).to(dtype) for _ in range(2))
    table = torch.zeros(tokens, 2 + 20, dtype=torch.int32)
    for row in table:
        row[0] = torch.randint(1, 20 * PAGE + 1, (1,), generator=generator)
        row[1] = torch.randint(0, int(row[0]), (1,), generator=generator) * (int(row[0]) % 2)
        row[2:] = torch.randperm(98, generator=generator)[:20] + 1
    expected = _plain(query.float(), keys.float(), values.float(), table, 0.1)
    found = _kernels(*(one.cuda() for one in (query, keys, values, table)), 0.1)
    error = (found.float().cpu() - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(("outputs", "width", "bias"), [(4096, 4096, False), (1000, 576, True), (7, 33, True)])
def test_one_token_through_a_linear_layer(outputs: int, width: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear, x = (
        torch.nn.Linear(width, outputs, bias, "cuda", torch.bfloat16),
        torch.randn(1, 1, width).cuda().bfloat16(),
    )
    assert gemv.can(linear)
    with torch.inference_mode():
        found, expected = gemv.several([linear], x)[0], linear.double()(x.double())
    assert (found - expected).norm() / expected.norm() < 1e-2


def test_draws_are_those_of_a_cpu() -> None:
    logits = 3 * torch.randn(20, 5000, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(temperature=1, top_p=1), SamplingParams(), SamplingParams(top_k=30, min_p=0.01)] * 6
    params += [SamplingParams(temperature=0), SamplingParams(temperature=2, top_p=0.999)]
    expected = sample(logits, params, [random.Random(n) for n in range(20)])
    assert sample(logits.cuda(), params, [random.Random(n) for n in range(20)]) == expected


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_recorded_passes_say_what_the_model_says(name: str) -> None:
    model = tiny(name).cuda()
    assert can_follow(model)
    if "moe" in name or name == "mixtral":
        pytest.skip("which experts compute is decided on the CPU")
    assert says_the_same(model, True)


@pytest.mark.parametrize("name", ["llama", "gemma3-mixed", "mixtral"])
def test_an_engine_on_a_gpu_says_what_one_on_a_cpu_says(name: str, words: Any, tmp_path: Any) -> None:
    prompts = {"a": LONG[:100], "b": [*LONG[:70], 5, 6, 7], "c": [9] * 20, "d": LONG, "e": LONG[:100]}
    found = []
    for device in ("cpu", "cuda", "recorded"):
        model = tiny(name).to("cpu" if device == "cpu" else "cuda")
        engine = Engine(model, words, window=512, slots=3, compiled=tmp_path if device == "recorded" else None)
        collected = Collected(engine)
        wait(engine)
        for key, prompt in prompts.items():
            collected.submit(key, prompt)
        found.append({key: text for key, (text, _) in collected.all(len(prompts)).items()})
        if device == "recorded" and name != "mixtral":
            assert engine.compiled == {"recorded"}
        engine.close()
    assert found[0] == found[1] == found[2]


def test_memory_comes_back(words: Any, tmp_path: Any) -> None:
    def cycle() -> int:
        engine = Engine(tiny("llama").cuda(), words, window=512, compiled=tmp_path)
        wait(engine)
        collected = Collected(engine)
        for n in range(40):
            collected.submit(str(n), LONG[: 20 + n])
        collected.all(40)
        engine.close()
        del engine, collected
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    first = cycle()
    assert [cycle() for _ in range(3)] == [first] * 3
