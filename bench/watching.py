"""What watching an answer costs the server and the browser, with few and many earlier messages and watchers.

Runs the service with an engine of a fixed rate (``bench.paced``), prints a table and writes
``bench/results/watching.json``. Compare numbers of one run only.
"""

import concurrent.futures
import json
import os
import random
import socket
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from gradio_client import Client
from playwright.sync_api import CDPSession, Page, sync_playwright

from bench.streaming import until

ROOT = Path(__file__).resolve().parents[1]
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@contextmanager
def service(rate: float) -> Iterator[tuple[str, int]]:
    """Its address and process."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as data:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [sys.executable, "-m", "bench.paced", "--rate", str(rate), "--port", str(port), "--data-dir", data]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            until(url)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(30)


def chat_with(client: Client, messages: int) -> str:
    """A session that has so many earlier messages of 800 characters."""
    rows = [{"role": ("user", "assistant")[n % 2], "content": f"{n} " + "word " * 160} for n in range(messages)]
    return str(client.predict(json.dumps({"title": "Long", "messages": rows}), api_name="/session_import")["id"])


class PageClient:
    """Speaks to the server as the page in a browser does, and counts what comes."""

    def __init__(self, url: str, session: str) -> None:
        self._url, self._session = url, session
        self._http = httpx.Client(timeout=120)
        config = self._http.get(f"{url}/config").json()
        self._fn = {d["api_name"]: d["id"] for d in config["dependencies"]}
        self._hash = "".join(random.choices(string.ascii_lowercase, k=10))
        body = {**self._body("on_load"), "data": [session]}
        self._http.post(f"{url}/gradio_api/run/predict", json=body).raise_for_status()

    def ask(self) -> int:
        """Send a message and watch its answer to the end, with all that the page does around it: bytes that came."""
        size = self._queued(
            {**self._body("on_submit"), "data": [self._session, {"text": "Tell me more.", "files": []}]}
        )
        size += self._lines(f"/v1/sessions/{self._session}/stream", "event: end")
        done = {**self._body("on_action"), "data": [self._session], "event_data": {"action": "done", "id": ""}}
        return size + self._queued(done)

    def _body(self, name: str) -> dict[str, Any]:
        return {"fn_index": self._fn[name], "session_hash": self._hash, "event_data": None}

    def _queued(self, body: dict[str, Any]) -> int:
        self._http.post(f"{self._url}/gradio_api/queue/join", json=body).raise_for_status()
        return self._lines(f"/gradio_api/queue/data?session_hash={self._hash}", '"process_completed"')

    def _lines(self, path: str, last: str) -> int:
        size = 0
        with self._http.stream("GET", self._url + path) as response:
            for line in response.iter_lines():
                size += len(line)
                if last in line:
                    return size
        raise AssertionError("the stream broke off")


def cost_by_history(rate: float, tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Server CPU by token and bytes by answer, behind 2 and behind 1,000 messages, in turns."""
    found: dict[int, list[tuple[float, int]]] = {2: [], 1000: []}
    with service(rate) as (url, pid):
        client = Client(url, verbose=False)
        client.predict({"max_tokens": tokens}, api_name="/settings_set")
        pages = {}
        for count in found:
            pages[count] = PageClient(url, chat_with(client, count))
            pages[count].ask()
        for _ in range(rounds):
            for count, page in pages.items():
                before = cpu_seconds(pid)
                size = page.ask()
                found[count].append(((cpu_seconds(pid) - before) * 1000 / tokens, size))
        start = time.monotonic()
        before = cpu_seconds(pid)
        time.sleep(5)
        idle = (cpu_seconds(pid) - before) / (time.monotonic() - start)
    middle = {n: (statistics.median(c for c, _ in v), statistics.median(s for _, s in v)) for n, v in found.items()}
    return {
        f"{rate:g} tok/s": {
            "ms CPU by token, 2 messages": middle[2][0],
            "ms CPU by token, 1,000 messages": middle[1000][0],
            "ratio of CPU": middle[1000][0] / middle[2][0],
            "bytes by answer, 2 messages": middle[2][1],
            "bytes by answer, 1,000 messages": middle[1000][1],
            "share of a core when idle": idle,
        }
    }


def browser_cost(rate: float, tokens: int, rounds: int) -> dict[str, float]:
    """Main-thread time of Chromium by token, behind 2 and behind 1,000 messages, in turns."""
    found: dict[int, list[float]] = {2: [], 1000: []}
    with service(rate) as (url, _), sync_playwright() as playwright:
        client = Client(url, verbose=False)
        client.predict({"max_tokens": tokens}, api_name="/settings_set")
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        for count in list(found) * (rounds + 1):  # a fresh page each time; the first of each only warms up
            page = browser.new_page(viewport={"width": 1360, "height": 860})
            page.goto(f"{url}/#{chat_with(client, count)}")
            page.wait_for_selector("#scroll .message")
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable")
            found[count].append(1000 * _answer_in(page, session) / tokens)
            page.close()
        browser.close()
    few, many = (statistics.median(found[count][1:]) for count in (2, 1000))
    return {"ms by token, 2 messages": few, "ms by token, 1,000 messages": many, "ratio": many / few}


def _answer_in(page: Page, session: CDPSession) -> float:
    """Seconds that the page's main thread worked from the sending of a message to the end of its answer."""

    def busy() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return float(next(m["value"] for m in metrics if m["name"] == "TaskDuration"))

    page.fill("#composer textarea", "Tell me more.")
    before = busy()
    page.keyboard.press("Enter")
    page.wait_for_selector("#composer .stop-button")
    page.wait_for_selector("#composer .stop-button", state="detached", timeout=120_000)
    return busy() - before


def watch_events(url: str, session: str) -> float:
    """Seconds that an SSE client sees an answer run."""
    with httpx.Client(timeout=120) as http, http.stream("GET", f"{url}/v1/sessions/{session}/stream") as response:
        start = 0.0
        for line in response.iter_lines():
            start = start or time.monotonic()
            if line == "event: end":
                return time.monotonic() - start
    raise AssertionError("the stream broke off")


def crowd(rate: float, tokens: int, watchers: int, by_page: bool) -> dict[str, float]:
    """How much longer answers take to see when many are watched at once, each session by one watcher."""
    with service(rate) as (url, pid):
        client = Client(url, verbose=False, max_workers=2 * watchers)
        client.predict({"max_tokens": tokens}, api_name="/settings_set")

        # One after the other, before: gradio_client sometimes cancels a call that begins as another one ends.
        sessions = iter([client.predict(api_name="/session_create")["id"] for _ in range(watchers + 3)])

        def one(_: int) -> tuple[float, float]:
            session = next(sessions)
            if by_page:
                page = PageClient(url, session)
                start = time.monotonic()
                page.ask()
                return start, time.monotonic()
            start = time.monotonic()
            next(iter(client.submit(session, "Tell me more.", api_name="/chat")))
            watch_events(url, session)
            return start, time.monotonic()

        alone = statistics.median(end - start for start, end in map(one, range(3)))
        before, began = cpu_seconds(pid), time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(watchers) as threads:
            spans = [end - start for start, end in threads.map(one, range(watchers))]
        share = (cpu_seconds(pid) - before) / (time.monotonic() - began)
    spans.sort()
    return {"alone, s": alone, "p95 slow-down": spans[int(0.95 * len(spans))] / alone, "share of a core": share}


def main() -> None:
    results: dict[str, Any] = {}
    for rate in (30.0, 100.0):
        results |= cost_by_history(rate, int(rate * 8), 5)
    results["browser at 30 tok/s"] = browser_cost(30, 240, 3)
    print(json.dumps(results, indent=1))
    results["128 SSE watchers at 30 tok/s"] = crowd(30, 450, 128, by_page=False)
    print(json.dumps(results, indent=1))
    results["128 pages at 30 tok/s"] = crowd(30, 450, 128, by_page=True)
    print(json.dumps(results, indent=1))
    out = ROOT / "bench" / "results"
    out.mkdir(exist_ok=True)
    (out / "watching.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
