"""Answers that must match a JSON schema or a regular expression: which tokens may come next.

llguidance (https://github.com/guidance-ai/llguidance) follows the grammar; it is loaded when it is first asked for.
"""

import threading
from typing import Any

import torch

from llmsvc.engine.request import SamplingParams
from llmsvc.errors import BadRequest, Unavailable


class Constraints:
    """Makes constraints for one tokenizer. May be used from any thread."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        """``vocabulary``: how many logits the model gives, which may be more than the tokenizer has tokens."""
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._lock = threading.Lock()
        self._known: Any = None

    def of(self, params: SamplingParams) -> "Constraint | None":
        """What a request is bound to. Raises BadRequest for a schema or an expression that cannot be followed."""
        if not params.constrained:
            return None
        try:
            import llguidance
            import llguidance.hf
        except ImportError:
            raise Unavailable("Answers by a schema need the package llguidance. Run make run, or install it.") from None
        with self._lock:
            if self._known is None:
                self._known = llguidance.hf.from_tokenizer(self._tokenizer, n_vocab=self._vocabulary)
        try:
            if params.json_schema:
                grammar = llguidance.LLMatcher.grammar_from_json_schema(params.json_schema)
            else:
                grammar = llguidance.LLMatcher.grammar_from_regex(params.regex)
            matcher = llguidance.LLMatcher(self._known, grammar, log_level=0)
        except Exception as error:  # the library raises ValueError for some mistakes, and others of its own
            raise BadRequest(f"The schema or expression cannot be followed: {error}") from None
        if message := matcher.get_error():
            raise BadRequest(f"The schema or expression cannot be followed: {message}")
        return Constraint(matcher, self._vocabulary)


class Constraint:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        import llguidance.numpy

        self._matcher = matcher
        self._mask = llguidance.numpy.allocate_token_bitmask(1, vocabulary)

    def allowed(self, logits: torch.Tensor) -> torch.Tensor:
        """``logits``, shape (vocabulary,), with -inf where a token would break the grammar."""
        import llguidance.numpy  # its way with torch compiles a kernel first, for 20 s, while every answer waits

        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask)
        words = torch.from_numpy(self._mask[0]).to(logits.device)
        bits = (words[:, None] >> torch.arange(32, dtype=torch.int32, device=logits.device) & 1).flatten()
        bits = torch.nn.functional.pad(bits, (0, max(0, len(logits) - len(bits))))
        return logits.float().masked_fill(bits[: len(logits)] == 0, -torch.inf)

    def push(self, token: int) -> bool:
        """Take a token; whether the answer is complete with it."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())
