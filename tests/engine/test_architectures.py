"""One architecture for each kind of layer says what transformers' own ``generate`` says, or is refused in words."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from bench.architectures import EQUAL, REFUSED, measure  # noqa: E402
from bench.zoo import Species  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_kernels")  # they keep keys in 16 bits
KINDS = {
    "gemma3_text": "sliding and full attention",
    "llama4_text": "chunked attention, and layers without positions",
    "gpt_oss": "sinks, and experts",
    "gemma4_text": "other sizes of heads in some layers",
    "gemma3n_text": "keys and values that layers share",
    "deepseek_v3": "latent attention",
    "deepseek_v32": "indexed sparse attention",
    "qwen3_next": "a gated delta rule between attention",
    "lfm2": "short convolutions between attention",
    "nemotron_h": "Mamba 2, experts and attention, each in layers of its own",
    "mamba": "nothing but states",
    "bloom": "positions as a bias",
}


@pytest.mark.parametrize("type", KINDS, ids=[f"{name}: {kind}" for name, kind in KINDS.items()])
def test_what_transformers_says(type: str, tmp_path: Path) -> None:
    result = measure(Species(type), tmp_path / type)
    assert (result.outcome, result.note) == (EQUAL, "")
    assert result.reused["next turn"] > 0.9


def test_a_vision_language_model_answers_texts(tmp_path: Path) -> None:
    result = measure(Species("qwen3_vl", "image"), tmp_path / "qwen3_vl")
    assert (result.outcome, result.note) == (EQUAL, "")


def test_an_encoder_is_refused_before_the_download(tmp_path: Path) -> None:
    result = measure(Species("bert"), tmp_path / "bert")
    assert result.outcome == REFUSED
    assert result.note.startswith("before the download: It is an encoder")
