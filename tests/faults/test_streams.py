"""Many streams of the API whose clients go away at random leave nothing behind."""

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
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

    def ask(number: int, end: float) -> set[int]:
        """One client after the other, each reading for a random while."""
        dice, statuses = random.Random(number), set()
        while time.monotonic() < end:
            path = dice.choice(list(BODIES))
            body = {"model": MODEL, "stream": True, **BODIES[path]}
            reads, timeout = dice.choice((0, 1, 5, 20, 1000)), dice.choice((0.2, 5, 60))
            try:
                with httpx.stream("POST", f"{app.url}/v1/{path}", json=body, timeout=timeout) as answer:
                    statuses.add(answer.status_code)
                    for _ in zip(range(reads), answer.iter_lines(), strict=False):
                        if time.monotonic() > end:
                            break
            except httpx.TimeoutException:  # it went away while it waited
                pass
        return statuses

    def wave(seconds: float) -> set[int]:
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(STREAMS) as threads:
            return set().union(*threads.map(lambda number: ask(number, end), range(STREAMS)))

    wave(3)  # threads and connections that are kept come up
    until(lambda: busy(app) == 0)
    threads, files = held(app)
    assert wave(minutes * 60) <= {200, 429}
    until(lambda: busy(app) == 0)
    until(lambda: held(app)[0] <= threads + 2 and held(app)[1] <= files + 8)
    body = {"model": MODEL, "messages": CAPITAL, "temperature": 0}
    said = httpx.post(f"{app.url}/v1/chat/completions", json=body, timeout=60).json()
    assert said["choices"][0]["message"]["content"] == PARIS
