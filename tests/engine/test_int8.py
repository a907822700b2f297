"""8-bit weights on a CPU: exact where it matters, and left out where the processor cannot."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIGS, Collected, tiny
from torch import nn

from llmsvc.engine import Engine, int8
from llmsvc.engine.int8 import Int8Linear, quantize, quantize_linears


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([32, 96, 576]), st.integers(1, 70), st.floats(1e-3, 1e3))
def test_a_product_is_nearly_exact_and_hangs_on_its_own_row(seed: int, width: int, rows: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(width, 48)
    linear.weight.data = torch.randn(48, width, generator=generator)
    layer = Int8Linear(linear)
    x = scale * torch.randn(rows, width, generator=generator)
    x[0] = 0
    out = layer(x)
    rounded = layer.values.double() * layer.scales.double()[:, None]
    exact = x.double() @ rounded.t() + linear.bias.double()
    size = x.double().abs().amax(1, keepdim=True) * rounded.abs().sum(1)
    assert bool(((out - exact).abs() <= size / 32512 + 1e-5 * exact.abs() + 1e-6).all())
    for row in (0, rows - 1):
        assert torch.equal(layer(x[row : row + 1])[0], out[row])


@given(st.integers(0, 1000), st.sampled_from([1, 66, 10_000]))
@settings(deadline=None, max_examples=30)
def test_rounding_is_within_half_a_step(seed: int, at_once: int) -> None:
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(seed))
    weight[2] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "_AT_ONCE", at_once)
        values, scales = quantize(weight)
    assert bool(((values * scales[:, None] - weight).abs() <= scales[:, None] / 2 + 1e-6).all())


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_do_not_hang_on_what_was_cached(name: str, tokenizer: Any) -> None:
    """Cold, from the cache, in small chunks and in company: the same words."""
    model = tiny(name)
    if not quantize_linears(model):
        pytest.skip("this CPU has no exact 8-bit products")
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


def test_where_products_saturate_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Int8Linear.forward
    monkeypatch.setattr(Int8Linear, "forward", lambda self, x: right(self, x).clamp(max=50))
    model = tiny("llama")
    assert not quantize_linears(model)
    assert not any(isinstance(module, Int8Linear) for module in model.modules())
