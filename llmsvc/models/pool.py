"""Which models are in memory: loads, lends, parks and unloads them within a budget of bytes."""

import asyncio
import builtins
import gc
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from llmsvc.errors import BadRequest, Conflict, LlmsvcError, NotFound, Unavailable
from llmsvc.models import memory
from llmsvc.models.can_it_run import ELSEWHERE
from llmsvc.models.catalogue import REMOTE, Catalogue
from llmsvc.models.download import fetch
from llmsvc.models.headers import read
from llmsvc.models.loader import check_folder, guess_device, load
from llmsvc.models.pooled import PooledModel
from llmsvc.models.progress import Cancelled, Progress
from llmsvc.models.prospects import NOTHING, Prospects

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 5.0
"""How long a model waits for room before another one, that is always in use, has to go."""


@dataclass(frozen=True)
class Budget:
    """Bytes; 0 is a share of what is free when it is first asked for."""

    memory: int = 0
    """For models that serve, with their KV caches."""
    parked: int = 0
    """For models that had to go, and are kept in host memory as they were as long as nothing else needs it."""
    idle_seconds: float = 0.0
    """Models that nobody used for so long are unloaded; 0 is never."""


class ModelPool:
    """All methods may be called from any thread. One engine to each loaded model, one thread to each load.

    A model that is asked for and has no room waits until others are idle, those used longest ago go first. Nobody is
    interrupted: one that is always in use gets no new turns once another has waited for ``PATIENCE_SECONDS``, and all
    that wait for a model are answered before it goes again. So two that are used in turns do not push each other out
    at every message.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        device: str,
        compiled: Path | None = None,
        full_weights: bool = False,
        budget: Budget | None = None,
        habits: Callable[[str], dict[str, Any]] = lambda _: {},
    ) -> None:
        """``compiled``: where compiled steps of models are kept, and a kernel for their products; None to compile none.

        ``habits``: for a model's id, ``context`` (tokens that it reads at most) and ``keep_alive`` (minutes without use
        after which it goes, below 0 for never); 0 or nothing for what holds for all.
        """
        memory.one_heap()
        self.catalogue = catalogue
        self._device, self._compiled, self._full_weights = device, compiled, full_weights
        self._budget, self._habits = budget or Budget(), habits
        self._prospects = Prospects(catalogue, full_weights, kernel=compiled is not None)
        self._limits: dict[tuple[str, str], int] = {}
        self._models: dict[str, PooledModel] = {}
        self._arriving: builtins.list[PooledModel] = []
        self._changed = threading.Condition(threading.RLock())
        self._listeners: builtins.list[Callable[[PooledModel], None]] = []

    # What there is

    def on_progress(self, listener: Callable[[PooledModel], None]) -> None:
        """Call ``listener`` on the loading thread at each step of each load."""
        self._listeners.append(listener)

    def list(self) -> list[dict[str, Any]]:
        with self._changed:
            return [pooled.row() for pooled in self._models.values()]

    def state(self) -> tuple[Any, ...]:
        """What a page shows of the models; equal while it need not be drawn again."""
        with self._changed:
            return tuple(
                (p.id, p.state, p.stage, p.done * 100 // (p.total or 1), p.running, p.queued, p.pinned)
                for p in self._models.values()
            )

    def get(self, model_id: str) -> PooledModel | None:
        with self._changed:
            return self._models.get(model_id)

    def usage(self) -> dict[str, int]:
        """Bytes that serving models may take and do, the same for parked ones."""
        with self._changed:
            return {
                "limit": self._limit("memory"),
                "used": self._used(),
                "parked_limit": self._limit("parked"),
                "parked": self._used("parked"),
            }

    def forecast(self, model_id: str, quantization: str = "none", context: int = 0) -> dict[str, Any]:
        """The row of ``/model_forecast``, from headers alone. Raises BadRequest, NotFound or Unavailable."""
        entry, device = self.catalogue.entry(model_id), guess_device(self._device)
        if entry.remote:
            return {**NOTHING, **ELSEWHERE.row(), "free_bytes": memory.free_bytes(device), "fits": True, "evicts": []}
        seen = self._prospects.look(entry, device, quantization)
        if not seen.verdict.runs:
            free = memory.free_bytes(device)
            return {**NOTHING, **seen.verdict.row(), "free_bytes": free, "fits": False, "evicts": []}
        expected = self._prospects.forecast(seen.contents, device, quantization, context)
        bandwidth = self._prospects.bandwidth.measured(device)
        with self._changed:
            there = self._models.get(entry.id)
            own = there.bytes if there and there.state == "ready" else 0
            free = min(self._limit("memory") - self._used(), memory.free_bytes(device)) + own
            evicts = self._victims(expected.peak_bytes - free, keep=entry.id)
        return {
            **expected.row(),
            **seen.verdict.row(),
            "tokens_per_second": self._prospects.rate(seen.contents, device, quantization, bandwidth),
            "free_bytes": max(free, 0),
            "fits": evicts is not None,
            "evicts": [p.id for p in evicts or ()],
        }

    def catalogued(self) -> builtins.list[dict[str, Any]]:
        """What can be loaded: the rows of ``/model_catalog``, from the disk alone."""
        return self._prospects.catalogued(guess_device(self._device))

    def search(self, query: str) -> builtins.list[dict[str, Any]]:
        """What the hub finds: the rows of ``/model_search``. Raises Unavailable."""
        return self._prospects.searched(query, guess_device(self._device))

    def suggested(self) -> builtins.list[dict[str, Any]]:
        """Better models for this machine, as rows {id, bytes, why}; none where the hub does not answer."""
        device = guess_device(self._device)
        return self._prospects.suggested(min(self._limit("memory"), memory.free_bytes(device)), device)

    # Coming

    def request(self, model_id: str, quantization: str = "", device: str = "") -> PooledModel:
        """Start bringing a model unless it is there or on its way. Returns at once.

        A ``quantization`` or ``device`` that is not the one it has loads it anew. Raises BadRequest or NotFound for an
        id that can be no model, Conflict when it is in use as it is.
        """
        entry = self.catalogue.entry(model_id)
        with self._changed:
            if entry.remote:
                return self._there(entry.id)
            pooled = self._models.get(entry.id)
            old = None
            if pooled is not None and pooled.state != "failed" and self._differs(pooled, quantization, device):
                if pooled.answering or pooled.waiters:
                    raise Conflict(f"{entry.id} is in use. Wait for the end of its answers, or unload it first.")
                old = self._models.pop(entry.id)
                pooled = None
            if pooled is None or pooled.state == "failed":
                pooled = PooledModel(entry.id, quantization or "none", device or self._device)
                self._models[entry.id] = pooled
                self._start(pooled, old)
            elif pooled.state == "parked":
                self._comeback(pooled)
            return pooled

    def ready(self, model_id: str) -> PooledModel | None:
        """Lend the model, if it need not be waited for. Give it back with ``release``."""
        with self._changed:
            pooled = self._models.get(model_id)
            return self._lend(pooled) if pooled is not None and pooled.open else None

    async def acquire(self, model_id: str) -> PooledModel:
        """Lend a model when it is ready, loading it if need be. Give it back with ``release``.

        Raises what its loading raised.
        """
        while True:
            with self._changed:
                pooled = self.request(model_id)
                pooled.waiters += 1
            try:
                await asyncio.shield(asyncio.wrap_future(pooled.ready))
                with self._changed:
                    if pooled.open:
                        return self._lend(pooled)
            finally:
                with self._changed:
                    pooled.waiters -= 1
                    self._changed.notify_all()

    def release(self, pooled: PooledModel) -> None:
        """Give back what ``ready`` or ``acquire`` lent."""
        with self._changed:
            pooled.leases -= 1
            pooled.used_at = time.monotonic()
            self._changed.notify_all()

    async def load(self, model_id: str, quantization: str = "", device: str = "") -> AsyncIterator[dict[str, Any]]:
        """Load a model, telling of each change {stage, done, total}, then its row. Raises as loading does."""
        pooled, told = self.request(model_id, quantization, device), None
        coming = asyncio.shield(asyncio.wrap_future(pooled.ready))  # who goes away does not end it for others
        try:
            while not coming.done():
                now = {"stage": pooled.stage, "done": pooled.done, "total": pooled.total}
                if now != told:
                    told = now
                    yield now
                await asyncio.wait([coming], timeout=0.1)
            await coming
        finally:
            coming.cancel()
        yield pooled.row()

    def pin(self, model_id: str, pinned: bool = True) -> dict[str, Any]:
        """Keep a model in memory whatever happens, or no longer. Raises NotFound."""
        with self._changed:
            pooled = self._own(model_id)
            pooled.pinned = pinned
            if pinned and pooled.state == "parked":
                self._comeback(pooled)
            self._changed.notify_all()
            return pooled.row()

    def join(self, pooled: PooledModel) -> None:
        """Take in a model that is on other servers; ``leave`` sends it away."""
        with self._changed:
            self._models[pooled.id] = pooled

    # Going

    def leave(self, model_id: str) -> None:
        """Forget a model that no other server has any more."""
        with self._changed:
            pooled = self._models.pop(model_id)
        pooled.state = "unloaded"
        pooled.engine.close()

    def unload(self, model_id: str) -> dict[str, int]:
        """Drop a model and its engine; ends its answers, or its loading. Gives the process's memory in bytes.

        Raises NotFound.
        """
        with self._changed:
            pooled = self._own(model_id)
            del self._models[pooled.id]
            self._share()
        before = self._held(pooled)
        self._release(pooled)
        return {"memory_before": before, "memory_after": self._held(pooled)}

    def delete(self, model_id: str) -> int:
        """Delete the files that were downloaded or converted for a model; gives the bytes that are free again.

        Raises Conflict while it is loaded, and what ``Catalogue.remove`` raises.
        """
        entry = self.catalogue.entry(model_id)
        with self._changed:
            there = self._own(entry.id) if entry.remote else self._models.get(entry.id)
            if there is not None and there.state != "failed":
                raise Conflict(f"{entry.id} is loaded. Unload it first.")
        return self.catalogue.remove(entry)

    def tidy(self) -> None:
        """Unload what nobody used for long, and park what has outgrown the memory. Call about once a minute."""
        now = time.monotonic()
        with self._changed:
            resting = [p for p in self._models.values() if p.idle or p.state == "parked"]
            old = [p for p in resting if now - p.used_at > self._kept_seconds(p.id)]
            for pooled in old:
                del self._models[pooled.id]
            over = self._used() - self._limit("memory")
            to_do = self._park(self._victims(over) or []) if over > 0 else []
            self._share()
        for pooled in old:
            self._release(pooled)
        for act in to_do:
            act()

    def close(self) -> None:
        """Unload everything."""
        with self._changed:
            models, self._models = [*self._models.values()], {}
        for pooled in models:
            self._release(pooled)

    # Inside

    def _there(self, model_id: str) -> PooledModel:
        if pooled := self._models.get(model_id):
            return pooled
        if model_id.startswith(REMOTE):
            raise NotFound(
                f'No server has "{model_id.removeprefix(REMOTE)[:120]}" now. Choose another model, or have the admin '
                "add a server that has it on the Models page."
            )
        raise NotFound(f"{model_id} is not loaded.")

    def _own(self, model_id: str) -> PooledModel:
        """One that is in this process."""
        if (pooled := self._there(model_id)).remote:
            raise BadRequest(f"{model_id} is on another server, and nothing of it is here. Remove that server instead.")
        return pooled

    def _kept_seconds(self, model_id: str) -> float:
        """How long a model may be unused."""
        own = 60 * self._habits(model_id).get("keep_alive", 0)
        return inf if own < 0 else own or self._budget.idle_seconds or inf

    def _differs(self, pooled: PooledModel, quantization: str, device: str) -> bool:
        wanted = device and guess_device(device)
        is_ = pooled.loaded.device if pooled.loaded else guess_device(pooled.device)
        return bool(quantization and quantization != pooled.quantization) or bool(wanted and wanted != is_)

    def _lend(self, pooled: PooledModel) -> PooledModel:
        pooled.leases += 1
        pooled.used_at = time.monotonic()
        return pooled

    def _start(self, pooled: PooledModel, old: PooledModel | None = None) -> None:
        threading.Thread(target=self._bring, args=(pooled, old), name="load", daemon=True).start()

    def _comeback(self, pooled: PooledModel) -> None:
        """Bring a parked model back: at once where there is room."""
        self._renew(pooled)
        pooled.state = "loading"
        pooled.tell("Waiting for memory", 0, 0)
        on_host = not pooled.engine.moves
        if on_host and not self._arriving and self._used() + pooled.bytes <= self._limit("memory"):
            self._arrive(pooled)
        else:
            self._start(pooled)

    def _renew(self, pooled: PooledModel) -> None:
        if pooled.ready.done():
            pooled.ready = Future()

    def _arrive(self, pooled: PooledModel) -> None:
        pooled.reserved, pooled.leaving, pooled.state = 0, False, "ready"
        pooled.used_at = time.monotonic()
        pooled.ready.set_result(pooled)
        self._share()
        self._changed.notify_all()

    def _bring(self, pooled: PooledModel, old: PooledModel | None) -> None:
        """The loading thread."""
        if old is not None:
            self._release(old)
        failure: LlmsvcError | None = None
        arrived = False
        try:
            if pooled.engine is None:
                self._load(pooled)
            else:
                self._make_room(pooled, 0)
                with pooled.moving:
                    pooled.engine.unpark()
                with self._changed:
                    self._check(pooled)
                    self._arrive(pooled)
            arrived = True  # it may have been used, and parked again, by now
        except Cancelled:
            pass
        except LlmsvcError as error:
            failure = error.with_traceback(None)  # which would hold what was loaded so far
        except Exception as error:
            log.exception("loading %s failed", pooled.id)
            failure = Unavailable(f"{pooled.id} could not be loaded: {error}")
        with self._changed:
            if failure is not None and pooled.state != "unloaded":
                failure.__cause__ = failure.__context__ = None
                pooled.error, pooled.state = failure, "failed"
                pooled.ready.set_exception(failure)
            if not arrived:
                pooled.reserved = 0
                self._share()
            self._changed.notify_all()
        if not arrived:
            self._drop(pooled)
        self._tell(pooled)

    def _load(self, pooled: PooledModel) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            self._check(pooled)
            pooled.tell(stage, done, total)
            self._tell(pooled)

        progress("Looking for the files", 0, 0)
        folder = self._folder(pooled.id, progress)
        progress("Starting torch and transformers", 0, 0)
        with memory.importing():
            from llmsvc.engine import Engine  # torch comes with it, so not before the page is open

        context, device = self._habits(pooled.id).get("context", 0), guess_device(pooled.device)
        check_folder(folder)
        contents = read(folder)
        if contents.base:  # of an adapter
            contents = read(self._folder(contents.base, progress))
        self._make_room(pooled, self._prospects.forecast(contents, device, pooled.quantization).peak_bytes)
        loaded = load(
            folder,
            pooled.device,
            pooled.quantization,
            progress,
            full_weights=self._full_weights,
            context=context,
            kernels=self._compiled,
            resolve=partial(self._folder, progress=progress),
        )
        room = self._limit("memory") - self._used() + pooled.reserved - loaded.memory_bytes
        engine = Engine(  # not under the lock: it compares the model with itself, which takes some passes
            loaded.model,
            loaded.tokenizer,
            window=loaded.window,
            kv_bytes=max(room, 1) if self._budget.memory else 0,
            compiled=self._compiled,
        )
        with self._changed:  # an unload that came meanwhile wins
            wanted = pooled.state != "unloaded"
            if wanted:
                pooled.loaded, pooled.engine = loaded, engine
                self._arrive(pooled)
        if not wanted:
            engine.close()
            raise Cancelled
        gc.freeze()  # a collection that looks at all of torch stops every thread for a quarter of a second

    def _check(self, pooled: PooledModel) -> None:
        if pooled.state == "unloaded":
            raise Cancelled

    def _folder(self, model_id: str, progress: Progress) -> Path:
        """Where a model's files are, once they are here."""
        return fetch(self.catalogue, self.catalogue.entry(model_id), progress)

    def _make_room(self, pooled: PooledModel, needed: int) -> None:
        """Wait until ``needed`` bytes, or what the model has already, are free for it; park others.

        Raises Unavailable when it can never have them, Cancelled when it is not wanted any more.
        """
        since = time.monotonic()
        with self._changed:
            self._arriving.append(pooled)
            try:
                while (to_do := self._took_room(pooled, needed, since)) is None:
                    if pooled.stage != "Waiting for memory":
                        pooled.tell("Waiting for memory", 0, 0)
                        self._tell(pooled)
                    self._changed.wait(0.2)
                    self._check(pooled)
            finally:
                self._arriving.remove(pooled)
                self._share()
                if not self._arriving:
                    self._stay()
                self._changed.notify_all()
        for act in to_do:
            act()

    def _took_room(self, pooled: PooledModel, needed: int, since: float) -> builtins.list[Callable[[], None]] | None:
        """None while there is no room; else it is reserved, and there when what is returned was done, unlocked."""
        needed, limit = max(needed, pooled.bytes), self._limit("memory")
        pinned = sum(p.bytes for p in self._models.values() if p.pinned and p is not pooled and p.state == "ready")
        if needed > limit - pinned:
            raise Unavailable(
                f"{pooled.id} needs {memory.size(needed)}, but models may take {memory.size(limit)} here"
                + (f", of which pinned ones have {memory.size(pinned)}" if pinned else "")
                + ". Choose a smaller model, int8 or nf4, or start with more --memory."
            )
        if self._arriving[0] is not pooled:  # in the order in which they were asked for
            return None
        others = self._used()
        victims = self._victims(others + needed - limit, keep=pooled.id)
        if victims is None:
            if time.monotonic() - since > PATIENCE_SECONDS:
                self._send_away(others + needed - limit)
            return None
        pooled.reserved = needed
        return [*self._park(victims), *(partial(self._release, p) for p in self._free_host(pooled, needed))]

    def _share(self) -> None:
        """Let the caches of the models that serve grow into what is left, in equal parts. What they have they keep."""
        there = [p for p in self._models.values() if not (p.remote or p.aside or p.state == "failed")]
        free = max(0, self._limit("memory") - self._used())
        if any(not coming.reserved for coming in self._arriving):  # for it the room is
            free = 0
        elif len(there) == 1 and not self._budget.memory:  # as much as an engine that is alone takes by itself
            free = sys.maxsize
        for pooled in there:
            if pooled.state == "ready":
                pooled.engine.hold(pooled.kv_bytes + free // len(there))

    def _victims(self, missing: int, keep: str = "") -> builtins.list[PooledModel] | None:
        """The idle models that have to go for ``missing`` bytes, or None when that is not enough."""
        found: builtins.list[PooledModel] = []
        idle = (p for p in self._models.values() if p.idle and p.id != keep)
        for pooled in sorted(idle, key=lambda p: p.used_at):
            if missing <= 0:
                break
            missing -= pooled.bytes
            found.append(pooled)
        return None if missing > 0 else found

    def _send_away(self, missing: int) -> None:
        """Give no new turns to as many models as have to go, those used longest ago first."""
        there = [
            p for p in self._models.values() if p.state == "ready" and not p.pinned and (p.leaving or not p.waiters)
        ]
        for pooled in sorted(there, key=lambda p: (not p.leaving, p.used_at)):
            if missing <= 0:
                return
            missing -= pooled.bytes
            if not pooled.leaving:
                pooled.leaving = True
                self._renew(pooled)

    def _stay(self) -> None:
        """Nobody needs the room of those any more that were to leave."""
        for pooled in self._models.values():
            if pooled.state == "ready" and pooled.leaving:
                pooled.leaving = False
                pooled.ready.set_result(pooled)

    def _park(self, models: builtins.list[PooledModel]) -> builtins.list[Callable[[], None]]:
        """Park models while the host has room for those that are.

        Gives what is to be done without the lock before their memory is free.
        """
        gone, moved = [], []
        for pooled in models:
            waited_for = pooled.waiters > 0
            pooled.leaving, pooled.state = False, "parked"
            self._tell(pooled)
            if pooled.engine.moves and not pooled.engine.warm:  # somebody still computes with it
                gone.append(pooled)
                if waited_for:
                    pooled.ready.set_result(pooled)  # who waits finds it gone, and has it loaded anew
                continue
            if pooled.engine.moves:
                moved.append(pooled)
            if waited_for:  # by those who came while it was leaving
                self._comeback(pooled)
        parked = [p for p in self._parked() if p not in gone]
        over = sum(p.bytes for p in parked) - self._limit("parked")
        # A GPU's loses none of its texts for this: it is copied with all pages, used or not.
        while parked and over > sum(p.kv_bytes for p in parked if not p.engine.moves):
            gone.append(parked.pop(0))
            over -= gone[-1].bytes
        for pooled in gone:
            del self._models[pooled.id]
        acts = [partial(self._release, pooled) for pooled in gone]
        for pooled in parked:
            if over > 0 and pooled.kv_bytes and not pooled.engine.moves:
                acts.append(partial(self._trim, pooled, max(0, pooled.kv_bytes - over)))
                over -= pooled.kv_bytes
        return [*acts, *(partial(self._move, pooled) for pooled in moved if pooled not in gone)]

    def _trim(self, pooled: PooledModel, kv_bytes: int) -> None:
        """Rather forget texts that a parked model has read than the model."""
        with self._changed:
            engine = pooled.engine if pooled.state == "parked" else None  # it may be wanted again, or gone
        if engine is not None:
            try:
                engine.trim(kv_bytes)
            except Unavailable:
                pass  # it is being unloaded
            except Exception:
                log.warning("%s keeps what it has read", pooled.id, exc_info=True)

    def _move(self, pooled: PooledModel) -> None:
        """Bring a parked model to the host, or drop it where that fails."""
        try:
            with pooled.moving:
                with self._changed:
                    engine = pooled.engine if pooled.aside else None  # it may be wanted again, or gone
                if engine is not None:
                    engine.park()
        except Exception:
            log.warning("%s is not kept in memory", pooled.id, exc_info=True)
            with self._changed:
                if self._models.get(pooled.id) is pooled:
                    del self._models[pooled.id]
            self._release(pooled)

    def _free_host(self, pooled: PooledModel, needed: int) -> builtins.list[PooledModel]:
        """What was parked for longest goes when the machine itself runs out of memory."""
        if guess_device(pooled.device) != "cpu":
            return []
        missing = needed - (pooled.bytes if pooled.engine else 0) - memory.free_bytes()
        gone = []
        for parked in self._parked():
            if missing > 0:
                missing -= parked.bytes
                gone.append(self._models.pop(parked.id))
        return gone

    def _parked(self) -> builtins.list[PooledModel]:
        """Used longest ago first."""
        return sorted((p for p in self._models.values() if p.state == "parked"), key=lambda p: p.used_at)

    def _used(self, kind: str = "serving") -> int:
        return sum(p.bytes for p in self._models.values() if p.aside is (kind == "parked"))

    def _limit(self, kind: str) -> int:
        if given := getattr(self._budget, kind):
            return int(given)
        device, share = ("cpu", 0.15) if kind == "parked" else (guess_device(self._device), 0.8)
        if (kind, device) not in self._limits:
            self._limits[kind, device] = int(share * memory.free_bytes(device))
        return self._limits[kind, device]

    def _held(self, pooled: PooledModel) -> int:
        """What the process has in memory, on the device of this model."""
        device = guess_device(pooled.device)
        return memory.resident_bytes() if device == "cpu" else memory.device_bytes(device)

    def _release(self, pooled: PooledModel) -> None:
        """Free a model that the pool does not have any more."""
        with self._changed:
            loading = pooled.state == "loading"
            pooled.state = "unloaded"
            if not pooled.ready.done():
                error = Unavailable(f"{pooled.id} was unloaded. Send the message again to load it.")
                pooled.ready.set_exception(error)
            self._changed.notify_all()
        if not loading:
            self._drop(pooled)

    def _drop(self, pooled: PooledModel) -> None:
        """Free the memory."""
        engine, pooled.engine, pooled.loaded = pooled.engine, None, None
        if engine is not None:
            engine.close()
        del engine
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        memory.give_back()

    def _tell(self, pooled: PooledModel) -> None:
        for listener in self._listeners:
            listener(pooled)
