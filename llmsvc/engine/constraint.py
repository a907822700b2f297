"""Answers that must match a JSON schema, a regular expression or a grammar: which tokens may come next.

llguidance (https://github.com/guidance-ai/llguidance) follows the grammar; it is loaded when it is first asked for.
"""

import json
import re
import threading
from collections.abc import Mapping
from typing import Any

import torch

from llmsvc.engine.request import SamplingParams
from llmsvc.errors import BadRequest, Unavailable

_TEXT = re.compile("«(…?)([^«»]*)»")


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
            if params.grammar:
                grammar = llguidance.LLMatcher.grammar_from_lark(lark(params.grammar, special_tokens(self._tokenizer)))
            elif params.json_schema:
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


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Those which decoding may leave out, by their text: no text of a grammar would match them."""
    return {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}


def lark(grammar: str, special: Mapping[str, int]) -> str:
    """Lark proper for a grammar with texts in «…», written as within a JSON string.

    What of a text is one of ``special`` tokens becomes that token, the rest a string. «…text» is any text up to this
    one, and this one.
    """
    rules: list[str] = []

    def replaced(found: re.Match[str]) -> str:
        parts = _parts(json.loads(f'"{found[2]}"'), special)
        if not found[1]:
            return " ".join(part if is_token else json.dumps(part) for part, is_token in parts)
        if len(parts) == 1 and not parts[0][1]:
            rules.append(f"until{len(rules)}[suffix={json.dumps(parts[0][0])}]: /(?s:.*)/")
            return f"until{len(rules) - 1}"
        first = "" if parts[0][1] else re.sub(r"([\\.+*?()|\[\]{}^$/])", r"\\\1", parts.pop(0)[0])
        behind = " ".join(part if is_token else json.dumps(part) for part, is_token in parts)
        return f"/(?s:.*){first}/ {behind}"

    return "\n".join([_TEXT.sub(replaced, grammar), *rules, ""])


def _parts(text: str, special: Mapping[str, int]) -> list[tuple[str, bool]]:
    """A text cut at special tokens: strings, and tokens as Lark writes them."""
    marks = sorted((mark for mark in special if mark and mark in text), key=len, reverse=True)
    if not marks:
        return [(text, False)]
    pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text)
    return [(f"<[{special[piece]}]>", True) if piece in special else (piece, False) for piece in pieces if piece]
