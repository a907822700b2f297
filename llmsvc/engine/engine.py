"""One thread that owns one model: schedule, forward, sample, deliver."""

import logging
import threading
from collections import deque
from typing import Any

from llmsvc.engine.detokenize import Detokenizer
from llmsvc.engine.request import FinishReason, GenerationRequest, TokenEvent
from llmsvc.engine.runner import Runner
from llmsvc.engine.sampling import make_generator, sample
from llmsvc.engine.scheduler import Plan, QueueFull, Scheduler, Sequence
from llmsvc.errors import BadRequest, Busy, Unavailable

log = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one loaded model.

    ``submit`` and ``cancel`` may be called from any thread; they only touch an inbox, which the engine's
    thread empties before each step. Everything else belongs to that thread.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, window: int, slots: int = 8, chunk: int = 256, max_waiting: int = 256
    ) -> None:
        self.window = window
        self._tokenizer = tokenizer
        self._device = model.device
        self._eos = _end_tokens(model, tokenizer)
        self._runner = Runner(model, slots)
        self._scheduler = Scheduler(slots, chunk, max_waiting)
        self._details: dict[str, _Detail] = {}
        self._inbox: deque[GenerationRequest | str] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._max_waiting = max_waiting
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request; its events arrive through ``request.deliver``.

        Raises BadRequest when the prompt leaves no room for an answer, Busy when the queue is full and
        Unavailable when the engine is closing.
        """
        if not request.prompt:
            raise BadRequest("The prompt is empty.")
        if len(request.prompt) >= self.window:
            raise BadRequest(
                f"This needs {len(request.prompt):,} tokens, but the model reads at most {self.window:,}. "
                "Shorten the message or choose a model with a longer context."
            )
        with self._wake:
            if self._closing:
                raise Unavailable("This model is being unloaded. Choose another one or load it again.")
            if self._scheduler.waiting + len(self._inbox) >= self._max_waiting:
                raise Busy("The model is busy with many other requests. Try again in a moment.")
            self._inbox.append(request)
            self._wake.notify()

    def cancel(self, request_id: str) -> None:
        """Stop a request before its next token. Its last event says ``cancelled``."""
        with self._wake:
            self._inbox.append(request_id)
            self._wake.notify()

    @property
    def running(self) -> int:
        return self._scheduler.running

    @property
    def queued(self) -> int:
        return self._scheduler.waiting

    def close(self) -> None:
        """Cancel everything, end the thread and drop the KV cache."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._runner.reset()

    def _run(self) -> None:
        try:
            self._runner.prefill(0, [0], 0)  # the first pass sets up kernels for a second; nobody should wait for it
            self._runner.reset()
        except Exception:
            log.exception("warm-up failed")
        while self._receive():
            for sequence in self._scheduler.take_cancelled():
                self._end(sequence, FinishReason.CANCELLED)
            plan = self._scheduler.plan()
            try:
                self._step(plan)
            except Exception as error:  # one failed step must not take the service down
                log.exception("engine step failed")
                self._runner.reset()
                for cached in self._scheduler.cached:
                    cached.clear()
                for sequence in self._scheduler.drain():
                    self._end(sequence, FinishReason.ERROR, f"The model failed: {error}")
        for sequence in self._scheduler.drain():
            self._end(sequence, FinishReason.CANCELLED)

    def _receive(self) -> bool:
        """Move the inbox to the scheduler, waiting while there is nothing to do. False when closing."""
        with self._wake:
            while not (self._inbox or self._scheduler.running or self._scheduler.waiting or self._closing):
                self._wake.wait()
            while self._inbox:
                item = self._inbox.popleft()
                if isinstance(item, str):
                    self._scheduler.cancel(item)
                    continue
                try:
                    self._scheduler.submit(item)
                    self._details[item.id] = _Detail(item, self._tokenizer, self._device)
                except QueueFull:  # submit() counted before; only a race can come here
                    item.deliver(TokenEvent(item.id, "", 0, FinishReason.ERROR, "The model is busy. Try again."))
            return not self._closing

    def _step(self, plan: Plan) -> None:
        for source, slot, tokens in plan.copies:
            self._runner.copy(source, slot, tokens)
        if plan.decode:
            lengths = [len(cached) for cached in self._scheduler.cached]
            logits = self._runner.decode({s.slot: s.tokens[-1] for s in plan.decode}, lengths)
            for row in plan.decode:
                self._scheduler.advance(row, len(row.tokens))
                self._choose(row, logits[row.slot])
        if (sequence := plan.prefill) is not None:
            last = self._runner.prefill(sequence.slot, sequence.tokens[plan.start : plan.end], plan.start)
            self._scheduler.advance(sequence, plan.end)
            if plan.end == len(sequence.tokens):
                self._choose(sequence, last)

    def _choose(self, sequence: Sequence, logits: Any) -> None:
        """Sample the next token of a sequence and deliver what it completes."""
        request, detail = sequence.request, self._details[sequence.request.id]
        token = sample(logits, request.sampling, detail.generator)
        sequence.tokens.append(token)
        if token in self._eos:
            return self._finish(sequence, FinishReason.STOP)
        text = detail.detokenizer.push(token)
        if detail.detokenizer.stopped:
            return self._finish(sequence, FinishReason.STOP, text)
        if sequence.generated >= request.sampling.max_tokens or len(sequence.tokens) >= self.window:
            return self._finish(sequence, FinishReason.LENGTH, text)
        request.deliver(TokenEvent(request.id, text, sequence.generated, cached_tokens=sequence.cached))
        return None

    def _finish(self, sequence: Sequence, reason: FinishReason, text: str = "") -> None:
        self._scheduler.finish(sequence)
        self._end(sequence, reason, text=text)

    def _end(self, sequence: Sequence, reason: FinishReason, error: str = "", text: str = "") -> None:
        detail = self._details.pop(sequence.request.id)
        text += detail.detokenizer.finish()
        sequence.request.deliver(
            TokenEvent(sequence.request.id, text, sequence.generated, reason, error, sequence.cached)
        )


class _Detail:
    """What a request needs beside its sequence."""

    def __init__(self, request: GenerationRequest, tokenizer: Any, device: Any) -> None:
        self.detokenizer = Detokenizer(tokenizer, request.sampling.stop)
        self.generator = make_generator(request.sampling, device)


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: the tokenizer's and those of the generation config."""
    ids = {tokenizer.eos_token_id}
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids.update(configured if isinstance(configured, list) else [configured])
    return frozenset(i for i in ids if i is not None)
