"""What requests receive: text, log-probabilities, and why it ends. One ``Output`` for each request that is not over."""

import logging
from collections import deque
from typing import Any

import torch

from llmsvc.engine.constraint import Constraint
from llmsvc.engine.detokenize import Detokenizer
from llmsvc.engine.lookup import Lookup
from llmsvc.engine.repetition import Loops
from llmsvc.engine.request import FinishReason, GenerationRequest, ThinkingLimit, TokenEvent, TokenLogprob
from llmsvc.engine.sampling import make_dice, penalized
from llmsvc.engine.scheduler import Scheduler, Sequence
from llmsvc.errors import LlmsvcError

log = logging.getLogger(__name__)


class Output:
    """How one answer is chosen and told."""

    def __init__(self, request: GenerationRequest, tokenizer: Any, constraint: Constraint | None) -> None:
        self._params, self._tokenizer, self._constraint = request.sampling, tokenizer, constraint
        self.detokenizer = Detokenizer(tokenizer, request.sampling.stop, request.marks)
        self._dice, self._keys = make_dice(request.sampling), list[int]()
        self.lookup = Lookup()
        self._logprobs: list[TokenLogprob] = []
        self._thinking = _Thinking(request.thinking, tokenizer) if request.thinking else None
        self._loops = None if constraint else Loops(tokenizer.decode)
        self.complete = self.over = self.repeats = False
        self.unsure_until = 0
        """Up to which of its tokens it is likely that they are others than what a step ahead of them took."""

    @property
    def needs_tokens(self) -> bool:
        """Whether what is chosen, or told of it, hangs on the tokens before or on the logits."""
        params, thinking = self._params, self._thinking is not None and not self._thinking.over
        shaped = self._constraint is not None or params.repetition_penalty != 1
        return shaped or thinking or params.logprobs is not None

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
        allowed = logits if self._constraint is None else self._constraint.allowed(logits)
        if self._thinking is None or (token := self._thinking.next) is None:
            return allowed
        if self._constraint is not None and allowed[token] == -torch.inf:
            self._thinking.leave()
            return allowed
        return torch.full_like(logits, -torch.inf, dtype=torch.float32).index_fill(0, _index(token, logits), 0.0)

    def took(self, token: int, logits: torch.Tensor, row: int) -> None:
        """Record what was chosen, and from what row of which logits."""
        if self._constraint is not None:
            self.complete = self._constraint.push(token)
        if self._thinking is not None:
            self._thinking.push(token)
        if self._loops is not None:
            self.repeats = self._loops.push(token)
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


class _Thinking:
    """Ends reasoning that has gone on for long."""

    def __init__(self, limit: ThinkingLimit, tokenizer: Any) -> None:
        self._limit, self._tokenizer = limit, tokenizer
        self._count, self._tail = 0, ""
        self._first = list[int]()
        self._forced = list[int]()
        self._begun, self.over = not limit.opens, False

    @property
    def next(self) -> int | None:
        """The token that has to come, if it is decided."""
        return self._forced[0] if self._forced else None

    def leave(self) -> None:
        """Force nothing more."""
        self._forced, self.over = [], True

    def push(self, token: int) -> None:
        if self.over:
            return
        if self._forced:
            del self._forced[0]
            self.over = not self._forced
        elif self._begun:
            self._reason(token)
        else:
            self._begin(token)

    def _begin(self, token: int) -> None:
        """Before it is known whether the answer begins with reasoning."""
        self._first.append(token)
        text = self._tokenizer.decode(self._first).lstrip().rstrip("\ufffd")
        self._begun = text.startswith(self._limit.opens)
        self.over = not (self._begun or any(mark.startswith(text) for mark in self._limit.opens))

    def _reason(self, token: int) -> None:
        self._count += 1
        longest = max(map(len, self._limit.until), default=0)
        self._tail = (self._tail + self._tokenizer.decode([token]))[-2 * longest - 32 :]
        self.over = any(mark in self._tail for mark in self._limit.until)
        if not self.over and self._count >= self._limit.tokens:
            self._forced = list(self._limit.closing)
            self.over = not self._forced


class Outputs:
    """The requests of one engine that are not over, and what was chosen for them but not told yet."""

    def __init__(self, tokenizer: Any, ends: frozenset[int], scheduler: Scheduler) -> None:
        """``ends``: tokens that end an answer, and are no part of it."""
        self._tokenizer, self.ends, self._scheduler = tokenizer, ends, scheduler
        self._of: dict[str, Output] = {}
        self._untold: deque[tuple[Sequence, int, int, FinishReason | None]] = deque()
        """Chosen tokens whose text is to be delivered: how many there were with it, and why it is the last."""

    def begin(self, request: GenerationRequest, constraint: Constraint | None) -> None:
        self._of[request.id] = Output(request, self._tokenizer, constraint)

    def get(self, sequence: Sequence) -> Output | None:
        """None for one that has ended."""
        return self._of.get(sequence.request.id)

    def __getitem__(self, sequence: Sequence) -> Output:
        return self._of[sequence.request.id]

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.request.id in self._of

    def goes_on(self, sequence: Sequence) -> bool:
        """Whether more tokens are wanted of it."""
        output = self.get(sequence)
        return output is not None and not output.over

    def chosen(self, sequence: Sequence, token: int, generated: int, reason: FinishReason | None) -> None:
        """Deliver a token's text with the next ``tell``."""
        self._untold.append((sequence, token, generated, reason))

    def tell(self) -> None:
        """Deliver the text of what was chosen. A GPU computes the next step meanwhile; of that, a row which ends here
        at a stop string is not taken any more."""
        while self._untold:
            sequence, token, generated, reason = self._untold.popleft()
            request, output = sequence.request, self.get(sequence)
            if output is None:  # it has ended at a stop string
                continue
            text = "" if token in self.ends else output.detokenizer.push(token)
            if output.detokenizer.stopped:
                if reason is None:
                    self._scheduler.finish(sequence)
                reason = FinishReason.STOP
            if reason is not None:
                self.end(sequence, reason, text=text, generated=generated)
            else:
                logprobs = output.take_logprobs(1)
                request.deliver(TokenEvent(request.id, text, generated, None, None, sequence.cached, logprobs))

    def end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: LlmsvcError | None = None,
        text: str = "",
        generated: int | None = None,
    ) -> None:
        """Deliver the last event of a request, whose sequence the scheduler does not have any more."""
        output = self._of.pop(sequence.request.id)
        text += output.detokenizer.finish()
        stop, logprobs = output.detokenizer.stopped, output.take_logprobs(1)
        made = sequence.generated if generated is None else generated
        sequence.request.deliver(
            TokenEvent(sequence.request.id, text, made, reason, error, sequence.cached, logprobs, stop)
        )


def _index(token: int, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor([token], device=like.device)
