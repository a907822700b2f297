"""Which models are in memory. Loads on a worker thread, one engine to each loaded model."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmsvc.errors import LlmsvcError, NotFound, Unavailable
from llmsvc.models.catalogue import Catalogue
from llmsvc.models.download import fetch
from llmsvc.models.loader import LoadedModel, load

log = logging.getLogger(__name__)


class _Cancelled(Exception):
    """Raised inside a progress call of a load that is no longer wanted."""


@dataclass
class PooledModel:
    """One model on its way in, in memory, or failed. Written only by its loading thread and the pool's lock."""

    id: str
    quantization: str
    device: str
    state: str = "loading"
    stage: str = "Waiting"
    done: int = 0
    total: int = 0
    error: LlmsvcError | None = None
    loaded: LoadedModel | None = None
    engine: Any = None
    used_at: float = field(default_factory=time.monotonic)
    ready: "Future[PooledModel]" = field(default_factory=Future)
    """Ends when the model is ready, or with the error that its loading ended with."""

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
            "context": loaded.window if loaded else 0,
            "plain_template": loaded.plain_template if loaded else False,
            "parked": False,
            "running": engine.running if engine else 0,
            "queued": engine.queued if engine else 0,
            "kv_tokens": engine.cached if engine else 0,
            "idle_seconds": round(time.monotonic() - self.used_at, 1),
            "stage": self.stage,
            "done": self.done,
            "total": self.total,
            "error": str(self.error or ""),
        }


class ModelPool:
    """Loads, lends and unloads models. All methods may be called from any thread."""

    def __init__(
        self, catalogue: Catalogue, device: str, compiled: Path | None = None, full_weights: bool = False
    ) -> None:
        """``compiled``: where compiled steps of models are kept; None to compile none."""
        self.catalogue = catalogue
        self._device, self._compiled, self._full_weights = device, compiled, full_weights
        self._models: dict[str, PooledModel] = {}
        self._lock = threading.Lock()
        self._listeners: list[Callable[[PooledModel], None]] = []

    def on_progress(self, listener: Callable[[PooledModel], None]) -> None:
        """Call ``listener`` on the loading thread at each step of each load."""
        self._listeners.append(listener)

    def list(self) -> list[dict[str, Any]]:
        with self._lock:
            return [pooled.row() for pooled in self._models.values()]

    def state(self) -> tuple[Any, ...]:
        """What a page shows of the models; equal while it need not be drawn again."""
        with self._lock:
            return tuple(
                (p.id, p.state, p.stage, p.done * 100 // (p.total or 1), p.engine.running if p.engine else 0)
                for p in self._models.values()
            )

    def get(self, model_id: str) -> PooledModel | None:
        with self._lock:
            return self._models.get(model_id)

    def ready(self, model_id: str) -> PooledModel | None:
        """The model, if it need not be waited for; it counts as used now."""
        pooled = self.get(model_id)
        if pooled is None or pooled.state != "ready":
            return None
        pooled.used_at = time.monotonic()
        return pooled

    def request(self, model_id: str, quantization: str = "none", device: str = "") -> PooledModel:
        """Start loading a model unless it is there or on its way. Returns at once.

        Raises BadRequest or NotFound for an id that can be no model.
        """
        entry = self.catalogue.entry(model_id)
        with self._lock:
            pooled = self._models.get(entry.id)
            if pooled is None or pooled.state == "failed":
                pooled = PooledModel(entry.id, quantization, device or self._device)
                self._models[entry.id] = pooled
                threading.Thread(target=self._load, args=(pooled,), name="load", daemon=True).start()
            return pooled

    async def acquire(self, model_id: str) -> PooledModel:
        """Wait until a model is ready, loading it if need be. Raises what its loading raised."""
        pooled = self.request(model_id)
        await asyncio.shield(asyncio.wrap_future(pooled.ready))
        pooled.used_at = time.monotonic()
        return pooled

    def unload(self, model_id: str) -> dict[str, int]:
        """Drop a model and its engine; ends its running answers. Raises NotFound."""
        with self._lock:
            pooled = self._models.pop(model_id, None)
        if pooled is None:
            raise NotFound(f"{model_id} is not loaded.")
        before = pooled.loaded.memory_bytes if pooled.loaded else 0
        self._release(pooled)
        return {"memory_before": before, "memory_after": 0}

    def close(self) -> None:
        """Unload everything."""
        with self._lock:
            models, self._models = list(self._models.values()), {}
        for pooled in models:
            self._release(pooled)

    def _release(self, pooled: PooledModel) -> None:
        with self._lock:
            pooled.state = "unloaded"
            if not pooled.ready.done():
                error = Unavailable(f"{pooled.id} was unloaded. Send the message again to load it.")
                pooled.ready.set_exception(error)
        if pooled.engine is not None:
            pooled.engine.close()
        pooled.engine = pooled.loaded = None
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    def _load(self, pooled: PooledModel) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            if pooled.state == "unloaded":
                raise _Cancelled
            pooled.stage, pooled.done, pooled.total = stage, done, total
            self._tell(pooled)

        try:
            folder = fetch(self.catalogue, self.catalogue.entry(pooled.id), progress)
            from llmsvc.engine import Engine  # torch comes with it, so not before the page is open

            loaded = load(folder, pooled.device, pooled.quantization, progress, full_weights=self._full_weights)
            with self._lock:  # an unload that came meanwhile wins
                if pooled.state == "unloaded":
                    return
                pooled.loaded = loaded
                pooled.engine = Engine(loaded.model, loaded.tokenizer, window=loaded.window, compiled=self._compiled)
                pooled.state = "ready"
                pooled.ready.set_result(pooled)
            gc.freeze()  # a collection that looks at all of torch stops every thread for a quarter of a second
        except _Cancelled:
            return
        except Exception as error:
            if not isinstance(error, LlmsvcError):
                log.exception("loading %s failed", pooled.id)
                error = Unavailable(f"{pooled.id} could not be loaded: {error}")
            with self._lock:
                if pooled.state == "unloaded":
                    return
                pooled.error, pooled.state = error, "failed"
                pooled.ready.set_exception(error)
        self._tell(pooled)

    def _tell(self, pooled: PooledModel) -> None:
        for listener in self._listeners:
            listener(pooled)
