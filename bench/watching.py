"""What watching an answer costs the server and the browser, with few and many earlier messages and watchers.

Runs the service with an engine of a fixed rate (``bench.paced``), prints a table and writes
``bench/results/watching.json``. Compare numbers of one run only.
"""

import asyncio
import json
import random
import re
import socket
import statistics
import string
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from gradio_client import Client
from playwright.sync_api import CDPSession, Page, sync_playwright

from bench.report import write_results
from bench.streaming import until
from llmsvc.ui.page import View

ROOT = Path(__file__).resolve().parents[1]
VIEW = [field.name for field in fields(View)]


@dataclass(frozen=True)
class Process:
    """The service's process, and in it the thread that stands in for an engine."""

    pid: int
    stand_in: int

    def cpu_seconds(self) -> float:
        """What the service has used of all cores: clocks of nanoseconds (clock_getcpuclockid(3), proc_schedstat)."""
        stand_in = int(Path(f"/proc/{self.pid}/task/{self.stand_in}/schedstat").read_text().split()[0])
        return time.clock_gettime((~self.pid << 3) | 2) - stand_in / 1e9


@contextmanager
def service(rate: float) -> Iterator[tuple[str, Process]]:
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
            yield url, Process(process.pid, int((Path(data) / "stand-in").read_text()))
        finally:
            process.terminate()
            process.wait(30)


def chat_with(client: Client, messages: int) -> str:
    """A session that has so many earlier messages of 800 characters."""
    rows = [{"role": ("user", "assistant")[n % 2], "content": f"{n} " + "word " * 160} for n in range(messages)]
    return str(client.predict(json.dumps({"title": "Long", "messages": rows}), api_name="/session_import")["id"])


@dataclass
class Seen:
    """Of one answer: bytes that came, and when it was asked for, began to come and ended, in seconds."""

    size: int
    asked: float
    began: float
    ended: float


class Http:
    """The least that an HTTP client can do, so that many of them leave the machine to the server."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rsplit(":", 1)[1])

    async def post(self, path: str, body: dict[str, Any]) -> bytes:
        return (await self._send("POST", path, json.dumps(body).encode()))[0]

    async def get(self, path: str, last: bytes) -> tuple[int, float]:
        """Read until ``last`` comes: bytes, and when the first of them came."""
        found, first = await self._send("GET", path, b"", last)
        return len(found), first

    async def _send(self, method: str, path: str, body: bytes, last: bytes = b"") -> tuple[bytes, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        try:
            found, first = bytearray(), 0.0
            while part := await reader.read(1 << 16):
                first = first or time.monotonic()
                found += part
                if last and last in found[-len(part) - len(last) :]:
                    break
            else:
                if last or b" 200 " not in found[:20]:
                    raise AssertionError(f"{method} {path}: {bytes(found[-300:])!r}")
            return bytes(found), first
        finally:
            writer.close()


class Script(Http):
    """Asks by /chat, and watches the session's server-sent events."""

    def __init__(self, url: str, session: str) -> None:
        super().__init__(url)
        self._session = session
        with urllib.request.urlopen(f"{url}/gradio_api/info") as answer:
            given = json.load(answer)["named_endpoints"]["/chat"]["parameters"]
        self._rest = [parameter["parameter_default"] for parameter in given[2:]]

    async def ask(self) -> Seen:
        asked = time.monotonic()
        answer = await self.post("/gradio_api/call/chat", {"data": [self._session, "Tell me more.", *self._rest]})
        event = json.loads(answer[answer.index(b"{") : answer.rindex(b"}") + 1])["event_id"]
        first, _ = await self.get(f"/gradio_api/call/chat/{event}", b"event: generating")
        size, began = await self.get(f"/v1/sessions/{self._session}/stream", b"event: end")
        return Seen(first + size, asked, began, time.monotonic())


class PageClient(Http):
    """Speaks to the server as the page in a browser does."""

    def __init__(self, url: str, session: str) -> None:
        super().__init__(url)
        self._session = session
        with urllib.request.urlopen(f"{url}/config") as answer:
            self._fn = {d["api_name"]: d["id"] for d in json.load(answer)["dependencies"]}
        self._hash = "".join(random.choices(string.ascii_lowercase, k=10))
        self._drawn = {"history": "", "recent": "", "go": ""}
        asyncio.run(self._view("on_load", session))

    async def ask(self, news: bool = False) -> Seen:
        """Send a message and watch its answer to the end, with all that the page does around it.

        With ``news`` also what a page does whether there is an answer or not: it asks once a second for what is new.
        """
        asked = time.monotonic()
        size = await self._view("on_submit", self._session, {"text": "Tell me more.", "files": []})
        asking = asyncio.create_task(self._news()) if news else None
        streamed, began = await self.get(f"/v1/sessions/{self._session}/stream", b"event: end")
        ended = time.monotonic()
        if asking is not None and asking.done():
            asking.result()
        elif asking is not None:
            asking.cancel()
        done = await self._view("on_action", self._session, event={"action": "done", "id": ""})
        return Seen(size + streamed + done, asked, began, ended)

    async def _news(self) -> None:
        known = b""
        while True:
            await asyncio.sleep(1)
            ids = re.findall(r"do-(?:edit|again) to-(\w+)", self._drawn["history"] + self._drawn["recent"])
            shown = f"{len(ids)} {ids[-1] if ids else ''}"
            answer = json.dumps((await self._event("on_tick", self._session, self._drawn["go"], shown))[1]).encode()
            if answer != known:
                known = answer
                await self._view("on_news", self._session, "")

    async def _view(self, name: str, *data: Any, event: Any = None) -> int:
        """Draw what comes, as far as the page speaks of it. Bytes."""
        size, values = await self._event(name, *data, event=event)
        for part in self._drawn:
            value = values[VIEW.index(part)]
            if not isinstance(value, dict):
                self._drawn[part] = value if part == "go" else json.dumps(value)
        return size

    async def _event(self, name: str, *data: Any, event: Any = None) -> tuple[int, list[Any]]:
        body = {"fn_index": self._fn[name], "session_hash": self._hash, "event_data": event, "data": data}
        answer = await self.post("/gradio_api/run/predict", body)
        return len(answer), json.loads(answer[answer.index(b"{") : answer.rindex(b"}") + 1])["data"]


def cost_by_history(rate: float, rounds: int) -> dict[str, dict[str, float]]:
    """Server CPU and bytes behind 2 and behind 1,000 messages, in turns.

    Each round asks for a short and for a long answer: their difference is what tokens cost, the rest is what an answer
    costs, whatever its length (the sending, storing and showing of messages).
    """
    lengths = int(2 * rate), int(14 * rate)
    found: dict[tuple[int, int], list[tuple[float, int]]] = {(n, t): [] for n in (2, 1000) for t in lengths}
    with service(rate) as (url, process):
        client = Client(url, verbose=False)
        pages = {}
        for count in (2, 1000):
            pages[count] = PageClient(url, chat_with(client, count))
            client.predict({"max_tokens": lengths[0]}, api_name="/settings_set")
            asyncio.run(pages[count].ask())
        for _ in range(rounds):
            for (count, tokens), costs in found.items():
                client.predict({"max_tokens": tokens}, api_name="/settings_set")
                before = process.cpu_seconds()
                size = asyncio.run(pages[count].ask()).size
                costs.append(((process.cpu_seconds() - before) * 1000, size))
        start = time.monotonic()
        before = process.cpu_seconds()
        time.sleep(5)
        idle = (process.cpu_seconds() - before) / (time.monotonic() - start)
    middle = {n: statistics.median(cpu for cpu, _ in costs) for n, costs in found.items()}
    # Of all answers, since every fourth sends a part of the conversation again that the others do not.
    sizes = {n: statistics.mean(size for t in lengths for _, size in found[n, t]) for n in (2, 1000)}
    few, many = (
        (middle[count, lengths[1]] - middle[count, lengths[0]]) / (lengths[1] - lengths[0]) for count in (2, 1000)
    )
    return {
        f"{rate:g} tok/s": {
            "ms CPU by token, 2 messages": few,
            "ms CPU by token, 1,000 messages": many,
            "ratio of CPU": many / few,
            "of which ms an idle service uses": 1000 * idle / rate,
            "ms CPU by answer, 2 messages": middle[2, lengths[0]] - few * lengths[0],
            "ms CPU by answer, 1,000 messages": middle[1000, lengths[0]] - many * lengths[0],
            "bytes by answer, 2 messages": sizes[2],
            "bytes by answer, 1,000 messages": sizes[1000],
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


async def crowd(process: Process, asks: list[Callable[[], Awaitable[Seen]]]) -> dict[str, float]:
    """How much longer answers take when all of them are watched at once than when one is."""
    alone = statistics.median(seen.ended - seen.asked for seen in [await ask() for ask in asks[:3]])
    before, began = process.cpu_seconds(), time.monotonic()
    seen = await asyncio.gather(*(ask() for ask in asks[3:]))
    share = (process.cpu_seconds() - before) / (time.monotonic() - began)

    def p95(values: Iterator[float]) -> float:
        return sorted(values)[int(0.95 * len(seen))]

    return {
        "alone, s": alone,
        "p95 slow-down": p95(s.ended - s.asked for s in seen) / alone,
        "p95 from asking to the first event, s": p95(s.began - s.asked for s in seen),
        "share of a core": share,
    }


def main() -> None:
    results: dict[str, Any] = {}
    for rate in (30.0, 100.0):
        results |= cost_by_history(rate, 5)
    results["browser at 30 tok/s"] = browser_cost(30, 240, 3)
    crowds: dict[str, Callable[[str, str], Callable[[], Awaitable[Seen]]]] = {
        "128 scripts": lambda url, session: Script(url, session).ask,
        "128 pages": lambda url, session: PageClient(url, session).ask,
        "128 pages that ask for news": lambda url, session: partial(PageClient(url, session).ask, news=True),
    }
    for name, ask_of in crowds.items():
        print(json.dumps(results, indent=1))
        with service(30) as (url, process):
            client = Client(url, verbose=False)
            client.predict({"max_tokens": 450}, api_name="/settings_set")
            asks = [ask_of(url, client.predict(api_name="/session_create")["id"]) for _ in range(131)]
            results[f"{name} at 30 tok/s"] = asyncio.run(crowd(process, asks))
    print(json.dumps(results, indent=1))
    write_results("watching", results)


if __name__ == "__main__":
    main()
