"""Two models where one has room: ``python -m bench.swap [--tokens 4000] [--device cuda]``.

The embedded model and one of the shape of Qwen2.5-0.5B, with random weights, in turns A, B, A, B, A, B. How long coming
back takes, next to loading, and the first token of a long chat then, next to one in a pool that never swaps.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests" / "models")]

from bench.report import write_results  # noqa: E402
from llmsvc.models.catalogue import SMOLLM2, Catalogue  # noqa: E402
from llmsvc.models.download import fetch  # noqa: E402
from llmsvc.models.pool import Budget, ModelPool  # noqa: E402


async def turn(pool: ModelPool, model: str, prompt: list[int], answer: int = 16) -> dict[str, Any]:
    """Seconds until the model was there and until its first token, and the tokens' text."""
    from llmsvc.engine import GenerationRequest, SamplingParams, TokenEvent

    loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[float, TokenEvent]]()

    def deliver(event: TokenEvent) -> None:
        loop.call_soon_threadsafe(events.put_nowait, (time.perf_counter(), event))

    start = time.perf_counter()
    pooled = await pool.acquire(model)
    there = time.perf_counter()
    try:
        params = SamplingParams(temperature=0, max_tokens=answer)
        pooled.engine.submit(GenerationRequest(f"{start}", tuple(prompt), params, deliver))
        first, text = 0.0, ""
        while True:
            at, event = await events.get()
            first, text = first or at, text + event.text
            if event.finish_reason is not None:
                return {"came": there - start, "ttft": first - there, "text": text, "cached": event.cached_tokens}
    finally:
        pool.release(pooled)


async def measure(pool: ModelPool, models: tuple[str, str], prompt: list[int], swap: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in range(6):
        model = models[number % 2]
        rows.append({"model": model, **await turn(pool, model, [*prompt, *range(100, 100 + 12 * (number // 2))])})
        if swap and number == 1:  # loading takes more than both do afterwards: from here on one of them has room
            pool._budget = Budget(memory=pool.usage()["used"] - 1, parked=10**10)
            pool.tidy()
    return rows


def half_a_billion(folder: Path, tokenizer: Any) -> str:
    """A model of the shape of Qwen2.5-0.5B with random weights; where it is."""
    import random_models
    from transformers import Qwen2Config

    shape = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    made = Qwen2Config(
        **shape,
        num_key_value_heads=2,
        vocab_size=49_152,
        max_position_embeddings=8192,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    return str(random_models.save(made, folder, tokenizer))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as work:
        catalogue = Catalogue(Path(work) / "models")
        tokenizer = AutoTokenizer.from_pretrained(fetch(catalogue, SMOLLM2, lambda *_: None))
        other = half_a_billion(Path(work) / "half-a-billion", tokenizer)
        models = (SMOLLM2.id, other)
        prompt = [(7 * n) % 20_000 + 300 for n in range(options.tokens)]
        tight, wide = (ModelPool(catalogue, options.device) for _ in range(2))
        try:
            swapped = asyncio.run(measure(tight, models, prompt, True))
            parked = [row["id"] for row in tight.list() if row["parked"]]
        finally:
            tight.close()
        try:
            stayed = asyncio.run(measure(wide, models, prompt, False))
        finally:
            wide.close()
    summary: dict[str, Any] = {"parked_at_the_end": parked, "same_text": True}
    for number, model in enumerate(models):
        mine, theirs = swapped[number::2], stayed[number::2]
        summary[Path(model).name] = {
            "load_s": mine[0]["came"],
            "swap_back_s": statistics.median(row["came"] for row in mine[1:]),
            "ttft_after_swap_s": statistics.median(row["ttft"] for row in mine[1:]),
            "ttft_never_swapped_s": statistics.median(row["ttft"] for row in theirs[1:]),
        }
        summary["same_text"] &= [row["text"] for row in mine] == [row["text"] for row in theirs]
    print(json.dumps(summary, indent=1))
    write_results("swap", summary)


if __name__ == "__main__":
    main()
