"""How fast the embedded model is beside a program that keeps one core busy: ``python -m bench.beside``.

With the OpenMP threads waiting as ``app.py`` has them wait, and as libgomp does by itself, in turns: seconds that 1,024
tokens of a prompt and 32 tokens of an answer take, alone and beside it. Nothing is compiled.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 3


def child(folder: str, ours: bool) -> None:
    from llmsvc.engine.compute import compute, wait_briefly

    if ours:
        wait_briefly()  # before torch comes
    from llmsvc.engine.slot_runner import SlotRunner
    from llmsvc.models.loader import load

    runner = SlotRunner(compute(load, Path(folder), "cpu", "none", lambda *_: None).model, 1, 2048)

    def seconds() -> tuple[float, float]:
        start = time.perf_counter()
        for at in range(0, 1024, 256):
            runner.prefill(0, list(range(256)), at)
        read = time.perf_counter()
        for at in range(1024, 1056):
            runner.decode({0: 5}, [at])
        return read - start, time.perf_counter() - read

    compute(seconds)
    found = {"alone": compute(seconds)}
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            found["beside"] = compute(seconds)
        finally:
            busy.kill()
    print(json.dumps(found))


def main() -> None:
    from bench.report import write_results
    from llmsvc.models.catalogue import SMOLLM2, Catalogue
    from llmsvc.models.download import fetch

    rows: dict[str, list[dict[str, list[float]]]] = {"ours": [], "libgomp's": []}
    with tempfile.TemporaryDirectory() as work:
        folder = fetch(Catalogue(Path(work) / "models"), SMOLLM2, lambda *_: None)
        for _ in range(ROUNDS):
            for name, found in rows.items():
                command = [sys.executable, "-m", "bench.beside", str(folder), name]
                clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
                found.append(json.loads(subprocess.check_output(command, cwd=ROOT, env=clean)))
    summary = {
        name: {
            f"{what}, {where}": round(statistics.median(row[where][n] for row in found), 2)
            for n, what in enumerate(("prompt", "answer"))
            for where in ("alone", "beside")
        }
        for name, found in rows.items()
    }
    print(json.dumps(summary, indent=1))
    write_results("beside", summary)


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2] == "ours") if sys.argv[1:] else main()
