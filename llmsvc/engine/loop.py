"""One step of an engine: copy, decode, prefill, choose. What fails in it ends as little as can be."""

import logging
import time
from collections.abc import Callable

import torch

from llmsvc.engine.ahead import Chooser
from llmsvc.engine.outputs import Outputs
from llmsvc.engine.pace import Pace
from llmsvc.engine.request import FinishReason
from llmsvc.engine.runner import Runner
from llmsvc.engine.sampling import sent
from llmsvc.engine.scheduler import PENDING, Chunk, Plan, Scheduler, Sequence
from llmsvc.errors import Unavailable

log = logging.getLogger(__name__)


class Loop:
    """Makes what the scheduler has planned. All of its methods are called on the engine's thread."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        outputs: Outputs,
        pace: Pace,
        window: int,
        do: Callable[..., None],
    ) -> None:
        """``do`` calls a function where the device's passes are made."""
        self._runner, self._scheduler, self._outputs, self._pace = runner, scheduler, outputs, pace
        self._window, self._do = window, do
        self.chooser = Chooser(runner, scheduler, outputs, window, self._fail)

    def turn(self) -> None:
        """One step, and what comes before and behind it."""
        scheduler = self._scheduler
        if scheduler.cancelling or not self.chooser.goes_ahead():
            self.land()
        if cancelled := scheduler.take_cancelled():
            self._outputs.tell()
        for sequence in cancelled:
            if sequence in self._outputs:
                self._outputs.end(sequence, FinishReason.CANCELLED)
        self._do(self._step, scheduler.plan())
        if not scheduler.running:  # no step follows, during which it could be told
            self.land()
            self._outputs.tell()

    def close(self) -> None:
        """End everything."""
        self.land()
        self._outputs.tell()
        for sequence in self._scheduler.drain():
            self._outputs.end(sequence, FinishReason.CANCELLED)

    def land(self) -> bool:
        """Take what is still being computed; False when memory ran out, and all that was planned is void."""
        flight, self.chooser.flight = self.chooser.flight, None
        try:
            if flight:
                self.chooser.take(flight)
        except Exception as error:
            if self._shrunk(error):
                return False
            if flight:
                log.error("drawing failed; its %d rows are tried one by one", len(flight.rows), exc_info=error)
                self._by_themselves(flight.rows)
        return True

    def _step(self, plan: Plan) -> None:
        """One failed step must not take the service down, nor one failing request the others."""
        try:
            self._move(plan)
        except Exception as error:  # what the cache holds is not known any more
            self.land()
            log.error("copying in the KV cache failed", exc_info=error)
            self._runner.reset()
            return self._scheduler.forget()
        together = self._together(plan)
        alone = [chunk for chunk in plan.prefill if not any(chunk is other for other in together)]
        try:
            if not (self._decode(plan.decode, tuple(together)) if plan.decode or together else self.land()):
                return None
        except Exception as error:
            self.land()
            if self._shrunk(error):
                return None
            alone = list(plan.prefill)
            log.error("a step failed; its %d rows are tried one by one", len(plan.decode), exc_info=error)
            self._by_themselves(plan.decode)
        for chunk in alone:
            if not self._read(chunk):
                return None
        return None

    def _move(self, plan: Plan) -> None:
        """Bring what is cached to where it is needed."""
        for copy in plan.copies:
            self._runner.copy(*copy)
        self._runner.forget(plan.forgotten)
        for slot in plan.dropped:
            self._runner.drop(slot)

    def _read(self, chunk: Chunk) -> bool:
        """Prefill a chunk, at a second try without compiled steps; False when memory ran out."""
        for last_try in (False, True):
            try:
                self._prefill(chunk)
                break
            except Exception as error:
                self.land()
                if self._shrunk(error):
                    return False
                log.error("a prompt failed", exc_info=error)
                if last_try or not self._runner.guesses:  # a state that half a pass has changed is of no use
                    self._fail(chunk.sequence, error)
                    break
        return True

    def _together(self, plan: Plan) -> list[Chunk]:
        """Which pieces of prompts go along in one pass."""
        short = [chunk for chunk in plan.prefill if self._runner.short(chunk.end - chunk.start, chunk.start)]
        if self._runner.ahead:
            return short
        # A CPU's passes are long: who has been read waits for no piece of a text that has not.
        joining = [chunk for chunk in short if chunk.last] or short
        guesses = len(plan.decode) == 1 and self._guess(plan.decode[0])
        return joining if len(plan.decode) + len(joining) > 1 and not guesses else []

    def _decode(self, rows: tuple[Sequence, ...], chunks: tuple[Chunk, ...] = ()) -> bool:
        """A token of each of ``rows``; and ``chunks`` of prompts, where the runner takes both together.

        False when memory ran out meanwhile, and all that was planned is void.
        """
        if self.chooser.flight and any(row.tokens[-1] != PENDING for row in rows):
            if not self.land():
                return False
            rows = tuple(filter(self._outputs.goes_on, rows))
            if not rows and not chunks:
                return True
        flight = self.chooser.flight
        if not flight and len(rows) == 1 and not chunks and (guess := self._guess(rows[0])):
            self._verify(rows[0], guess)
            return True
        lengths = [len(cached) for cached in self._scheduler.cached]
        rows = tuple(sorted(rows, key=lambda row: row.slot))
        last = {row.slot: row.tokens[-1] for row in rows}
        pieces = [(c.sequence.slot, c.sequence.tokens[c.start : c.end], c.start) for c in chunks]
        began = time.perf_counter()
        logits = self._runner.decode(last, lengths, pieces, flight.ids(rows) if flight and rows else None)
        if pieces and not self._runner.ahead:
            read = sum(len(tokens) for _, tokens, _ in pieces)
            self._pace.took(len(rows) + read, time.perf_counter() - began)
        self._outputs.tell()
        self._computed(rows, chunks, logits)
        return True

    def _computed(self, rows: tuple[Sequence, ...], chunks: tuple[Chunk, ...], logits: torch.Tensor) -> None:
        """Note what a pass has computed, and choose the next tokens."""
        for row in rows:
            self._scheduler.advance(row, len(row.tokens))
        for chunk in chunks:
            self._scheduler.advance(chunk.sequence, chunk.end)
        chosen = [n for n, row in enumerate(rows) if row in self._outputs]
        chosen += [len(rows) + n for n, chunk in enumerate(chunks) if chunk.last]
        if not self._runner.ahead and chosen == list(range(len(chosen))):
            logits = logits[: len(chosen)]
        elif len(chosen) < len(logits):
            logits = logits[sent(chosen, logits.device, torch.long)]  # there may be none
        both = [*rows, *(chunk.sequence for chunk in chunks)]
        self.chooser.choose(tuple(both[n] for n in chosen), logits)

    def _by_themselves(self, rows: tuple[Sequence, ...]) -> None:
        """The next token of each, alone: they failed together."""
        for row in rows:
            if not self._outputs.goes_on(row) or row.slot < 0:
                continue
            if not self._runner.guesses:  # a state that half a step has changed cannot be taken back
                self._scheduler.restart(row)
                continue
            row.computed = len(row.tokens) - 1  # it may have been counted already
            del self._scheduler.cached[row.slot][row.computed :]
            try:
                self._decode((row,))
                flight, self.chooser.flight = self.chooser.flight, None
                if flight:
                    self.chooser.take(flight)
            except Exception as error:
                self.chooser.flight = None
                self._fail(row, error)

    def _guess(self, row: Sequence) -> list[int]:
        """What may come next, as far as there is room for it."""
        if not self._runner.guesses:
            return []
        room = min(self._window - len(row.tokens), row.request.sampling.max_tokens - row.generated - 1)
        return self._outputs[row].lookup.guess(row.tokens)[: max(room, 0)]

    def _verify(self, row: Sequence, guess: list[int]) -> None:
        """Choose a token behind the last one and behind each guessed one, as long as the guesses are right."""
        output, before = self._outputs[row], len(row.tokens)
        logits = self._runner.prefill(row.slot, [row.tokens[-1], *guess], before - 1, len(guess) + 1)
        self._outputs.tell()
        if row not in self._outputs:
            return self._scheduler.advance(row, before)
        for number, scores in enumerate(logits):
            self._scheduler.advance(row, len(row.tokens))
            self.chooser.choose((row,), scores[None], ahead=False)
            if not self._outputs.goes_on(row) or number == len(guess) or row.tokens[-1] != guess[number]:
                break
        return output.lookup.learn(number, len(row.tokens))

    def _prefill(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        ends, tokens = chunk.last, sequence.tokens[chunk.start : chunk.end]
        began = time.perf_counter()
        last = self._runner.prefill(sequence.slot, tokens, chunk.start, int(ends or self._runner.ahead))
        if not self._runner.ahead:
            self._pace.took(len(tokens), time.perf_counter() - began)
        self._outputs.tell()
        self._scheduler.advance(sequence, chunk.end)
        if chunk.kept:
            self._runner.snapshot(sequence.slot, self._scheduler.keep(chunk))
        if ends:
            self.chooser.choose((sequence,), last)

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
        self._outputs.tell()
        if sequence not in self._outputs:
            return
        if sequence.slot >= 0:
            self._scheduler.cached[sequence.slot].clear()
        self._scheduler.finish(sequence)
        if PENDING in sequence.tokens:
            del sequence.tokens[sequence.tokens.index(PENDING) :]
        self._outputs.end(sequence, FinishReason.ERROR, Unavailable(f"The model failed: {error}"))
