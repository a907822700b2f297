"""What the guard costs each request and each piece of a stream: ``python -m bench.guard``."""

import asyncio
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from llmsvc.accounts import Accounts
from llmsvc.http.guard import Guard
from llmsvc.store.database import Database

PIECES, REQUESTS = 1000, 2000
HEADERS = {
    "host": "127.0.0.1:7860",
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36",
    "accept": "text/event-stream",
    "accept-encoding": "gzip, deflate, br",
    "origin": "http://127.0.0.1:7860",
    "sec-fetch-site": "same-origin",
    "sec-fetch-mode": "cors",
    "cookie": "llmsvc-guest-7860=abcdefghijklmnopqrstuvwxyzabcdef; other=1",
    "content-type": "application/json",
    "content-length": "300",
}


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for _ in range(scope["pieces"]):
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})


async def seconds(app: Any, pieces: int, requests: int) -> float:
    async def nothing(*_: Any) -> None: ...

    headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    scope = {"type": "http", "scheme": "http", "method": "POST", "path": "/v1/models", "headers": headers}
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(requests):
            await app({**scope, "pieces": pieces}, nothing, nothing)
        best = min(best, time.perf_counter() - begun)
    return best


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder))
        guard = Guard(
            answer, Accounts(database, [], [], False, False), 7860, "127.0.0.1", 2**20, Path(folder), Counter()
        )
        for name, pieces, requests in (("request", 0, REQUESTS), ("piece of a stream", PIECES, 20)):
            own, with_guard = (asyncio.run(seconds(app, pieces, requests)) for app in (answer, guard))
            cost = (with_guard - own) / (requests * max(1, pieces))
            print(f"{name:<20} {1e6 * cost:6.2f} µs")
        database.close()


if __name__ == "__main__":
    main()
