"""Many streams of the API whose clients go away at random leave nothing behind."""

import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from clients import CAPITAL, MODEL, PARIS, STORY, busy, until

STREAMS = 64
BODIES = {
    "chat/completions": {"messages": STORY, "max_tokens": 200},
    "completions": {"prompt": "Once upon a time", "max_tokens": 200},
    "messages": {"messages": STORY, "max_tokens": 200},
    "responses": {"input": STORY, "max_output_tokens": 200},
}


def held(app) -> tuple[int, int]:
    """Threads and open files of the service."""
    process = Path("/proc") / str(app.process.pid)
    return len(os.listdir(process / "task")), len(os.listdir(process / "fd"))


def test_streams_that_break_off_leave_nothing_behind(app, request: pytest.FixtureRequest) -> None:
    minutes = float(request.config.getoption("--minutes"))

    def ask(number: int, end: float) -> Counter[int]:
        """One client after the other, each reading for a random while; how they were answered."""
        dice, statuses = random.Random(number), Counter[int]()
        while time.monotonic() < end:
            path = dice.choice(list(BODIES))
            body = {"model": MODEL, "stream": True, **BODIES[path]}
            reads, timeout = dice.choice((0, 1, 5, 20, 1000)), dice.choice((0.2, 5, 60))
            try:
                with httpx.stream("POST", f"{app.url}/v1/{path}", json=body, timeout=timeout) as answer:
                    statuses[answer.status_code] += 1
                    for _ in zip(range(reads), answer.iter_lines(), strict=False):
                        if time.monotonic() > end:
                            break
            except httpx.TimeoutException:
                statuses[0] += 1  # it went away while it waited
        return statuses

    def wave(seconds: float) -> Counter[int]:
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(STREAMS) as threads:
            return sum(threads.map(lambda number: ask(number, end), range(STREAMS)), Counter())

    def settled() -> bool:
        """Whether all threads and connections that are kept came up."""
        before = held(app)
        wave(3)
        until(lambda: busy(app) == 0)
        return held(app)[0] <= before[0]

    until(settled)
    threads, files = held(app)
    answered = wave(minutes * 60)
    assert set(answered) <= {0, 200, 429}
    until(lambda: busy(app) == 0)
    until(lambda: held(app)[0] <= threads + 2 and held(app)[1] <= files + 8)
    print(f"by status: {dict(answered)}; threads {threads} to {held(app)[0]}, files {files} to {held(app)[1]}")
    body = {"model": MODEL, "messages": CAPITAL, "temperature": 0}
    said = httpx.post(f"{app.url}/v1/chat/completions", json=body, timeout=60).json()
    assert said["choices"][0]["message"]["content"] == PARIS


def test_a_full_queue_says_so(app) -> None:
    """32 answers run, 256 wait; each of these asks for 16."""
    body = {"model": MODEL, "messages": STORY, "n": 16, "max_tokens": 1000, "stream": True}
    until(lambda: busy(app) == 0)
    with ExitStack() as stack:
        for _ in range(30):
            stream = httpx.stream("POST", f"{app.url}/v1/chat/completions", json=body, timeout=60)
            answer = stack.enter_context(stream)
            if answer.status_code != 200:
                break
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        answer.read()
        error = answer.json()["error"]
        assert error["type"] == "rate_limit_error"
        assert "busy" in error["message"]
    until(lambda: busy(app) == 0)
