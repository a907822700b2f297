"""Weights that have 4 bits keep them: found in whatever type they come, and multiplied as they are."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import kept_kernels, of_4_bits
from torch import nn

from llmsvc.engine import kernels
from llmsvc.engine.blocks import has_blocks, in_blocks, rounded, unpacked
from llmsvc.engine.int8 import Int8Linear, quantize, quantize_linears
from llmsvc.engine.products import choose


@pytest.fixture(autouse=True, scope="module")
def on_this_machine() -> None:
    if choose(kept_kernels()) != "kernel" or not has_blocks():
        pytest.skip("other products are faster here, or there are none of such weights")


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    channels=st.sampled_from([16, 48, 208]),
    width=st.sampled_from([32, 96, 576, 1536]),
    levels=st.sampled_from([15, 15, 13, 8]),
    least=st.sampled_from([-8.0, -6.3, 0.0, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    rows=st.sampled_from([1, 2, 3, 4, 5, 11, 12, 31, 70]),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
    far=st.sampled_from([1.0, 3.0, 1000.0]),
)
def test_a_product_is_of_the_weights_as_they_are_and_hangs_on_its_own_row(
    seed: int,
    channels: int,
    width: int,
    levels: int,
    least: float,
    dtype: torch.dtype,
    rows: int,
    scale: float,
    far: float,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(width, channels)
    exact = of_4_bits(generator, channels, width, levels, least)
    linear.weight.data = exact.to(dtype)
    layer = Int8Linear(linear, "kernel", blocks=True)
    assert layer.values.dtype == torch.uint8
    assert layer.values.nbytes * 8 == 5 * exact.numel()
    near = exact.view(channels, -1, 32).abs().amax(2, keepdim=True) * 2.0**-7
    assert bool(((unpacked(layer.values) - exact).view(channels, -1, 32).abs() <= near).all())
    x = scale * torch.randn(rows, width, generator=generator)
    x[0, :32] = scale  # of which some sums may be as large as they get
    x.view(rows, -1, 32)[torch.rand(rows, width // 32, generator=generator) < 0.1] *= far  # and some get 16 bits
    out = layer(x)
    expected = rounded(x).double() @ unpacked(layer.values).double().t() + linear.bias.double()
    size = x.double().abs() @ unpacked(layer.values).double().abs().t()
    assert bool(((out - expected).abs() <= 1e-5 * size + 1e-6).all())
    for row in (0, rows - 1):
        assert torch.equal(layer(x[row : row + 1])[0], out[row])


def test_other_weights_get_8_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    assert in_blocks(torch.randn(160, 576, generator=generator)) is None
    assert in_blocks(1 + 0.01 * torch.randn(160, 576, generator=generator)) is None  # nearly all the same
    assert in_blocks(torch.zeros(160, 576)) is None
    right = of_4_bits(generator, 160, 576, 15, -8.0)
    assert in_blocks(right) is not None
    assert in_blocks(right[:40]) is None  # panels have 16 channels
    assert in_blocks(right[:, :48].contiguous()) is None  # blocks have 32 columns
    for odd in (torch.randn(32, generator=generator), torch.nan, torch.inf, 1e5):
        mostly = right.clone()
        mostly[-1, -32:] = odd
        assert in_blocks(mostly) is None


def test_blocks_of_one_value_or_next_to_nothing_have_4_bits_too() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = of_4_bits(generator, 32, 576, 15, -8.0)
    weight[3, :32], weight[5, 32:64] = 0, 0.3
    weight[7, :64] = 1e-6 * torch.randn(64, generator=generator)  # nothing beside the others of its channel
    weight[9, :32] = torch.randint(-1, 2, (32,), generator=generator).float()
    records = in_blocks(weight)
    assert records is not None
    assert float((unpacked(records) - weight).abs().max() / weight.abs().max()) < 1e-3


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("width", [576, 3104])
def test_a_few_numbers_that_are_far_larger_than_others_keep_16_bits(rows: int, width: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    records = in_blocks(of_4_bits(generator, 32, width, 15, -8.0))
    assert records is not None
    x = torch.randn(rows, width, generator=generator)
    x[:, 64:96] *= 1000
    x[:, -32:] *= 800
    out = torch.empty(rows, 32)
    kernels.run_kernel("llmsvc_int8_linear", x, records, torch.empty(0), out, rows, width, 32)
    exact = x.double() @ unpacked(records).double().t()
    error = (out - exact).pow(2).mean(1).sqrt() / exact.pow(2).mean(1).sqrt()
    assert float(error.max()) < 1e-4  # 8 bits would lose 0.5 %


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rows", [3, 40])
def test_what_is_no_number_stays_none(rows: int, odd: float) -> None:
    records = in_blocks(of_4_bits(torch.Generator().manual_seed(0), 32, 64, 15, -8.0))
    assert records is not None
    x = torch.ones(rows, 64)
    x[1, 40] = odd
    out = torch.empty(rows, 32)
    kernels.run_kernel("llmsvc_int8_linear", x, records, torch.empty(0), out, rows, 64, 32)
    assert (~out.isfinite()).any(1).nonzero().tolist() == [[1]]


@pytest.mark.parametrize("rows", [1, 7, 40, 331])
def test_layers_of_both_kinds_are_multiplied_together_as_each_alone(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 576, generator=generator)
    layers: list[tuple[torch.Tensor, torch.Tensor, int]] = []
    for channels in (192, 61, 16):
        layers.append((*quantize(torch.randn(channels, 576, generator=generator)), channels))
        records = in_blocks(of_4_bits(generator, 208, 576, 15, -8.0))
        assert records is not None
        layers.append((records, torch.empty(0), 208))
    alone = []
    for values, scales, channels in layers:
        alone.append(torch.full((rows, channels), torch.nan))
        kernels.run_kernel("llmsvc_int8_linear", x, values, scales, alone[-1], rows, 576, channels)
    pointers = [torch.tensor([layer[which].data_ptr() for layer in layers]) for which in (0, 1)]
    counts = torch.tensor([layer[2] for layer in layers])
    together = torch.full((rows, int(counts.sum())), torch.nan)
    kernels.run_kernel("llmsvc_int8_linears", x, *pointers, counts, len(layers), together, rows, 576)
    assert torch.equal(together, torch.cat(alone, 1))


def test_the_embedded_model_can_keep_its_4_bits(model_dir: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    quantize_linears(model, kept_kernels())
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Int8Linear)}
    others = {name for name, layer in layers.items() if layer.values.dtype != torch.uint8}
    assert others == {"lm_head"}  # which GGUF holds in 8 bits
    assert set(model.config.weights_of_4_bits) == layers.keys() - others
