"""Answers under random faults, watched by a browser and by a script through a proxy: none is lost, none comes twice.

``--faults 300`` is the long run. With ``-s`` it prints what it measured.
"""

import json
import random
import re
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from clients import until
from conftest import App
from gradio_client import Client
from playwright.sync_api import Browser, Page, expect
from proxy import Proxy

QUESTION = "Question {}: write a long story about a lighthouse and the sea."
WATCH = """
  window.seen = [];
  let text = "";
  Object.defineProperty(window, "llmsvcText", { get: () => text, set: (now) => { text = now; seen.push(now); } });
  (function look() {
    const drawn = document.querySelector("#early, #live .message")?.innerText;
    if (drawn && !drawn.includes("Waiting") && !drawn.includes("Reading")) window.liveAt = performance.now();
    else requestAnimationFrame(look);
  })();
  addEventListener("pointerdown", (e) => { window.pressed = e.target.closest("[data-id]")?.dataset.id; }, true);
"""


class Watcher(threading.Thread):
    """A script that reads the events of one answer, coming again after each cut as an EventSource does."""

    def __init__(self, url: str, session: str, turn: str) -> None:
        super().__init__(daemon=True)
        self._url, self.turn = f"{url}/v1/sessions/{session}/stream", turn
        self.text, self.last_id, self.ended = "", "", False
        self.grown: list[tuple[float, int]] = []
        self.gone = False
        self.start()

    def run(self) -> None:
        while not self.ended and not self.gone:
            try:
                with httpx.stream("GET", self._url, headers={"Last-Event-ID": self.last_id}, timeout=60) as response:
                    if response.status_code == 204:
                        self.ended = True
                    for line in response.iter_lines():
                        self._take(line)
            except httpx.HTTPError:
                time.sleep(0.05)  # as the stream's "retry" asks of a browser, only sooner

    def _take(self, line: str) -> None:
        name, _, value = line.partition(": ")
        if name == "event":
            self.ended = True
        elif name == "id":
            self.last_id = value
        elif name == "data":
            data = json.loads(value)
            assert data["turn_id"] == self.turn
            self.text = self.text[: data["offset"]] + data["text"]
            assert len(self.text) == data["length"]
            self.grown.append((time.monotonic(), len(self.text)))

    def until(self, length: int) -> None:
        until(lambda: len(self.text) >= length or self.ended)


def letters(text: str) -> str:
    """What Markdown leaves alone."""
    return re.sub(r"[\W\d_]+", "", text)


class Trial:
    """One service, one browser, three chats."""

    def __init__(self, browser: Browser, data: Path, longer: int) -> None:
        """``longer``: how many times longer answers are than those of a model that is not compiled."""
        self._data, self._browser, self._longer = data, browser, longer
        self.app = App(data).wait()
        self.proxy = Proxy(self.app.port)
        self.client = Client(self.app.url, verbose=False)
        self.asked: dict[str, list[str]] = {}
        self.begin()
        self.context = browser.new_context(viewport={"width": 1360, "height": 860})
        self.context.add_init_script(WATCH)
        self.page = self.open(self.sessions[0])
        self.relived: list[float] = []
        self.missing: list[float] = []
        self.done: Counter[str] = Counter()

    def begin(self) -> None:
        """Three chats, new ones."""
        self.sessions = [self.client.predict(api_name="/session_create")["id"] for _ in range(3)]
        self.asked |= {session: [] for session in self.sessions}

    def open(self, session: str) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{self.proxy.url}/#{session}")
        expect(page.locator("#composer textarea")).to_be_visible()
        return page

    def messages(self, session: str) -> list[dict]:
        return self.client.predict(session, api_name="/session_get")["messages"]

    def go_to(self, session: str) -> None:
        while True:
            self.page.click(f'#sessions [data-id="{session}"] .open')
            if self.page.evaluate("window.pressed") == session:
                break  # else the list took another order between aim and press
        self.page.wait_for_function("(session) => location.hash === '#' + session", arg=session)

    def round(self, number: int, fault: str, dice: random.Random) -> None:
        session = dice.choice(self.sessions)
        self.client.predict({"max_tokens": dice.randint(40, 80) * self._longer}, api_name="/settings_set")
        if self.page.evaluate("location.hash") != f"#{session}":
            self.go_to(session)
        question = QUESTION.format(number)
        before = len(self.messages(session))
        job = None
        if fault == "cancel":
            job = self.client.submit(session, question, api_name="/chat")
        else:
            self.page.fill("#composer textarea", question)
            self.page.keyboard.press("Enter")
        self.asked[session].append(question)
        until(lambda: len(self.messages(session)) == before + 2)
        watcher = Watcher(self.proxy.url, session, self.messages(session)[-1]["turn_id"])
        watcher.until(dice.randint(1, 150))
        getattr(self, fault)(session, watcher, job)
        until(lambda: watcher.ended)
        until(lambda: self.messages(session)[-1]["state"] not in ("queued", "prefill", "running"))
        self.check(session, watcher, fault)
        self.done[fault] += 1

    # Faults

    def reload(self, session: str, watcher: Watcher, job) -> None:
        self.page.reload()
        self.page.wait_for_function(
            "performance.getEntriesByType('paint').length"
            " && (window.liveAt || document.querySelector('#recent .usage, #history .usage'))"
        )
        if not watcher.ended:
            first, live = self.page.evaluate("[performance.getEntriesByType('paint')[0].startTime, window.liveAt]")
            if live:
                self.relived.append(live - first)

    def close(self, session: str, watcher: Watcher, job) -> None:
        self.page.close()
        self.page = self.open(session)

    def cut(self, session: str, watcher: Watcher, job) -> None:
        self.proxy.cut()

    def switch(self, session: str, watcher: Watcher, job) -> None:
        self.go_to(next(other for other in self.sessions if other != session))
        self.go_to(session)

    def cancel(self, session: str, watcher: Watcher, job) -> None:
        job.cancel()

    def kill(self, session: str, watcher: Watcher, job) -> None:
        at = time.monotonic()
        self.app.process.kill()
        self.app.process.wait()
        watcher.gone = True
        watcher.join()
        port = self.app.port
        self.app = App(self._data, port=port).wait()
        self.client = Client(self.app.url, verbose=False)
        kept = self.messages(session)[-1]
        assert watcher.text.startswith(kept["content"]) or kept["content"].startswith(watcher.text)
        due = [when for when, length in watcher.grown if length > len(kept["content"])]
        self.missing.append(at - due[0] if due else 0.0)
        if kept["state"] == "done":  # it had ended just before
            watcher.text, watcher.ended = kept["content"], True
            return
        assert kept["state"] == "interrupted"
        self.page.get_by_role("button", name="Continue").click()  # the page came back by itself
        until(lambda: self.messages(session)[-1]["state"] != "interrupted")
        answer = self.messages(session)[-1]
        assert answer["content"].startswith(kept["content"])
        again = Watcher(self.proxy.url, session, answer["turn_id"])
        until(lambda: again.ended)
        watcher.text, watcher.ended = again.text, True

    # What must hold

    def check(self, session: str, watcher: Watcher, fault: str) -> None:
        rows = self.messages(session)
        assert [row["content"] for row in rows[::2]] == self.asked[session]
        assert [row["role"] for row in rows] == ["user", "assistant"] * (len(rows) // 2)
        answer = rows[-1]["content"]
        assert (rows[-1]["state"], watcher.text) == ("done", answer), fault
        shown = (
            "[...document.querySelectorAll('#history .message-content, #recent .message-content')].at(-1)?.innerText"
        )
        try:
            until(lambda: letters(answer) in letters(str(self.page.evaluate(shown))))
        except AssertionError:
            self.page.screenshot(path="/tmp/fault.png")
            raise AssertionError((fault, answer, self.page.evaluate(shown), rows[-1])) from None
        seen = self.page.evaluate("window.seen.splice(0)")
        if fault != "kill":
            assert all(answer.startswith(text) for text in seen)


def test_no_answer_is_lost_or_doubled(browser: Browser, own_data: Path, request: pytest.FixtureRequest) -> None:
    count, dice = int(request.config.getoption("--faults")), random.Random(4)
    kills = max(1, count // 10)
    kinds = ["reload", "close", "cut", "switch", "cancel"]
    faults = ["kill"] * kills + [kinds[n % len(kinds)] for n in range(count - kills)]
    dice.shuffle(faults)
    trial = Trial(browser, own_data, 4 if request.config.getoption("--compiled") else 1)
    try:
        for number, fault in enumerate(faults):
            if number % 30 == 29:
                trial.begin()
            trial.round(number, fault, dice)
        stored = {s: [m["content"] for m in trial.messages(s)[::2]] for s in trial.asked}
        assert stored == trial.asked
    finally:
        trial.context.close()
        trial.proxy.close()
        trial.app.stop()
    assert max(trial.missing) < 1.5  # seconds of text; the bar of 1 is measured on a quiet machine
    print(f"\nfaults: {dict(trial.done)}")
    print(f"seconds of text missing after a kill: largest {max(trial.missing):.2f}")
    if trial.relived:
        relived = sorted(trial.relived)
        print(f"live again after first paint, ms: median {relived[len(relived) // 2]:.0f}, largest {relived[-1]:.0f}")
