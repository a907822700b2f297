"""What a user feels of one app: start, first token, speed, alone and together.

Starts ``app.py`` with the data directory given (default ``data``), prints a table and writes
``bench/results/streaming.json``. Compare numbers of one run only.
"""

import concurrent.futures
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from gradio_client import Client

from bench.report import write_results

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "Write a long story about a lighthouse."


def until(url: str, seconds: float = 300) -> float:
    """Seconds until ``url`` answers 200."""
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return time.perf_counter() - start
        except OSError:
            time.sleep(0.02)
    raise TimeoutError(url)


def ask(url: str, tokens: int = 100) -> dict[str, float]:
    client = Client(url, verbose=False)
    session = client.predict(api_name="/session_create")["id"]
    _, status = client.predict(session, QUESTION, temperature=0, max_tokens=tokens, api_name="/chat")
    client.predict(session, api_name="/session_delete")
    return status["usage"]


def main() -> None:
    data = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "data")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    app = subprocess.Popen([sys.executable, "app.py", "--port", str(port), "--data-dir", data], cwd=ROOT)
    try:
        results: dict[str, float] = {
            "page reachable, s": until(url),
            "model ready after the page, s": until(f"{url}/ready"),
        }
        ask(url, 20)
        alone = ask(url)
        results["first token alone, s"] = alone["ttft_seconds"]
        results["alone, tok/s"] = alone["tokens_per_second"]
        for count in (4, 8):
            start = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(count) as threads:
                tokens = sum(u["completion_tokens"] for u in threads.map(ask, [url] * count))
            results[f"{count} together, tok/s"] = tokens / (time.perf_counter() - start)
    finally:
        app.send_signal(2)
        app.wait(30)
    for name, value in results.items():
        print(f"{name:32} {value:8.2f}")
    write_results("streaming", results)


if __name__ == "__main__":
    main()
