"""What loading, using and unloading leaves behind: ``python -m bench.cycles [--cycles 300]``.

Four small models in turn, each loaded, asked and unloaded; the process's own memory after each unload.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests" / "models")]

from bench.report import write_results  # noqa: E402
from llmsvc.models.catalogue import SMOLLM2, Catalogue  # noqa: E402
from llmsvc.models.download import fetch  # noqa: E402
from llmsvc.models.memory import resident_bytes  # noqa: E402
from llmsvc.models.pool import ModelPool  # noqa: E402

NAMES = ("llama", "qwen3", "gemma3", "gpt2")


async def ask(pool: ModelPool, model: str) -> None:
    from llmsvc.engine import GenerationRequest, SamplingParams, TokenEvent

    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def deliver(event: TokenEvent) -> None:
        if event.finish_reason is not None:
            loop.call_soon_threadsafe(over.set)

    pooled = await pool.acquire(model)
    try:
        pooled.engine.submit(GenerationRequest("1", tuple(range(40, 140)), SamplingParams(max_tokens=16), deliver))
        await over.wait()
    finally:
        pool.release(pooled)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cycles", type=int, default=300)
    cycles = parser.parse_args().cycles
    import random_models
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as work:
        embedded = fetch(Catalogue(Path(work) / "models"), SMOLLM2, lambda *_: None)
        tokenizer, dice = AutoTokenizer.from_pretrained(embedded), random.Random(1)
        models = [
            str(random_models.save(random_models.config(n, dice, vocabulary=49_152), Path(work) / n, tokenizer))
            for n in NAMES
        ]
        pool, memory, counts = ModelPool(Catalogue(Path(work) / "models"), "cpu"), [], []
        for cycle in range(cycles):
            asyncio.run(ask(pool, models[cycle % len(models)]))
            pool.unload(models[cycle % len(models)])
            memory.append(resident_bytes() / 1e6)
            counts.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
            if cycle % 20 == 19:
                print(
                    f"{cycle + 1:4} cycles  {statistics.median(memory[-20:]):7.1f} MB  "
                    f"{counts[-1][0]} threads  {counts[-1][1]} descriptors",
                    flush=True,
                )
    first, last = statistics.median(memory[20:40]), statistics.median(memory[-20:])
    summary = {
        "drift_percent": 100 * (last - first) / first,
        "threads": counts[-1][0] - counts[39][0],
        "descriptors": counts[-1][1] - counts[39][1],
    }
    print({name: round(value, 2) for name, value in summary.items()})
    write_results("cycles", {**summary, "megabytes": memory})


if __name__ == "__main__":
    main()
