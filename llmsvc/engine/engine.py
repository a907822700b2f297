"""One thread that owns one model: schedule, forward, sample, deliver."""

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmsvc.engine.compiled import CHUNK, CompiledStep
from llmsvc.engine.compute import compute
from llmsvc.engine.constraint import Constraint, Constraints
from llmsvc.engine.detokenize import Detokenizer
from llmsvc.engine.lookup import Lookup
from llmsvc.engine.parking import HostCopy, held_tensors
from llmsvc.engine.request import FinishReason, GenerationRequest, TokenEvent, TokenLogprob
from llmsvc.engine.runner import Costs, Runner
from llmsvc.engine.runners import make_runner
from llmsvc.engine.sampling import Draw, make_dice, penalized, sent
from llmsvc.engine.scheduler import PENDING, Chunk, Plan, QueueFull, Scheduler, Sequence
from llmsvc.engine.warmup import PagedWarmup, Warmup, keep_kernels
from llmsvc.errors import BadRequest, Busy, LlmsvcError, Unavailable

log = logging.getLogger(__name__)

_TIMED, _QUICK = 128, 300.0
"""Tokens: what is shorter says little of how fast prompts are read. And tokens per second."""
_STEP_SECONDS, _LEAST = 2.0, 64
"""How long a prompt's piece may take, for who stops waits for its end; and how many tokens it has at least."""
_UNSURE = 16
"""Tokens behind one that was drawn from more than the likeliest, for which that is likely to happen again."""


@dataclass(frozen=True)
class _Flight:
    """Tokens that are being computed, of sequences that have ``PENDING`` in their ``places``."""

    rows: tuple[Sequence, ...]
    places: tuple[int, ...]
    draw: Draw
    logits: torch.Tensor


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
        self._tokenizer = tokenizer
        self._model = model
        self._eos = _end_tokens(model, tokenizer)
        self._do = compute if model.device.type == "cpu" else _at_once
        budget = kv_bytes or _memory(model.device)
        self._runner: Runner = self._do(make_runner, model, slots, window, chunk, budget, paged)
        costs, self._late = self._runner.costs, self._runner.ahead
        self._paced = not chunk and not self._late
        slots, chunk = self._runner.slots, chunk or (2048 if self._late else _LEAST)
        self._least, self._most = costs.of(window), sys.maxsize
        if self._runner.most_tokens:
            self._most = self._runner.most_tokens * costs.token
        elif not kv_bytes:
            self._most = max(budget, self._least)
        shared = {"shared_chunk": chunk // 4} if self._late else {}
        at_first = self._most if self._runner.most_tokens else max(budget, self._least)
        self._scheduler = Scheduler(slots, chunk, max_waiting, at_first, costs=costs, **shared)
        self._constraints = Constraints(tokenizer, model.config.get_text_config().vocab_size)
        self._details: dict[str, _Detail] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = self._asked = False
        self.tokens = 0
        """Made since the start."""
        self.reading = 0.0
        """Tokens of prompts per second, lately; 0 before any was read, and on a GPU, where it is no matter."""
        self._timed = False
        """Whether a piece was read that is long enough to say it."""
        self._flight: _Flight | None = None
        self._untold: deque[tuple[Sequence, int, int, FinishReason | None]] = deque()
        """Chosen tokens whose text is to be delivered: how many there were with it, and why it is the last."""
        self._max_waiting = max_waiting
        self._followed = threading.Event()
        self._parked: HostCopy | None = None
        if compiled and self._late:
            keep_kernels(compiled)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        self._warmup: Warmup | PagedWarmup | None = None
        if compiled and self._late:
            self._warmup = PagedWarmup(model, self._follows, self._record)
        elif compiled and self._runner.together:
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
            self._details[request.id] = _Detail(request, self._tokenizer, constraint)
        except QueueFull:  # submit() counted before; only a race can come here
            request.deliver(TokenEvent(request.id, "", 0, FinishReason.ERROR, Busy("The model is busy. Try again.")))

    def _run(self) -> None:
        try:
            self._do(self._runner.begin)
            self._do(self._runner.prefill, 0, [0], 0)  # this sets up kernels for a second: nobody should wait for it
            if not self._late:
                self._measure()
            self._runner.drop(0)  # it knows now what its cache looks like, which compiled steps do not tell
        except Exception:
            log.exception("warm-up failed")
        finally:
            self._followed.set()
        while self._receive():
            if self._scheduler.cancelling or not self._goes_ahead():
                self._land()
            if cancelled := self._scheduler.take_cancelled():
                self._tell()
            for sequence in cancelled:
                if sequence.request.id in self._details:
                    self._end(sequence, FinishReason.CANCELLED)
            self._do(self._step, self._scheduler.plan())
            if not self._scheduler.running:  # no step follows, during which it could be told
                self._land()
                self._tell()
        self._land()
        self._tell()
        for sequence in self._scheduler.drain():
            self._end(sequence, FinishReason.CANCELLED)

    def _measure(self) -> None:
        """How fast it reads: by a few tokens, and where those took no time by more. Who waits already is not kept."""
        for length in (min(_TIMED // 4, self.window), min(_TIMED, self.window)):
            if self._asked or 0 < self.reading < _QUICK:
                return
            self._reads(self._do(self._speed, length))

    def _speed(self, length: int) -> float:
        """Tokens of a prompt per second."""
        began = time.perf_counter()
        self._runner.prefill(0, [0] * length, 0)
        return length / (time.perf_counter() - began)

    def _reads(self, speed: float) -> None:
        """Have a prompt's pieces fit the speed at which it is read."""
        self.reading = speed
        if self._paced:
            most = max(_LEAST, min(CHUNK, int(speed * _STEP_SECONDS)))
            self._scheduler.chunk = 1 << most.bit_length() - 1

    def _receive(self) -> bool:
        """Do what the inbox says, waiting while there is nothing to do. False when closing."""
        with self._wake:
            while not (self._inbox or self._scheduler.running or self._scheduler.waiting or self._closing):
                self._wake.wait()
            while self._inbox:
                self._inbox.popleft()()
            return not self._closing

    def _step(self, plan: Plan) -> None:
        """One failed step must not take the service down, nor one failing request the others."""
        try:
            for copy in plan.copies:
                self._runner.copy(*copy)
            self._runner.forget(plan.forgotten)
            for slot in plan.dropped:
                self._runner.drop(slot)
        except Exception as error:  # what the cache holds is not known any more
            self._land()
            log.error("copying in the KV cache failed", exc_info=error)
            self._runner.reset()
            return self._scheduler.forget()
        together = self._together(plan)
        alone = [chunk for chunk in plan.prefill if not any(chunk is other for other in together)]
        try:
            if plan.decode or together:
                self._decode(plan.decode, tuple(together))
            else:
                self._land()
        except Exception as error:
            self._land()
            if self._shrunk(error):
                return None
            alone = list(plan.prefill)
            log.error("a step failed; its %d rows are tried one by one", len(plan.decode), exc_info=error)
            self._by_themselves(plan.decode)
        for chunk in alone:
            for last_try in (False, True):  # the first may have been a compiled step, which is not taken any more
                try:
                    self._prefill(chunk)
                    break
                except Exception as error:
                    self._land()
                    if self._shrunk(error):
                        return None
                    log.error("a prompt failed", exc_info=error)
                    if last_try:
                        self._fail(chunk.sequence, error)
        return None

    def _together(self, plan: Plan) -> list[Chunk]:
        """Which pieces of prompts go along in one pass."""
        short = [chunk for chunk in plan.prefill if self._runner.short(chunk.end - chunk.start, chunk.start)]
        if self._late:
            return short
        # A CPU's passes are long: who has been read waits for no piece of a text that has not.
        joining = [chunk for chunk in short if chunk.last] or short
        guesses = len(plan.decode) == 1 and self._guess(plan.decode[0])
        return joining if len(plan.decode) + len(joining) > 1 and not guesses else []

    def _decode(self, rows: tuple[Sequence, ...], chunks: tuple[Chunk, ...] = ()) -> None:
        """A token of each of ``rows``; and ``chunks`` of prompts, where the runner takes both together."""
        if self._flight and any(row.tokens[-1] != PENDING for row in rows):
            self._land()
            rows = tuple(filter(self._goes_on, rows))
            if not rows and not chunks:
                return None
        flight = self._flight
        if not flight and len(rows) == 1 and not chunks and (guess := self._guess(rows[0])):
            return self._verify(rows[0], guess)
        lengths = [len(cached) for cached in self._scheduler.cached]
        rows = tuple(sorted(rows, key=lambda row: row.slot))
        last = {row.slot: row.tokens[-1] for row in rows}
        pieces = [(c.sequence.slot, c.sequence.tokens[c.start : c.end], c.start) for c in chunks]
        began = time.perf_counter()
        logits = self._runner.decode(last, lengths, pieces, _ids(flight, rows) if flight and rows else None)
        if pieces:
            read = sum(len(tokens) for _, tokens, _ in pieces)
            self._took_time(len(rows) + read, time.perf_counter() - began)
        self._tell()
        for row in rows:
            self._scheduler.advance(row, len(row.tokens))
        for chunk in chunks:
            self._scheduler.advance(chunk.sequence, chunk.end)
        chosen = [n for n, row in enumerate(rows) if row.request.id in self._details]
        chosen += [len(rows) + n for n, chunk in enumerate(chunks) if chunk.last]
        if not self._late and chosen == list(range(len(chosen))):
            logits = logits[: len(chosen)]
        elif len(chosen) < len(logits):
            logits = logits[sent(chosen, logits.device, torch.long)]  # there may be none
        both = [*rows, *(chunk.sequence for chunk in chunks)]
        return self._choose(tuple(both[n] for n in chosen), logits)

    def _by_themselves(self, rows: tuple[Sequence, ...]) -> None:
        """The next token of each, alone: they failed together."""
        for row in rows:
            if not self._goes_on(row) or row.slot < 0:
                continue
            if not self._runner.guesses:  # a state that half a step has changed cannot be taken back
                self._scheduler.restart(row)
                continue
            row.computed = len(row.tokens) - 1  # it may have been counted already
            del self._scheduler.cached[row.slot][row.computed :]
            try:
                self._decode((row,))
                flight, self._flight = self._flight, None
                if flight:
                    self._take_all(flight)
            except Exception as error:
                self._flight = None
                self._fail(row, error)

    def _goes_ahead(self) -> bool:
        """Whether the next step can be launched before the tokens of the last are known."""
        if self._flight is None or not self._runner.follows:
            return False
        rows, unsure = self._scheduler.decoding, 0
        for row in rows:
            if row.tokens[-1] != PENDING or self._needs_tokens(row) or self._full(row, row.generated):
                return False
            unsure += row.generated < self._details[row.request.id].unsure_until
        if 4 * unsure > len(rows) or not rows:
            return False
        return len(rows) != 1 or not self._details[rows[0].request.id].lookup.guess(rows[0].tokens[:-1])

    def _goes_on(self, row: Sequence) -> bool:
        """Whether more tokens are wanted of it."""
        detail = self._details.get(row.request.id)
        return detail is not None and not detail.over

    def _guess(self, row: Sequence) -> list[int]:
        """What may come next, as far as there is room for it."""
        if not self._runner.guesses:
            return []
        room = min(self.window - len(row.tokens), row.request.sampling.max_tokens - row.generated - 1)
        return self._details[row.request.id].lookup.guess(row.tokens)[: max(room, 0)]

    def _verify(self, row: Sequence, guess: list[int]) -> None:
        """Choose a token behind the last one and behind each guessed one, as long as the guesses are right."""
        detail, before = self._details[row.request.id], len(row.tokens)
        logits = self._runner.prefill(row.slot, [row.tokens[-1], *guess], before - 1, len(guess) + 1)
        self._tell()
        if row.request.id not in self._details:
            return self._scheduler.advance(row, before)
        for number, scores in enumerate(logits):
            self._scheduler.advance(row, len(row.tokens))
            self._choose((row,), scores[None], ahead=False)
            if not self._goes_on(row) or number == len(guess) or row.tokens[-1] != guess[number]:
                break
        return detail.lookup.learn(number, len(row.tokens))

    def _prefill(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        ends, tokens = chunk.last, sequence.tokens[chunk.start : chunk.end]
        began = time.perf_counter()
        last = self._runner.prefill(sequence.slot, tokens, chunk.start, int(ends or self._late))
        self._took_time(len(tokens), time.perf_counter() - began)
        self._tell()
        self._scheduler.advance(sequence, chunk.end)
        if chunk.kept:
            self._runner.snapshot(sequence.slot, self._scheduler.keep(chunk))
        if ends:
            self._choose((sequence,), last)

    def _took_time(self, tokens: int, seconds: float) -> None:
        """Notice on a CPU how fast it reads."""
        speed, long = tokens / seconds, tokens >= _TIMED
        if not self._late and (long or speed > self.reading):  # in small pieces it reads no slower
            self._reads(self.reading + (speed - self.reading) * (0.3 if self._timed else 1.0))
            self._timed = self._timed or long

    def _shrunk(self, error: Exception) -> bool:
        """Whether this was for want of memory, and there is some now."""
        full = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not (full and self._scheduler.shrink()):
            return False
        log.warning("out of memory: the KV cache is made smaller")
        self._runner.reset()
        self._scheduler.forget()
        return True

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        self._tell()
        if sequence.request.id not in self._details:
            return
        if sequence.slot >= 0:
            self._scheduler.cached[sequence.slot].clear()
        self._scheduler.finish(sequence)
        if PENDING in sequence.tokens:
            del sequence.tokens[sequence.tokens.index(PENDING) :]
        self._end(sequence, FinishReason.ERROR, Unavailable(f"The model failed: {error}"))

    def _choose(self, rows: tuple[Sequence, ...], logits: torch.Tensor, *, ahead: bool = True) -> None:
        """Draw the next token of each sequence, from logits of shape (rows, vocabulary); deliver what was drawn before.

        And these as well, where the next step cannot do without, or is not to (``ahead``).
        """
        before, self._flight = self._flight, None
        flight = None
        try:
            flight = self._draw(rows, logits)
            if ahead and self._late and flight and not any(map(self._needs_tokens, flight.rows)):
                self._flight, flight = flight, None
        finally:
            for one in (before, flight):
                if one:
                    self._take_all(one)
        if before and self._flight:  # what comes after them is being computed
            self._tell()

    def _draw(self, rows: tuple[Sequence, ...], logits: torch.Tensor) -> _Flight | None:
        left, shaped = list(range(len(rows))), logits
        for number, row in enumerate(rows):
            if not self._needs_tokens(row):
                continue
            own = logits[number]
            try:
                changed = self._details[row.request.id].shaped(own, row.tokens)
            except Exception as error:  # the other rows go on
                log.error("no token could be chosen", exc_info=error)
                self._fail(row, error)
                left.remove(number)
                continue
            if changed is not own:
                shaped = logits.to(torch.float32, copy=True) if shaped is logits else shaped
                shaped[number] = changed
        if not left:
            return None
        if len(left) < len(rows):
            logits, shaped = (one[sent(left, one.device)] for one in (logits, shaped))
        drawn = tuple(rows[n] for n in left)
        keys = [self._details[row.request.id].key(row.generated) for row in drawn]
        draw = Draw(shaped, [row.request.sampling for row in drawn], keys)
        places = tuple(len(row.tokens) for row in drawn)
        for row in drawn:
            row.tokens.append(PENDING)
        return _Flight(drawn, places, draw, logits)

    def _needs_tokens(self, row: Sequence) -> bool:
        return self._details[row.request.id].needs_tokens

    def _land(self) -> None:
        """Take what is still being computed."""
        flight, self._flight = self._flight, None
        try:
            if flight:
                self._take_all(flight)
        except Exception as error:
            if flight and not self._shrunk(error):
                log.error("drawing failed; its %d rows are tried one by one", len(flight.rows), exc_info=error)
                self._by_themselves(flight.rows)

    def _take_all(self, flight: _Flight) -> None:
        """Take the tokens of a step once they are known. Raises what drawing does; they can be drawn again then."""
        try:
            tokens = flight.draw.tokens()
        except Exception:
            for row, place in zip(flight.rows, flight.places, strict=True):
                del row.tokens[place:]
            raise
        for number, (row, place, token) in enumerate(zip(flight.rows, flight.places, tokens, strict=True)):
            if self._goes_on(row) and place < len(row.tokens):  # the one before it may have been the last, or another
                if number in flight.draw.anew:
                    self._go_back(row, place)
                self._take(row, place, token, flight.logits, number)

    def _go_back(self, row: Sequence, place: int) -> None:
        """The next step was launched with another token than there is now: have it computed again."""
        self._details[row.request.id].unsure_until = row.generated + _UNSURE
        if place + 1 < len(row.tokens):
            del row.tokens[place + 1 :]
            row.computed = place
            if row.slot >= 0:
                del self._scheduler.cached[row.slot][place:]

    def _full(self, sequence: Sequence, generated: int) -> bool:
        length = len(sequence.request.prompt) + generated
        return generated >= sequence.request.sampling.max_tokens or length >= self.window

    def _take(self, sequence: Sequence, place: int, token: int, logits: torch.Tensor, number: int) -> None:
        detail = self._details[sequence.request.id]
        if token < 0:
            return self._fail(sequence, ValueError("its numbers are no probabilities"))
        try:
            detail.took(token, logits, number)
        except Exception as error:
            log.error("a token could not be taken", exc_info=error)
            return self._fail(sequence, error)
        sequence.tokens[place] = token
        if sequence.slot >= 0 and place < len(cached := self._scheduler.cached[sequence.slot]):
            cached[place] = token
        self.tokens += 1
        reason, generated = None, place + 1 - len(sequence.request.prompt)
        if token in self._eos or detail.complete:
            reason = FinishReason.STOP
        elif self._full(sequence, generated):
            reason = FinishReason.LENGTH
        if reason is not None:
            detail.over = True
            del sequence.tokens[place + 1 :]
            self._scheduler.finish(sequence)
        self._untold.append((sequence, token, generated, reason))
        if not self._late:
            self._tell()
        return None

    def _tell(self) -> None:
        """Deliver the text of what was chosen. A GPU computes the next step meanwhile; of that, a row which ends here
        at a stop string is not taken any more."""
        while self._untold:
            sequence, token, generated, reason = self._untold.popleft()
            request, detail = sequence.request, self._details.get(sequence.request.id)
            if detail is None:  # it has ended at a stop string
                continue
            text = "" if token in self._eos else detail.detokenizer.push(token)
            if detail.detokenizer.stopped:
                if reason is None:
                    self._scheduler.finish(sequence)
                reason = FinishReason.STOP
            if reason is not None:
                self._end(sequence, reason, text=text, generated=generated)
            else:
                logprobs = detail.take_logprobs(1)
                request.deliver(TokenEvent(request.id, text, generated, None, None, sequence.cached, logprobs))

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: LlmsvcError | None = None,
        text: str = "",
        generated: int | None = None,
    ) -> None:
        detail = self._details.pop(sequence.request.id)
        text += detail.detokenizer.finish()
        stop, logprobs = detail.detokenizer.stopped, detail.take_logprobs(1)
        made = sequence.generated if generated is None else generated
        sequence.request.deliver(
            TokenEvent(sequence.request.id, text, made, reason, error, sequence.cached, logprobs, stop)
        )


class _Detail:
    """What a request needs beside its sequence."""

    def __init__(self, request: GenerationRequest, tokenizer: Any, constraint: Constraint | None) -> None:
        self._params, self._tokenizer, self._constraint = request.sampling, tokenizer, constraint
        self.detokenizer = Detokenizer(tokenizer, request.sampling.stop)
        self._dice, self._keys = make_dice(request.sampling), list[int]()
        self.lookup = Lookup()
        self._logprobs: list[TokenLogprob] = []
        self.complete = self.over = False
        self.unsure_until = 0
        """Up to which of its tokens it is likely that they are others than what a step ahead of them took."""

    @property
    def needs_tokens(self) -> bool:
        """Whether what is chosen, or told of it, hangs on the tokens before or on the logits."""
        params = self._params
        return self._constraint is not None or params.repetition_penalty != 1 or params.logprobs is not None

    def key(self, number: int) -> int:
        """What decides the draw of token ``number`` of the answer, however often it is drawn."""
        while len(self._keys) <= number:
            self._keys.append(self._dice.getrandbits(62))
        return self._keys[number]

    def shaped(self, logits: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        """Logits, of shape (vocabulary,), of what may come behind ``tokens``; the same where nothing changes them."""
        if self._params.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(tokens)), device=logits.device)
            logits = penalized(logits.float(), self._params.repetition_penalty, seen)
        return logits if self._constraint is None else self._constraint.allowed(logits)

    def took(self, token: int, logits: torch.Tensor, row: int) -> None:
        """Record what was chosen, and from what row of which logits."""
        if self._constraint is not None:
            self.complete = self._constraint.push(token)
        if self._params.logprobs is not None:
            self._logprobs.append(self._logprob(logits[row], token, self._params.logprobs))

    def take_logprobs(self, most: int) -> tuple[TokenLogprob, ...]:
        taken, self._logprobs = tuple(self._logprobs[:most]), self._logprobs[most:]
        return taken

    def _logprob(self, logits: torch.Tensor, token: int, most: int) -> TokenLogprob:
        found = logits.float().log_softmax(-1)
        values, ids = found.topk(most)
        top = zip(ids.tolist(), values.tolist(), strict=True)
        named = tuple((self._tokenizer.decode([id_]), value) for id_, value in top)
        return TokenLogprob(self._tokenizer.decode([token]), float(found[token]), named)


def _ids(flight: _Flight, rows: tuple[Sequence, ...]) -> torch.Tensor:
    """The token ids of these rows, on the device: (rows,)."""
    ids = flight.draw.ids.clamp(min=0)  # of one that is drawn anew later there may be any
    numbers = {id(row): number for number, row in enumerate(flight.rows)}
    wanted = [numbers[id(row)] for row in rows]
    return ids if wanted == list(range(len(ids))) else ids[sent(wanted, ids.device)]


def _at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


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
