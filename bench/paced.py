"""The service with an engine that gives every request words at a fixed rate: for costs that no model should blur.

python -m bench.paced --rate 30 --port 7861 --data-dir /tmp/paced
"""

import asyncio
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

from llmsvc import settings
from llmsvc.engine import FinishReason, GenerationRequest, TokenEvent
from llmsvc.service import Service
from llmsvc.ui.launch import launch

WORDS = ("the ", "light", "house ", "stood ", "over ", "sea, ", "and ", "waves ", "broke ", "below. ")


class PacedEngine:
    """One thread gives each request its tokens when they are due."""

    def __init__(self, rate: float) -> None:
        self._rate, self._lock = rate, threading.Condition()
        self._requests: dict[str, tuple[GenerationRequest, float, int]] = {}
        self.queued, self.reading = 0, 0.0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    @property
    def running(self) -> int:
        return len(self._requests)

    def submit(self, request: GenerationRequest) -> None:
        with self._lock:
            self._requests[request.id] = (request, time.monotonic(), 0)
            self._lock.notify()

    def cancel(self, id_: str) -> None:
        with self._lock:
            if found := self._requests.pop(id_, None):
                found[0].deliver(TokenEvent(id_, "", found[2], FinishReason.CANCELLED))

    def close(self) -> None:
        for id_ in list(self._requests):
            self.cancel(id_)

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._requests:
                    self._lock.wait()
                now = time.monotonic()
                due = min(start + (given + 1) / self._rate for _, start, given in self._requests.values())
                if due > now:
                    self._lock.wait(max(due - now, 0.01))  # as an engine: all rows in one step
                    continue
                for id_, (request, start, given) in list(self._requests.items()):
                    ready = min(int((now - start) * self._rate + 1e-6), request.sampling.max_tokens)
                    for number in range(given, ready):
                        last = number + 1 == request.sampling.max_tokens
                        reason = FinishReason.LENGTH if last else None
                        request.deliver(TokenEvent(id_, WORDS[number % len(WORDS)], number + 1, reason))
                    self._requests[id_] = (request, start, ready)
                    if ready == request.sampling.max_tokens:
                        del self._requests[id_]


class _Tokenizer:
    def get_chat_template(self, **_: Any) -> str:
        return ""

    def apply_chat_template(self, chat: list[dict[str, str]], *_: Any, **__: Any) -> str:
        return "\n".join(entry["content"] for entry in chat)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [0] * (len(text) // 4)}


class PacedPool:
    """Stands where the ModelPool stands."""

    def __init__(self, catalogue: Any, rate: float) -> None:
        self.catalogue = catalogue
        loaded = SimpleNamespace(tokenizer=_Tokenizer(), window=8192, plain_template=False, sampling={})
        self.engine = PacedEngine(rate)
        self._pooled = SimpleNamespace(loaded=loaded, engine=self.engine, state="ready", stage="", remote=False)

    def list(self) -> list[dict[str, Any]]:
        return []

    def state(self) -> tuple[Any, ...]:
        return ()

    def get(self, _: str) -> Any:
        return self._pooled

    def ready(self, _: str) -> Any:
        return self._pooled

    def request(self, *_: str) -> Any:
        return self._pooled

    async def acquire(self, _: str) -> Any:
        await asyncio.sleep(0)
        return self._pooled

    def release(self, _: Any) -> None:
        return None

    def usage(self) -> dict[str, int]:
        return dict.fromkeys(("limit", "used", "parked_limit", "parked"), 0)

    def tidy(self) -> None:
        return None

    def on_progress(self, _: Any) -> None:
        return None

    def close(self) -> None:
        self.engine.close()


def main() -> None:
    at = sys.argv.index("--rate")
    rate = float(sys.argv[at + 1])
    service = Service(settings.parse(sys.argv[1:at] + sys.argv[at + 2 :]))
    pool: Any = PacedPool(service.catalogue, rate)
    service.pool = service.turns._pool = pool
    service.turns._idle.want = lambda *_: None  # type: ignore[method-assign]  # else its tokens count as an answer's
    # Its own work is not the service's: who measures may leave it out.
    (service.settings.data_dir / "stand-in").write_text(str(pool.engine.thread.native_id))
    launch(service)


if __name__ == "__main__":
    main()
