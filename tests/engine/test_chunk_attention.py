"""Pieces of prompts, whose attention is put together of two parts on a CPU."""

from itertools import pairwise

import pytest
import torch
from tiny import CONFIGS, tiny

from llmsvc.engine import chunk_attention, runner
from llmsvc.engine.runner import Runner

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
    for least in (16, len(TOKENS) + 1):
        monkeypatch.setattr(runner, "PIECE", least)
        in_parts.clear()
        reading = Runner(tiny(name).to(dtype), 2, 512)
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
