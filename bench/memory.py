"""How much of a prompt the engine need not read: 20 turns over a long file, and one of three files removed.

With time between the messages, as people take it, and without. ``prefix``: of what stands before the new message and
its passages, the share that came from the KV cache; ``prompt``: of the whole prompt. Prints a table and writes
``bench/results/memory.json``. Give a data directory that has the model.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gradio_client import Client, handle_file

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "files"), str(ROOT / "tests")]  # run with "python -m bench.memory"

import samples  # noqa: E402
from conftest import App  # noqa: E402

from bench.report import write_results  # noqa: E402

TURNS, PAGES = 20, 60
THINKING = 2.5
"""Seconds for which nothing runs before the next message, where there is time."""


def rest(client: Client) -> None:
    """Until nothing ran for so long."""
    since = time.monotonic()
    while time.monotonic() - since < THINKING:
        if any(row["running"] for row in client.predict(api_name="/model_list")):
            since = time.monotonic()
        time.sleep(0.1)


def add(client: Client, session: str, path: Path) -> str:
    file = client.predict(handle_file(str(path)), session, api_name="/file_upload")["id"]
    while client.predict(session, file, api_name="/file_get")["state"] != "ready":
        time.sleep(0.1)
    return str(file)


def ask(client: Client, session: str, text: str) -> dict[str, Any]:
    return client.predict(session, text, temperature=0, max_tokens=32, api_name="/chat")[1]  # type: ignore[no-any-return]


def talk(client: Client, path: Path, idle: bool) -> dict[str, Any]:
    session = client.predict(title="Gauges", api_name="/session_create")["id"]
    add(client, session, path)
    turns = []
    for number in range(TURNS):
        # Other questions than in the talk before, whose prompts are still cached.
        status = ask(client, session, f"What does the gauge of engine {3 * number + (not idle)} show?")
        ledger, usage = status["context"], status["usage"]
        before = ledger["prompt"] - ledger["message"] - ledger["excerpts"] - ledger["recalled"]
        cached = usage["cached_tokens"]
        turns.append([cached / before, cached / ledger["prompt"], ledger["prompt"], usage["ttft_seconds"]])
        if idle:
            rest(client)
    later = turns[1:]
    prefix, prompt = ([turn[at] for turn in later] for at in (0, 1))
    return {
        "prefix_least": min(prefix),
        "prefix_mean": sum(prefix) / len(prefix),
        "turns_below_95": sum(share < 0.95 for share in prefix),
        "prompt_least": min(prompt),
        "prompt_mean": sum(prompt) / len(prompt),
        "longest_prompt": max(turn[2] for turn in turns),
        "ttft_mean_s": sum(turn[3] for turn in later) / len(later),
        "ttft_most_s": max(turn[3] for turn in later),
    }


def removal(client: Client, folder: Path) -> dict[str, Any]:
    session = client.predict(title="Three files", api_name="/session_create")["id"]
    files = []
    for number, name in enumerate("abc"):
        path = folder / f"{name}.md"
        path.write_text(samples.sentences(40, number))
        files.append(add(client, session, path))
    ledger = ask(client, session, "What is in these files?")["context"]
    client.predict(session, files[1], api_name="/file_remove")
    status = ask(client, session, "And now?")
    before_it = ledger["system"] + ledger["files"] / 3
    return {"tokens_before_it": before_it, "cached": status["usage"]["cached_tokens"], "prompt": ledger["prompt"]}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pages = (f"{samples.sentences(20, n)} The gauge of engine {n} shows {7 * n} bar." for n in range(PAGES))
        (folder / "gauges.pdf").write_bytes(samples.pdf(pages))
        app = App(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "data")).wait()
        try:
            client = Client(app.url, verbose=False)
            results = {
                "with_time": talk(client, folder / "gauges.pdf", True),
                "without_time": talk(client, folder / "gauges.pdf", False),
                "one_of_three_removed": removal(client, folder),
            }
        finally:
            app.stop()
    for part, row in results.items():
        print(part, "  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    write_results("memory", results)


if __name__ == "__main__":
    main()
