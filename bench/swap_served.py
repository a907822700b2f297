"""Two models in turns by the OpenAI API, here and of ``transformers serve``: ``python -m bench.swap_served``.

The embedded model and one of the shape of Qwen2.5-0.5B, with random weights: A, B, A, B, A, B, each a chat that begins
with 4,000 tokens and goes on. Here one of the two has room at a time, the other is parked; the peer keeps both. Total
seconds from the first request, loading included; each server alone on the machine, in turns. Steps are compiled before,
as they are from the second start on; ``--cold`` takes none.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.streaming import until

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "tests" / "models")]

from gradio_client import Client  # noqa: E402
from openai import OpenAI  # noqa: E402

from bench.report import write_results  # noqa: E402
from bench.swap import half_a_billion  # noqa: E402
from llmsvc.models.catalogue import SMOLLM2, Catalogue  # noqa: E402
from llmsvc.models.download import fetch  # noqa: E402

ANSWER = 16
KINDS = 4
"""Of compiled steps."""


@contextmanager
def server(name: str, data: Path, *flags: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    commands = {
        "llmsvc": ["app.py", "--port", port, "--data-dir", str(data), *flags],
        "transformers serve": ["-m", "transformers.cli.transformers", "serve", "--port", port, "--device", "cpu"],
    }
    process = subprocess.Popen([sys.executable, *commands[name]], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        until(f"{url}/health")
        yield url
    finally:
        process.terminate()
        process.wait(60)


def compile_steps(data: Path, models: tuple[str, ...], *flags: str) -> None:
    """Have the service compile what it can for these models; it takes some minutes each."""
    with server("llmsvc", data, *flags) as url:
        for model in models:  # those that are parked are compiled for as well
            Client(url, verbose=False).predict(model, api_name="/model_load")
        end = time.monotonic() + 2400
        while sum(file.suffix in (".good", ".refused") for file in data.glob("compiled/*")) < KINDS * len(models):
            if time.monotonic() > end:
                raise SystemExit("nothing is compiled here (is there a C++ compiler?): --cold measures without")
            time.sleep(1)


def turns(name: str, url: str, models: tuple[str, str], text: str) -> list[float]:
    """Seconds of each of six answers, in turns by the two models."""
    client = OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)
    chats: dict[str, list[dict[str, str]]] = {model: [] for model in models}
    took = []
    for number in range(6):
        model = models[number % 2]
        chat = chats[model]
        chat.append({"role": "user", "content": "Go on." if chat else text})
        start = time.perf_counter()
        if len(chat) == 1 and name == "llmsvc":  # a folder is loaded on the Models page first
            Client(url, verbose=False).predict(model, api_name="/model_load")
        answer = client.chat.completions.create(model=model, messages=chat, max_tokens=ANSWER, temperature=0)  # type: ignore[call-overload]
        took.append(time.perf_counter() - start)
        chat.append({"role": "assistant", "content": answer.choices[0].message.content or "…"})
    return took


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="1000mb")
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    flags = ["--memory", options.memory, *(["--no-compile"] if options.cold else [])]
    from transformers import AutoTokenizer

    found: dict[str, list[list[float]]] = {"llmsvc": [], "transformers serve": []}
    with tempfile.TemporaryDirectory() as work:
        catalogue = Catalogue(Path(work) / "data" / "models")
        embedded = fetch(catalogue, SMOLLM2, lambda *_: None)
        tokenizer = AutoTokenizer.from_pretrained(embedded)
        other = half_a_billion(Path(work) / "half-a-billion", tokenizer)
        words = tokenizer((ROOT / "LICENSE").read_text() * 9)["input_ids"][: options.tokens]
        text = tokenizer.decode(words)
        if not options.cold:
            compile_steps(Path(work) / "data", (SMOLLM2.id, other), *flags)
        for _ in range(options.rounds):
            for name, rounds in found.items():
                first = SMOLLM2.id if name == "llmsvc" else str(embedded)
                with server(name, Path(work) / "data", *flags) as url:
                    rounds.append(turns(name, url, (first, other), text))
                print(name, [round(seconds, 2) for seconds in rounds[-1]], flush=True)
    totals = {name: statistics.median(map(sum, rounds)) for name, rounds in found.items()}
    summary = {"seconds": found, "totals": totals, "times": totals["transformers serve"] / totals["llmsvc"]}
    print(json.dumps(summary, indent=1))
    write_results("swap_served", summary)


if __name__ == "__main__":
    main()
