"""Attention on a CPU: by the kernel, and without it in pieces, whose attention is put together of two parts."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIGS, SIZE, Collected, kept_kernels, tiny
from transformers import AutoModelForCausalLM, DeepseekV2Config, FalconConfig, Gemma2Config, Olmo2Config

from llmsvc.engine import Engine, chunk_attention
from llmsvc.engine.cache import kept
from llmsvc.engine.cache.attention import SlotLayer
from llmsvc.engine.cache.placed import Step
from llmsvc.engine.chunk_attention import _by_kernel, attend_up_to, fits_kernel
from llmsvc.engine.kernels import load_kernels
from llmsvc.engine.slot_runner import SlotRunner

TOKENS = [(7 * n) % 290 + 3 for n in range(300)]
MASKED = {"mistral-window"}  # looks no further back than its window, which a piece is longer than


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_piece_says_what_it_says_with_a_mask(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of any length, from anywhere in a text."""
    in_parts, found, plain = [], [], chunk_attention.sdpa_attention_forward
    monkeypatch.setattr(
        chunk_attention, "sdpa_attention_forward", lambda *given, **named: in_parts.append(0) or plain(*given, **named)
    )
    monkeypatch.setattr(chunk_attention, "fits_kernel", lambda *_: False)
    for least in (16, len(TOKENS) + 1):
        monkeypatch.setattr(chunk_attention, "PIECE", least)
        reading = SlotRunner(tiny(name).to(dtype), 2, 512)
        in_parts.clear()
        cuts = [0, 75, 76, 92, 200, 300]
        pairs = pairwise(cuts)
        found.append(torch.cat([reading.prefill(0, TOKENS[a:b], a, b - a) for a, b in pairs]).float())
        masked = len(in_parts)
        layers = reading._model.config.num_hidden_layers
        if least > len(TOKENS) or name in MASKED:
            assert masked == 5 * layers
        else:
            assert masked < 5 * layers  # all but the piece of one token; some layers of some models look back less far
    error = (found[0] - found[1]).abs().max() / found[1].abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 3e-2)


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_a_token_sees_all_up_to_its_place_and_hangs_on_nothing_else(data: st.DataObject) -> None:
    """By the kernel, as torch computes it in 64 bits; to the bit the same in any piece, whatever other rows see."""
    if not load_kernels(kept_kernels()):
        pytest.skip("needs a C++ compiler")
    rows, shared, group, size = (data.draw(st.sampled_from(x)) for x in ((1, 2, 5), (1, 3), (1, 2, 3, 7), (16, 64, 80)))
    new = data.draw(st.one_of(st.just(1), st.integers(2, 150)))
    starts = [data.draw(st.integers(0, 1200)) for _ in range(rows)]
    positions = torch.tensor(starts)[:, None] + torch.arange(new)
    length = max(starts) + new
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    query = data.draw(st.sampled_from([0.1, 3.0])) * torch.randn(rows, new, shared * group, size, generator=generator)
    query = query.transpose(1, 2)  # as models make it
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]))
    if not fits_kernel(size, dtype):
        assert dtype == torch.float16
        return  # only processors that widen such numbers read them
    cache = [torch.randn(rows, shared, length + 9, size, generator=generator).to(dtype) for _ in range(2)]
    for part in cache:
        for row, start in enumerate(starts):
            part[row, :, start + new :] = float("nan")  # nobody may look there
    odd = data.draw(
        st.none() | st.integers(0, new - 1)
    )  # of this token of each row, and those after it, nothing is known
    for part in cache if odd is not None else ():
        for row, start in enumerate(starts):
            part[row, :, start + odd] = float("nan")
    key, value = (part[:, :, :length] for part in cache)
    assert _by_kernel(query, key, value, positions)
    found = attend_up_to(query, key, value, positions, None)
    wide = [part.double().nan_to_num().repeat_interleave(group, 1) for part in (key, value)]
    mask = torch.arange(length) <= positions[:, None, :, None]
    expected = torch.nn.functional.scaled_dot_product_attention(query.double(), *wide, attn_mask=mask)
    known = slice(0, odd)
    assert torch.allclose(found[:, known], expected.transpose(1, 2).float()[:, known], atol=2e-5)
    assert odd is None or bool(found[:, odd:].isnan().all())
    cut = data.draw(st.sampled_from([1, new - 1]) | st.integers(0, new))
    row = data.draw(st.integers(0, rows - 1))
    for part in (slice(0, cut), slice(cut, new)):
        if part.start < part.stop:
            alone = [one[row : row + 1] for one in (query[:, :, part], key, value, positions[:, part])]
            again = attend_up_to(*alone, None)[0]
            assert torch.equal(again.nan_to_num(7), found[row, part].nan_to_num(7))
    # All of them as one row of tokens, of which each knows whose keys are its own.
    cuts = data.draw(st.permutations([(row, part) for row in range(rows) for part in (slice(0, cut), slice(cut, new))]))
    flat = torch.cat([query[row, :, part] for row, part in cuts], 1)[None]
    places = torch.cat([positions[row, part] for row, part in cuts])[None]
    slots = torch.cat([torch.full_like(positions[row, part], row) for row, part in cuts])[None]
    together = attend_up_to(flat, key, value, places, None, slots)[0]
    assert torch.equal(together.nan_to_num(7), torch.cat([found[cut] for cut in cuts]).nan_to_num(7))


def test_with_the_kernel_a_token_takes_half_the_memory(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    if not load_kernels(kept_kernels()):
        pytest.skip("needs a C++ compiler")
    if not fits_kernel(16, torch.float16):
        pytest.skip("the processor does not widen such numbers")
    held = []
    for ours in (True, False):
        if not ours:
            monkeypatch.setattr(kept, "fits_kernel", lambda *_: False)
        engine = Engine(tiny("heads-of-16"), tokenizer, window=512, slots=3)
        collected = Collected(engine)
        try:
            collected.submit("a", TOKENS)
            collected.all(1)
            held.append(engine.kv_bytes)
        finally:
            engine.close()
    assert held == [pytest.approx(324 * 2 * 4 * 2 * 16 * 2, rel=0.01), 2 * held[0]]


@pytest.mark.parametrize("name", ["falcon", "deepseek", "gemma2", "olmo2"])
def test_models_whose_attention_is_their_own_answer_all_the_same(name: str, tokenizer: Any) -> None:
    """Only what the kernel reads in all layers is kept in 16 bits."""
    if not load_kernels(kept_kernels()):
        pytest.skip("needs a C++ compiler")
    size = {key: value for key, value in SIZE.items() if key != "head_dim"} | {"hidden_size": 64}  # heads of 16
    latent = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
    configs = {
        "falcon": lambda: FalconConfig(**size, alibi=False),
        "deepseek": lambda: DeepseekV2Config(
            **{**size, **latent, "num_key_value_heads": 4, "first_k_dense_replace": 9}
        ),
        "gemma2": lambda: Gemma2Config(**size, head_dim=16, layer_types=["full_attention"] * 4),
        "olmo2": lambda: Olmo2Config(**size),
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs[name]()).float().eval()
    engine = Engine(model, tokenizer, window=512, slots=3)
    collected = Collected(engine)
    try:
        collected.submit("a", TOKENS[:40], max_tokens=5)
        assert collected.all(1)["a"][1].error is None
    finally:
        engine.close()
    expected = torch.float16 if name == "olmo2" and fits_kernel(16, torch.float16) else torch.float32
    assert kept.kept_in(model) == expected


def test_keys_that_are_too_large_for_16_bits_do_not_become_infinite() -> None:
    step = Step(0, 1, torch.tensor([[0]]), torch.tensor([[0, 1]]), 2, 2)
    layer = SlotLayer(1, 64, step, torch.float16)
    given = torch.tensor([70000.0, -1e9]).view(1, 1, 2, 1).expand(1, 2, 2, 16).contiguous()
    keys, values = layer.update(given, given / 1e6)
    assert keys.dtype == torch.float16
    assert keys[0, 0, :, 0].tolist() == [65504, -65504]
    assert torch.allclose(values.float(), given / 1e6, rtol=1e-3)


def test_with_the_kernel_a_model_says_what_it_says_without(
    model_dir: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not load_kernels(kept_kernels()):
        pytest.skip("needs a C++ compiler")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    read: list[int] = []
    right = chunk_attention.attend_up_to
    monkeypatch.setattr(chunk_attention, "attend_up_to", lambda *given: read.append(0) or right(*given))
    told, calls = [], []
    for ours in (True, False):
        if not ours:
            monkeypatch.setattr(chunk_attention, "fits_kernel", lambda *_: False)
        engine = Engine(model, tokenizer, window=512, slots=3)
        collected = Collected(engine)
        try:
            for number in range(3):
                text = tokenizer("The capital of Italy is Rome, and that of France is " * (1 + 3 * number))["input_ids"]
                collected.submit(str(number), text)
            told.append({key: text for key, (text, _) in collected.all(3).items()})
        finally:
            engine.close()
        calls.append(len(read))
    assert told[0] == told[1]
    assert calls[0] > 0
    assert calls[1] == calls[0]
