"""One thread that owns one model: schedule, forward, sample, deliver."""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from llmsvc.engine.compiled import CompiledStep
from llmsvc.engine.compute import at_once, compute
from llmsvc.engine.constraint import Constraint, Constraints
from llmsvc.engine.loop import Loop
from llmsvc.engine.outputs import Outputs
from llmsvc.engine.pace import LEAST, Pace
from llmsvc.engine.parking import HostCopy, held_tensors
from llmsvc.engine.request import FinishReason, GenerationRequest, TokenEvent
from llmsvc.engine.runner import Costs, Runner
from llmsvc.engine.runners import make_runner
from llmsvc.engine.scheduler import QueueFull, Scheduler
from llmsvc.engine.warmup import PagedWarmup, Warmup, keep_kernels
from llmsvc.errors import BadRequest, Busy, Unavailable

log = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one loaded model.

    ``submit`` and ``cancel`` may be called from any thread; they only touch an inbox, which the engine's
    thread empties before each step. Everything else belongs to that thread.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        window: int,
        slots: int = 0,
        chunk: int = 0,
        max_waiting: int = 256,
        kv_bytes: int = 0,
        compiled: Path | None = None,
        paged: bool | None = None,
    ) -> None:
        """``slots`` and ``chunk`` (tokens of prompts in a step): by default what suits the device and its speed.

        ``kv_bytes``: what the KV cache may take until ``hold``; by default a share of the memory that is there.
        ``compiled``: where compiled steps are kept; without it none is made. ``paged``: whether that cache is in pages;
        on a GPU it is.
        """
        self.window = window
        self._model = model
        self._do = compute if model.device.type == "cpu" else at_once
        budget = kv_bytes or _memory(model.device)
        self._runner: Runner = make_runner(model, slots, window, chunk, budget, paged, self._do)
        costs, late = self._runner.costs, self._runner.ahead
        paced = not chunk and not late
        slots, chunk = self._runner.slots, chunk or (2048 if late else LEAST)
        self._least, self._most = costs.of(window), sys.maxsize
        if self._runner.most_tokens:
            self._most = self._runner.most_tokens * costs.token
        elif not kv_bytes:
            self._most = max(budget, self._least)
        shared = {"shared_chunk": chunk // 4} if late else {}
        at_first = self._most if self._runner.most_tokens else max(budget, self._least)
        scheduler = self._scheduler = Scheduler(slots, chunk, max_waiting, at_first, costs=costs, **shared)
        self._constraints = Constraints(tokenizer, model.config.get_text_config().vocab_size)
        self._outputs = Outputs(tokenizer, _end_tokens(model, tokenizer), scheduler)
        sized = (lambda tokens: setattr(scheduler, "chunk", tokens)) if paced else None
        self._pace = Pace(window, sized)
        self._loop = Loop(self._runner, scheduler, self._outputs, self._pace, window, self._do)
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = self._asked = False
        self._max_waiting = max_waiting
        self._followed = threading.Event()
        self._parked: HostCopy | None = None
        if compiled and late:
            keep_kernels(compiled)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._warmup: Warmup | PagedWarmup | None = None
        if compiled and late:
            self._warmup = PagedWarmup(model, self._follows, self._record)
        elif compiled and self._runner.compiles:
            self._warmup = Warmup(model, slots, compiled, self._use, lambda: self.running + self.queued)

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request; its events arrive through ``request.deliver``.

        Raises BadRequest when the prompt leaves no room for an answer or its grammar cannot be followed, Busy when the
        queue is full and Unavailable when the engine is closing.
        """
        if not request.prompt:
            raise BadRequest("The prompt is empty.")
        if len(request.prompt) >= self.window:
            raise BadRequest(
                f"This needs {len(request.prompt):,} tokens, but the model reads at most {self.window:,}. "
                "Shorten the message or choose a model with a longer context."
            )
        constraint = self._constraints.of(request.sampling)
        with self._wake:
            if self._closing:
                raise Unavailable("This model is being unloaded. Choose another one or load it again.")
            if self._scheduler.waiting + len(self._inbox) >= self._max_waiting:
                raise Busy("The model is busy with many other requests. Try again in a moment.")
            self._asked = True
            self._inbox.append(lambda: self._accept(request, constraint))
            self._wake.notify()

    def cancel(self, request_id: str) -> None:
        """Stop a request before its next token. Its last event says ``cancelled``."""
        self._put(lambda: self._scheduler.cancel(request_id))

    @property
    def tokens(self) -> int:
        """Made since the start."""
        return self._loop.chooser.tokens

    @property
    def reading(self) -> float:
        """Tokens of prompts per second, lately; 0 before any was read, and on a GPU, where it is no matter."""
        return self._pace.reading

    @property
    def running(self) -> int:
        return self._scheduler.running

    @property
    def queued(self) -> int:
        return self._scheduler.waiting

    @property
    def cached(self) -> int:
        """Tokens in the KV cache."""
        return sum(map(len, self._scheduler.cached))

    @property
    def kv_bytes(self) -> int:
        """What the KV cache holds, of running and of ended sequences, with states and their snapshots."""
        return self._scheduler.held

    @property
    def costs(self) -> Costs:
        """What a token and a chat take in the KV cache."""
        return self._runner.costs

    @property
    def served(self) -> str:
        """ "together": answers are computed in one pass; "one at a time": each by itself."""
        return "together" if self._runner.together else "one at a time"

    @property
    def compiled(self) -> set[str]:
        """The kinds of steps that are compiled."""
        return set(self._runner.compiled)

    @property
    def warm(self) -> bool:
        """Whether everything that can be compiled is."""
        return self._warmup is None or self._warmup.over

    @property
    def moves(self) -> bool:
        """Whether ``park`` frees the device's memory; what is on the host stays where it is."""
        return self._runner.moves

    def trim(self, kv_bytes: int) -> None:
        """Have the KV cache hold no more than ``kv_bytes`` besides what runs; what was used longest ago goes.

        Raises Unavailable when the engine is closing.
        """
        self._ask(lambda: self._trim(kv_bytes))

    def hold(self, kv_bytes: int) -> None:
        """Let the KV cache grow to so many bytes, or to one text of the window, from the next step on."""
        budget = min(max(kv_bytes, self._least), self._most)
        self._put(lambda: self._scheduler.limit(budget))

    def park(self) -> None:
        """Keep weights and KV cache in host memory until ``unpark``, once it is warm. Nobody may ask meanwhile.

        Raises what ``HostCopy`` raises, and Unavailable when the engine is closing.
        """
        if self.moves:
            self._ask(self._leave)

    def unpark(self) -> None:
        """Be as before. Raises torch.OutOfMemoryError, and is of no use then; and as ``park``."""
        if self._parked is not None:
            self._ask(self._parked.back)
            self._parked = None

    def close(self) -> None:
        """Cancel everything, end the threads and drop the KV cache."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._runner.plain()
        if self._warmup is not None:  # not before: it frees the steps that the thread may be taking
            self._warmup.close()
        self._runner.reset()
        if self._parked is not None:
            self._parked.drop()

    def _put(self, action: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(action)
            self._wake.notify()

    def _ask(self, action: Callable[[], None]) -> None:
        """Have the engine's thread do something between two steps, and wait for it."""
        done: Future[None] = Future()

        def act() -> None:
            try:
                action()
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

        with self._wake:
            if self._closing:
                raise Unavailable("This model is being unloaded.")
            self._put(act)
        done.result()

    def _trim(self, kv_bytes: int) -> None:
        for slot in self._scheduler.trim(kv_bytes):
            self._runner.drop(slot)

    def _leave(self) -> None:
        self._parked = HostCopy([*held_tensors(self._model), *self._runner.at_rest()])

    def _use(self, steps: dict[str, CompiledStep]) -> None:
        self._put(lambda: self._runner.use(steps))

    def _follows(self) -> bool:
        """Wait until it is known whether many slots can be computed at once."""
        self._followed.wait()
        return self._runner.follows and not self._closing

    def _record(self) -> None:
        self._put(lambda: self._runner.use({"recorded": True}))

    def _accept(self, request: GenerationRequest, constraint: Constraint | None) -> None:
        try:
            self._scheduler.submit(request)
            self._outputs.begin(request, constraint)
        except QueueFull:  # submit() counted before; only a race can come here
            request.deliver(TokenEvent(request.id, "", 0, FinishReason.ERROR, Busy("The model is busy. Try again.")))

    def _run(self) -> None:
        try:
            self._do(self._runner.begin)
            self._do(self._runner.prefill, 0, [0], 0)  # this sets up kernels for a second: nobody should wait for it
            if not self._runner.ahead:
                self._pace.measure(lambda length: self._do(self._speed, length), lambda: self._asked)
            self._runner.drop(0)  # it knows now what its cache looks like, which compiled steps do not tell
        except Exception:
            log.exception("warm-up failed")
        finally:
            self._followed.set()
        while self._receive():
            self._loop.turn()
        self._loop.close()

    def _speed(self, length: int) -> float:
        """Tokens of a prompt per second."""
        began = time.perf_counter()
        self._runner.prefill(0, [0] * length, 0)
        return length / (time.perf_counter() - began)

    def _receive(self) -> bool:
        """Do what the inbox says, waiting while there is nothing to do. False when closing."""
        with self._wake:
            while not (self._inbox or self._scheduler.running or self._scheduler.waiting or self._closing):
                self._wake.wait()
            while self._inbox:
                self._inbox.popleft()()
            return not self._closing


def _memory(device: Any) -> int:
    """Bytes for the KV cache: a quarter of the machine's memory, or most of what a GPU has left."""
    if device.type == "cuda":
        return int(0.8 * torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (ValueError, OSError, AttributeError):
        return 4 * 2**30


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: the tokenizer's and those of the generation config."""
    ids = {tokenizer.eos_token_id}
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids.update(configured if isinstance(configured, list) else [configured])
    return frozenset(i for i in ids if i is not None)
