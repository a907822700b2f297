"""How far forecasts are from what loading takes: ``python -m bench.forecast [--cells 40] [--device cuda]``.

``--architectures [TYPE...]``: tiny models of every type of transformers' mappings (``bench.zoo``) instead, each with a
chat of 256 tokens in the engine's own cache, its states included.

Models of random shapes from tiny to 1B parameters, each loaded in a process of its own, which says what its tensors
and its KV cache hold, and what it had in memory at most while it loaded, on the device that is asked for.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests" / "models")]

from bench.report import write_results  # noqa: E402
from llmsvc.models.forecast import forecast, plan  # noqa: E402
from llmsvc.models.headers import read  # noqa: E402
from llmsvc.models.memory import resident_bytes  # noqa: E402

KINDS = (("none", False), ("none", True), ("int8", False), ("nf4", False))
FAST = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "mistral", "mixtral", "phi", "phi3", "gpt2", "gpt-neox")


def measure(folder: Path, quantization: str, full: bool, context: int, device: str) -> None:
    """In the child: load, cache, and print the bytes."""
    import torch

    from llmsvc.engine.paged_attention import PAGE
    from llmsvc.engine.paged_runner import PagedRunner
    from llmsvc.engine.slot_runner import SlotRunner
    from llmsvc.models.loader import load

    torch.nn.Linear(8, 8)(torch.ones(1, 8))
    import bitsandbytes  # noqa: F401
    import transformers  # noqa: F401

    on_host = device == "cpu"
    before, peak, over = resident_bytes() if on_host else 0, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.002):
            peak = max(peak, resident_bytes() if on_host else torch.cuda.max_memory_allocated())

    thread = threading.Thread(target=watch)
    thread.start()
    loaded = load(folder, device, quantization, lambda *_: None, full_weights=full)
    over.set()
    thread.join()
    runner: Any = SlotRunner(loaded.model, 1, context) if on_host else PagedRunner(loaded.model, 1, context, context)
    runner.prefill(0, list(range(3, 3 + PAGE)), 0)  # one page is as long
    kv = sum(x[:1, :, :PAGE].nbytes for layer in runner._cache.used() for x in (layer.keys, layer.values))
    print(json.dumps({"weights": loaded.memory_bytes, "kv": kv // PAGE, "peak": peak - before}))


def of_architectures(wanted: list[str]) -> None:
    """In this process: load each type that will run, and compare."""
    import random_models

    from bench.zoo import checkpoint, species

    rows: list[dict[str, Any]] = []
    tokenizer = random_models.bytes_alone()
    for one in species():
        if wanted and one.type not in wanted:
            continue
        with tempfile.TemporaryDirectory() as work:
            row: dict[str, Any] = {"name": one.name, "type": one.type}
            try:
                checkpoint(one, Path(work))
                tokenizer.save_pretrained(work)
                row |= _compared(Path(work))
            except Exception as failure:  # it cannot be made, or not be loaded: other benches ask why
                row["failed"] = f"{type(failure).__name__}: {failure}"[:120]
            rows.append(row)
            print(
                {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()},
                flush=True,
            )
    errors = sorted(abs(row["error"]) for row in rows if "error" in row)
    summary = {"types": len(errors), "median": statistics.median(errors), "p95": errors[int(0.95 * (len(errors) - 1))]}
    print(summary)
    write_results("forecast_architectures", {"summary": summary, "cells": rows})


def _compared(folder: Path, context: int = 256) -> dict[str, Any]:
    """What is said of a folder and what it takes, as bytes and as a share."""
    from llmsvc.engine.runners import make_runner
    from llmsvc.models.can_it_run import verdict
    from llmsvc.models.loader import load

    contents = read(folder)
    said = verdict(contents)
    if not said.runs:
        return {"refused": said.reason}
    expected = forecast(contents, plan(contents, "cpu", "none", False), context)
    loaded = load(folder, "cpu", "none", lambda *_: None)
    costs = make_runner(loaded.model, 4, min(512, loaded.window), 0, 10**9, None).costs
    chat = costs.sequence + context * costs.token
    measured = loaded.memory_bytes + chat
    return {
        "error": (expected.weights_bytes + expected.chat_bytes - measured) / measured,
        "weights": (expected.weights_bytes, loaded.memory_bytes),
        "token": (expected.kv_bytes_per_token, costs.token),
        "state": (expected.state_bytes, costs.sequence),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--architectures", nargs="*")
    parser.add_argument("--cells", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", nargs=4)
    arguments = parser.parse_args()
    if arguments.child:
        folder, quantization, full, context = arguments.child
        measure(Path(folder), quantization, full == "True", int(context), arguments.device)
        return
    if arguments.architectures is not None:
        of_architectures(arguments.architectures)
        return
    import random_models
    from transformers import AutoTokenizer

    from llmsvc.models.catalogue import SMOLLM2, Catalogue
    from llmsvc.models.download import fetch

    dice, rows = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory() as work:
        embedded = fetch(Catalogue(Path(work) / "models"), SMOLLM2, lambda *_: None)
        tokenizer = AutoTokenizer.from_pretrained(embedded)
        for cell in range(arguments.cells):
            name, (quantization, full) = dice.choice(FAST), KINDS[cell % len(KINDS)]
            wide = dice.choice([1, 1, 2, 4, 8, 12]) if cell % 8 else 16
            made = random_models.config(name, dice, vocabulary=dice.choice([4_000, 32_000]), wide=wide)
            context = dice.choice([64, 512, 4096, 32_768])
            folder = random_models.save(made, Path(work) / "model", tokenizer)
            started = time.perf_counter()
            contents = read(folder)
            expected = forecast(contents, plan(contents, arguments.device, quantization, full), context)
            seconds = time.perf_counter() - started
            command = [sys.executable, "-m", "bench.forecast", "--device", arguments.device]
            command += ["--child", str(folder), quantization, str(full), "1024"]
            found = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
            size = sum(tensor.count for tensor in contents.tensors) / 1e6
            said, is_ = (
                expected.weights_bytes + context * expected.kv_bytes_per_token,
                found["weights"] + context * found["kv"],
            )
            rows.append(
                {
                    "architecture": name,
                    "parameters_m": round(size, 1),
                    "quantization": "full" if full else quantization,
                    "context": context,
                    "error": abs(said - is_) / is_,
                    "peak_error": (expected.load_peak_bytes - found["peak"]) / found["peak"],
                    "peak_mb": found["peak"] / 1e6,
                    "ms": 1000 * seconds,
                }
            )
            print(
                f"{name:10} {size:7.1f} M  {rows[-1]['quantization']:5} {context:6} tokens  "
                f"error {100 * rows[-1]['error']:5.2f} %  peak {found['peak'] / 1e6:7.0f} MB, "
                f"forecast {expected.load_peak_bytes / 1e6:7.0f} MB  {1000 * seconds:5.1f} ms",
                flush=True,
            )
    errors, times = sorted(row["error"] for row in rows), sorted(row["ms"] for row in rows)
    p95 = int(0.95 * (len(rows) - 1))
    summary = {"median": statistics.median(errors), "p95": errors[p95], "worst": errors[-1], "slowest_ms": times[-1]}
    print({name: round(value, 4) for name, value in summary.items()})
    write_results("forecast", {"summary": summary, "cells": rows})


if __name__ == "__main__":
    main()
