"""8-bit weights on a CPU: exact where it matters, in a way that the processor is fast in."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import CONFIGS, Collected, kept_kernels, tiny
from torch import nn

from llmsvc.engine import Engine, int8, kernels, products
from llmsvc.engine.int8 import Int8Linear, quantize, quantize_linears
from llmsvc.engine.products import WAYS


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    width=st.sampled_from([7, 32, 96, 100, 576, 1023, 1100, 17_001]),
    channels=st.sampled_from([1, 48, 61]),
    rows=st.integers(1, 70),
    scale=st.floats(1e-3, 1e3),
)
def test_a_product_is_nearly_exact_and_hangs_on_its_own_row(
    way: str, seed: int, width: int, channels: int, rows: int, scale: float
) -> None:
    if way not in right_ways():
        pytest.skip("this machine cannot")
    assume(way != "widened" or width < 17_001)  # so many numbers of 32 bits add up to nearly the same only
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(width, channels)
    linear.weight.data = torch.randn(channels, width, generator=generator)
    linear.bias.data = torch.randn(channels, generator=generator)
    linear.weight.data[-1] = 1  # its sums are as large as they get
    layer = Int8Linear(linear, way)
    x = scale * torch.randn(rows, width, generator=generator)
    x[-1], x[0] = scale, 0
    out = layer(x)
    rounded = layer.values.double() * layer.scales.double()[:, None]
    exact = x.double() @ rounded.t() + linear.bias.double()
    size = x.double().abs().amax(1, keepdim=True) * rounded.abs().sum(1)
    assert bool(((out - exact).abs() <= size / 32512 + 1e-5 * exact.abs() + 1e-6).all())
    for row in (0, rows - 1):
        alone = layer(x[row : row + 1])[0]
        near = 1e-5 * float(size[row].max()) if way == "widened" else 0
        assert float((alone - out[row]).abs().max()) <= near


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    width=st.sampled_from([7, 96, 576, 1300]),
    channels=st.lists(st.sampled_from([1, 16, 61, 192]), min_size=1, max_size=4),
    rows=st.sampled_from([1, 3, 23, 24, 70, 100, 331]),
)
def test_layers_of_the_same_rows_are_multiplied_together_as_each_alone(
    seed: int, width: int, channels: list[int], rows: int
) -> None:
    if "kernel" not in right_ways():
        pytest.skip("this machine has no kernel")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    layers = [quantize(torch.randn(some, width, generator=generator)) for some in channels]
    values, scales = (torch.tensor([layer[which].data_ptr() for layer in layers]) for which in (0, 1))
    together = torch.full((rows, sum(channels)), torch.nan)
    kernels.run_kernel(
        "llmsvc_int8_linears", x, values, scales, torch.tensor(channels), len(layers), together, rows, width
    )
    assert torch.equal(together, torch.cat([WAYS["kernel"](x, *layer) for layer in layers], 1))


@functools.cache
def right_ways() -> list[str]:
    products.choose(kept_kernels())  # builds the kernel
    return [way for way in WAYS if products._is_right(way)]


def test_a_compiler_gives_a_kernel_that_the_disk_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels.compiler():
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(kernels, "_library", None)
    chosen = products.choose(tmp_path)
    assert chosen != "widened"
    assert {file.suffix for file in tmp_path.iterdir()} == {".so", ".json"}
    monkeypatch.setattr(kernels, "_library", None)
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setattr(products, "_measured", lambda *_: pytest.fail("what was chosen is measured again"))
    assert products.choose(tmp_path) == chosen


def test_a_damaged_kernel_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels.compiler():
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(kernels, "_library", None)
    (tmp_path / f"{kernels.kernels_name()}.so").write_bytes(b"nothing of the kind")
    assert products.choose(tmp_path) != "widened"
    assert products._is_right("kernel")


def test_without_a_compiler_weights_are_multiplied_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    monkeypatch.setattr(kernels, "_library", None)
    monkeypatch.setenv("CXX", "false")
    model = tiny("llama")
    quantize_linears(model, tmp_path)
    assert kernels.kernels() is None
    engine = Engine(model, tokenizer, window=512)
    collected = Collected(engine)
    try:
        collected.submit("a", [5, 6, 7])
        assert collected.all(1)["a"][0]
    finally:
        engine.close()


@given(st.integers(0, 1000), st.sampled_from([1, 66, 10_000]))
@settings(deadline=None, max_examples=30)
def test_rounding_is_within_half_a_step(seed: int, at_once: int) -> None:
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(seed))
    weight[2] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "_AT_ONCE", at_once)
        values, scales = quantize(weight)
    assert bool(((values * scales[:, None] - weight).abs() <= scales[:, None] / 2 + 1e-6).all())


@pytest.mark.parametrize("way", WAYS)
def test_a_load_that_changes_the_default_type_changes_no_product(way: str, tmp_path: Path) -> None:
    """As transformers does in all threads while it loads a model in 16 bits."""
    if way not in right_ways():
        pytest.skip("this machine cannot")
    layer, x = Int8Linear(nn.Linear(96, 61), way), torch.randn(9, 96)
    before = layer(x)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(layer(x), before)
        assert products._is_right(way)
        assert products._measured([way]) == way
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_do_not_hang_on_what_was_cached(name: str, tokenizer: Any) -> None:
    """Cold, from the cache, in small chunks and in company: the same words."""
    if products.choose(kept_kernels()) == "widened":
        pytest.skip("this machine has no exact products")
    model = tiny(name)
    quantize_linears(model, kept_kernels())
    prompts = {str(n): [(n * 31 + k * 7) % 290 + 5 for k in range(10 + 25 * n)] for n in range(3)}
    texts = []
    for chunk in (16, 256):
        engine = Engine(model, tokenizer, window=512, slots=4, chunk=chunk)
        collected = Collected(engine)
        try:
            for _ in range(2):
                for key, prompt in prompts.items():
                    collected.submit(key, prompt)
                texts.append({key: text for key, (text, _) in collected.all(3).items()})
            for key, prompt in prompts.items():
                collected.submit(key, prompt)
                texts.append({**texts[0], key: collected.all(1)[key][0]})
        finally:
            engine.close()
    assert all(text == texts[0] for text in texts)


def test_where_products_saturate_another_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = WAYS["integers"]
    monkeypatch.setitem(WAYS, "integers", lambda *arguments: right(*arguments).clamp(max=50))
    assert products.choose(None) == "widened"
