"""Tokens drawn by the kernel are those that torch draws."""

import random
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import kept_kernels

from llmsvc.engine import SamplingParams, sampling
from llmsvc.engine.kernels import load_kernels
from llmsvc.engine.sampling import sample

ROWS = 24


@pytest.fixture(scope="module", autouse=True)
def with_kernels() -> None:
    if not load_kernels(kept_kernels()):
        pytest.skip("needs a C++ compiler")


def by_torch(*given: Any) -> list[int]:
    with patch.object(sampling, "kernels", lambda: None):
        return sample(*given)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 10_000),
    st.sampled_from([3, 50, 3000]),
    st.sampled_from([0.3, 1.0, 5.0]),
    st.floats(0.05, 3),
    st.sampled_from([0, 1, 7, 900]),
    st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    st.sampled_from([0.0, 0.05, 1.0]),
)
def test_the_kernel_draws_what_torch_draws(
    seed: int, size: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """But for a token at the rim of a nucleus, where a last bit decides."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(ROWS, size, generator=generator)
    logits[torch.rand(ROWS, size, generator=generator) < 0.2] = float("-inf")  # a grammar forbids them
    logits[0, 0], logits[1:, 1] = float("nan"), 1.0
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)

    def dice() -> list[random.Random]:
        return [random.Random(seed + n) for n in range(ROWS)]

    found = sample(logits, [params] * ROWS, dice())
    expected = by_torch(logits, [params] * ROWS, dice())
    assert found[0] == expected[0] == -1
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 1
    assert found[1:] == [sample(logits[n : n + 1], [params], [random.Random(seed + n)])[0] for n in range(1, ROWS)]
    assert all(torch.isfinite(logits[row, token]) for row, token in enumerate(found) if row)


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 10_000), st.sampled_from([1, 3, 7, 8, 50, 3001]), st.sampled_from([0.3, 1.0, 50.0]))
def test_greedy_takes_the_first_of_the_largest(seed: int, size: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(ROWS, size, generator=generator)).round()  # several are the largest
    logits[torch.rand(ROWS, size, generator=generator) < 0.2] = float("-inf")
    logits[:, int(torch.randint(size, (1,), generator=generator))] = 0.0
    found = sample(logits, [SamplingParams(temperature=0)] * ROWS, [random.Random(n) for n in range(ROWS)])
    assert found == logits.argmax(-1).tolist()
    logits[0, int(torch.randint(size, (1,), generator=generator))] = float("nan")
    assert sample(logits[:1], [SamplingParams(temperature=0)], [random.Random(0)]) == [-1]


def test_rows_are_drawn_each_by_its_own_filters() -> None:
    logits = 3 * torch.randn(6, 5000, generator=torch.Generator().manual_seed(1))
    params = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=1, top_p=1, top_k=0),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(temperature=2, top_k=3),
        SamplingParams(temperature=1, top_p=1, min_p=1),
        SamplingParams(temperature=1e-3),
    ]
    for seed in range(30):
        found = sample(logits, params, [random.Random(seed + n) for n in range(6)])
        assert found == by_torch(logits, params, [random.Random(seed + n) for n in range(6)])
        assert [found[row] for row in (0, 4, 5)] == logits[[0, 4, 5]].argmax(-1).tolist()
        assert found[3] in logits[3].topk(3).indices


@pytest.mark.parametrize("temperature", [1e-46, 1e-40, 1e-30])
def test_hardly_any_temperature_takes_the_likeliest(temperature: float) -> None:
    logits = 5 * torch.randn(3, 700, generator=torch.Generator().manual_seed(3))
    for top_p in (1.0, 0.9):
        params = [SamplingParams(temperature=temperature, top_p=top_p)] * 3
        for draw in (sample, by_torch):
            assert draw(logits, params, [random.Random(n) for n in range(3)]) == logits.argmax(-1).tolist()


def test_filters_keep_their_bits_while_another_thread_loads() -> None:
    """Which makes the default type another one meanwhile: a vocabulary of 128,256 would be one of 128,000."""
    logits = torch.randn(2, 128_256, generator=torch.Generator().manual_seed(3))
    params = [SamplingParams(temperature=0.7, top_p=1), SamplingParams(temperature=0.7)]
    dice = partial(map, random.Random)
    expected = sample(logits, params, list(dice((1, 2))))
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert sampling.Draw(logits, params, [1, 2])._draw(
            lambda _, filters, keys: filters, logits, [0, 1]
        ).tolist() == [
            pytest.approx([0.7, 0, 1, 128_256]),
            pytest.approx([0.7, 0, params[1].top_p, 128_256]),
        ]
        assert sample(logits, params, list(dice((1, 2)))) == expected
    finally:
        torch.set_default_dtype(torch.float32)
