"""One model of the pool: on its way in, in memory, parked, or failed."""

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from llmsvc.errors import LlmsvcError
from llmsvc.models.loader import LoadedModel

SPEED_SECONDS = 5.0


@dataclass
class PooledModel:
    """Written only by its loading thread and under the pool's lock."""

    id: str
    quantization: str
    device: str
    state: str = "loading"
    """loading, ready, parked, failed or unloaded."""
    stage: str = "Waiting"
    done: int = 0
    total: int = 0
    bytes_per_second: float = 0.0
    """Of a stage that reads or writes bytes, over its last seconds."""
    error: LlmsvcError | None = None
    loaded: LoadedModel | None = None
    engine: Any = None
    used_at: float = field(default_factory=time.monotonic)
    ready: "Future[PooledModel]" = field(default_factory=Future)
    """Ends when the model is ready, or with the error that its loading ended with."""
    remote: bool = False
    """It is on other servers: it takes no room here, and nobody here loads or unloads it."""
    pinned: bool = False
    leases: int = 0
    """Turns that use it now, from before they ask for tokens until their end."""
    waiters: int = 0
    """Turns that wait for it."""
    leaving: bool = False
    """It goes as soon as nobody uses it, since another one has waited for long; who wants it now waits."""
    reserved: int = 0
    """Bytes that are kept for it while it loads."""
    moving: threading.Lock = field(default_factory=threading.Lock)
    """Held while it goes from a device to the host or back; not taken under the pool's lock."""
    _counted: tuple[float, int, float] = (0.0, 0, 0.0)
    _passed: deque[tuple[float, int]] = field(default_factory=deque)

    def tell(self, stage: str, done: int, total: int) -> None:
        """How far a stage of its loading is."""
        now, again = time.monotonic(), stage == self.stage and done >= self.done
        self.stage, self.done, self.total = stage, done, total
        if not again:
            self._passed.clear()
        self._passed.append((now, done))
        while now - self._passed[0][0] > SPEED_SECONDS:
            self._passed.popleft()
        since, before = self._passed[0]
        measured = total > 10**6 and now - since >= 1
        self.bytes_per_second = (done - before) / (now - since) if measured else 0.0

    @property
    def open(self) -> bool:
        """Whether it can be lent. What is on other servers always can: to ask them is the surest test."""
        return self.remote or (self.state == "ready" and not self.leaving)

    @property
    def answering(self) -> bool:
        return bool(self.leases or (self.engine and (self.engine.running or self.engine.queued)))

    @property
    def running(self) -> int:
        """Requests that it answers now."""
        return int(self.engine.running) if self.engine else 0

    @property
    def queued(self) -> int:
        """Requests that wait, for it or in it."""
        return (int(self.engine.queued) if self.engine else 0) + self.waiters

    @property
    def idle(self) -> bool:
        """Whether it may go."""
        return self.state == "ready" and not (self.pinned or self.answering or (self.waiters and not self.leaving))

    @property
    def aside(self) -> bool:
        """Whether it does not count among those that serve: parked, or waiting for room to come back."""
        return self.state == "parked" or (self.state == "loading" and self.engine is not None and not self.reserved)

    @property
    def kv_bytes(self) -> int:
        return int(self.engine.kv_bytes) if self.engine else 0

    @property
    def bytes(self) -> int:
        """What it takes of the memory for models that serve, or of that for parked ones."""
        return max(self.reserved, (self.loaded.memory_bytes if self.loaded else 0) + self.kv_bytes)

    def row(self) -> dict[str, Any]:
        """The row of ``/model_list``."""
        loaded, engine = self.loaded, self.engine
        return {
            "id": self.id,
            "state": self.state,
            "device": loaded.device if loaded else self.device,
            "dtype": loaded.dtype if loaded else "",
            "quantization": self.quantization,
            "memory_bytes": loaded.memory_bytes if loaded else 0,
            "kv_bytes": self.kv_bytes,
            "kv_tokens": engine.cached if engine else 0,
            "context": loaded.window if loaded else 0,
            "checkpoint": loaded.checkpoint if loaded else "none",
            "note": loaded.note if loaded else "",
            "served": getattr(engine, "served", ""),
            "plain_template": loaded.plain_template if loaded else False,
            "parked": self.state == "parked",
            "pinned": self.pinned,
            "running": self.running,
            "queued": self.queued,
            "tokens_per_second": self._rate(),
            "idle_seconds": 0.0 if self.answering else round(time.monotonic() - self.used_at, 1),
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
            "bytes_per_second": round(self.bytes_per_second),
            "error": str(self.error or ""),
        }

    def _rate(self) -> float:
        """Tokens per second since it was last asked for, over a second at least."""
        now, made = time.monotonic(), self.engine.tokens if self.engine else 0
        since, before, rate = self._counted
        if now - since >= 1:
            rate = round((made - before) / (now - since), 1) if since else 0.0
            self._counted = (now, made, rate)
        return rate
