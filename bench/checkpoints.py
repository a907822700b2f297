"""Quantised checkpoints against the weights they stand for: ``python -m bench.checkpoints``.

Three tiny models in each layout are written bit by bit (``tests/models/layouts.py``), judged and loaded as the service
does it, and compared with transformers' model of the same weights in float32, or with what bitsandbytes makes of them.
"""

import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "models")]

from bench.report import write_results  # noqa: E402

NOISE = 0.999
"""Below this cosine of the logits, at any place of a text, a model does not say what its weights say."""
RUNS, REFUSED, WRONG = "runs", "refused", "NOISE"


@dataclass(frozen=True)
class Case:
    """``write`` writes a checkpoint into a folder, and gives transformers' model of it."""

    layout: str
    model: str
    write: Callable[[Path], Any]


def cases() -> Iterator[Case]:
    """Each layout with three models; layouts that nobody here can read with one."""
    from layouts import BITSANDBYTES, LAYOUTS, MODELS, UNREADABLE, bitsandbytes_model

    for layout in LAYOUTS:
        yield from (Case(layout, model, partial(_packed, layout, model)) for model in MODELS)
    yield from (Case("mxfp4", f"gpt-oss, {64 + 32 * seed} wide", partial(_gpt_oss, seed)) for seed in range(3))
    for kind in BITSANDBYTES:
        yield from (Case(f"bitsandbytes {kind}", model, partial(bitsandbytes_model, kind, model)) for model in MODELS)
    for settings in UNREADABLE:
        said = ", ".join(str(value) for value in settings.values())
        yield Case(said, MODELS[0], partial(_unreadable, settings))


def _packed(layout: str, model: str, folder: Path) -> Any:
    from layouts import packed_model
    from packing import reference

    return reference(folder, packed_model(layout, model, folder))


def _gpt_oss(seed: int, folder: Path) -> Any:
    from layouts import gpt_oss
    from packing import reference

    return reference(folder, gpt_oss(folder, seed))


def _unreadable(settings: dict[str, Any], folder: Path) -> None:
    from layouts import MODELS, model_config
    from packing import configure, plain

    configure(plain(model_config(MODELS[0]), folder), quantization_config=settings)


def measure(case: Case, folder: Path) -> tuple[str, float, str]:
    """(outcome, least cosine of the logits, how the weights are held or why they are refused)."""
    from packing import likeness

    from llmsvc.errors import LlmsvcError
    from llmsvc.models.can_it_run import verdict
    from llmsvc.models.headers import read
    from llmsvc.models.loader import load

    right = case.write(folder)
    said = verdict(read(folder))
    if not said.runs:
        return REFUSED, 0.0, f"before the download: {said.reason}"
    try:
        loaded = load(folder, "cpu", "none", lambda *_: None, full_weights=True)
    except LlmsvcError as error:
        return REFUSED, 0.0, f"at the load: {error}"
    cosine = likeness(loaded.model, right)
    return RUNS if cosine >= NOISE else WRONG, cosine, said.served


def main() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = []
    for case in cases():
        with tempfile.TemporaryDirectory() as work:
            outcome, cosine, note = measure(case, Path(work) / "model")
        results.append((case, outcome, cosine))
        shown = f"{cosine:.6f}" if outcome != REFUSED else ""
        print(f"{case.layout:40} {case.model:18} {outcome:8} {shown:9} {note}", flush=True)
    rows = [[case.layout, case.model, outcome, cosine] for case, outcome, cosine in results]
    write_results("checkpoints", rows)
    outcomes = Counter(outcome for _, outcome, _ in results)
    least = min(cosine for _, outcome, cosine in results if outcome != REFUSED)
    print(
        f"{len({case.layout for case, _, _ in results})} layouts, {len(results)} checkpoints: {outcomes[RUNS]} run, "
        f"{outcomes[REFUSED]} refused, {outcomes[WRONG]} noise; least cosine {least:.6f}"
    )


if __name__ == "__main__":
    main()
