"""Choosing tokens, where need be one step ahead of what is known: a GPU computes by itself, and is not waited for.

What is being drawn is a flight. Its rows have ``PENDING`` where their token will stand; it lands when the tokens are
known, and what turns out to be another token is taken back by the scheduler.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from llmsvc.engine.outputs import Outputs
from llmsvc.engine.request import FinishReason
from llmsvc.engine.runner import Runner
from llmsvc.engine.sampling import Draw, sent
from llmsvc.engine.scheduler import PENDING, Scheduler, Sequence

log = logging.getLogger(__name__)

_UNSURE = 16
"""Tokens behind one that was drawn from more than the likeliest, for which that is likely to happen again."""


@dataclass(frozen=True)
class Flight:
    """Tokens that are being computed, of sequences that have ``PENDING`` in their ``places``."""

    rows: tuple[Sequence, ...]
    places: tuple[int, ...]
    draw: Draw
    logits: torch.Tensor

    def ids(self, rows: tuple[Sequence, ...]) -> torch.Tensor:
        """The token ids of these rows, on the device: (rows,)."""
        ids = self.draw.ids.clamp(min=0)  # of one that is drawn anew later there may be any
        numbers = {id(row): number for number, row in enumerate(self.rows)}
        wanted = [numbers[id(row)] for row in rows]
        return ids if wanted == list(range(len(ids))) else ids[sent(wanted, ids.device)]


class Chooser:
    """Draws the next token of each sequence and takes it once it is known."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        outputs: Outputs,
        window: int,
        fail: Callable[[Sequence, Exception], None],
    ) -> None:
        """``fail`` ends a sequence with an error."""
        self._runner, self._scheduler, self._outputs, self._window = runner, scheduler, outputs, window
        self._fail = fail
        self.flight: Flight | None = None
        self.tokens = 0
        """Taken since the start."""

    def choose(self, rows: tuple[Sequence, ...], logits: torch.Tensor, *, ahead: bool = True) -> None:
        """Draw the next token of each sequence, from logits of shape (rows, vocabulary); deliver what was drawn before.

        And these as well, where the next step cannot do without, or is not to (``ahead``). Raises what drawing raises.
        """
        before, self.flight = self.flight, None
        flight = None
        try:
            flight = self._draw(rows, logits)
            if ahead and self._runner.ahead and flight and not any(map(self._needs_tokens, flight.rows)):
                self.flight, flight = flight, None
        finally:
            for one in (before, flight):
                if one:
                    self.take(one)
        if before and self.flight:  # what comes after them is being computed
            self._outputs.tell()

    def goes_ahead(self) -> bool:
        """Whether the next step can be launched before the tokens of the last are known."""
        if self.flight is None or not self._runner.follows:
            return False
        rows, unsure = self._scheduler.decoding, 0
        for row in rows:
            if row.tokens[-1] != PENDING or self._needs_tokens(row) or self._full(row, row.generated):
                return False
            unsure += row.generated < self._outputs[row].unsure_until
        if 4 * unsure > len(rows) or not rows:
            return False
        return len(rows) != 1 or not self._outputs[rows[0]].lookup.guess(rows[0].tokens[:-1])

    def take(self, flight: Flight) -> None:
        """Take the tokens of a step once they are known. Raises what drawing does; they can be drawn again then."""
        try:
            tokens = flight.draw.tokens()
        except Exception:
            for row, place in zip(flight.rows, flight.places, strict=True):
                del row.tokens[place:]
            raise
        for number, (row, place, token) in enumerate(zip(flight.rows, flight.places, tokens, strict=True)):
            # The one before it may have been the last, or another.
            if self._outputs.goes_on(row) and place < len(row.tokens):
                if number in flight.draw.anew:
                    self._go_back(row, place)
                self._take(row, place, token, flight.logits, number)

    def _draw(self, rows: tuple[Sequence, ...], logits: torch.Tensor) -> Flight | None:
        left, shaped = list(range(len(rows))), logits
        for number, row in enumerate(rows):
            if not self._needs_tokens(row):
                continue
            own = logits[number]
            try:
                changed = self._outputs[row].shaped(own, row.tokens)
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
        keys = [self._outputs[row].key(row.generated) for row in drawn]
        draw = Draw(shaped, [row.request.sampling for row in drawn], keys)
        places = tuple(len(row.tokens) for row in drawn)
        for row in drawn:
            row.tokens.append(PENDING)
        return Flight(drawn, places, draw, logits)

    def _needs_tokens(self, row: Sequence) -> bool:
        return self._outputs[row].needs_tokens

    def _go_back(self, row: Sequence, place: int) -> None:
        """The next step was launched with another token than there is now: have it computed again."""
        self._outputs[row].unsure_until = row.generated + _UNSURE
        if place + 1 < len(row.tokens):
            del row.tokens[place + 1 :]
            row.computed = place
            if row.slot >= 0:
                del self._scheduler.cached[row.slot][place:]

    def _full(self, sequence: Sequence, generated: int) -> bool:
        length = len(sequence.request.prompt) + generated
        return generated >= sequence.request.sampling.max_tokens or length >= self._window

    def _take(self, sequence: Sequence, place: int, token: int, logits: torch.Tensor, number: int) -> None:
        output = self._outputs[sequence]
        if token < 0:
            return self._fail(sequence, ValueError("its numbers are no probabilities"))
        try:
            output.took(token, logits, number)
        except Exception as error:
            log.error("a token could not be taken", exc_info=error)
            return self._fail(sequence, error)
        sequence.tokens[place] = token
        if sequence.slot >= 0 and place < len(cached := self._scheduler.cached[sequence.slot]):
            cached[place] = token
        self.tokens += 1
        generated = place + 1 - len(sequence.request.prompt)
        reason = self._reason(sequence, token, generated)
        if reason is not None:
            output.over = True
            del sequence.tokens[place + 1 :]
            self._scheduler.finish(sequence)
        self._outputs.chosen(sequence, token, generated, reason)
        if not self._runner.ahead:
            self._outputs.tell()
        return None

    def _reason(self, sequence: Sequence, token: int, generated: int) -> FinishReason | None:
        """Why an answer ends with this token, if it does."""
        output = self._outputs[sequence]
        if token in self._outputs.ends or output.complete:
            return FinishReason.STOP
        if self._full(sequence, generated):
            return FinishReason.LENGTH
        return FinishReason.REPETITION if output.repeats else None
