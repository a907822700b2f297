"""Tokens to text, a piece at a time, never splitting a UTF-8 character, a grapheme or a stop string.

The two moving offsets follow vLLM's ``detokenize_incrementally`` (vllm/transformers_utils): a short
prefix is decoded again with each new token, because byte-level tokens join across token borders.
"""

from typing import Any

import regex  # a dependency of transformers

_REPLACEMENT = "\ufffd"
_LAST_GRAPHEME = regex.compile(r"\X\Z")


class Detokenizer:
    """Text of one growing token sequence.

    The last grapheme is held back until the next one starts, since a combining mark, a joiner or a
    skin tone may still follow it; so is any tail that could be the start of a stop string.
    Special tokens are not shown, but for those whose texts are ``marks``.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = (), marks: tuple[str, ...] = ()) -> None:
        self._tokenizer, self._quick = tokenizer, getattr(tokenizer, "backend_tokenizer", None)
        self._hidden, self._skip = hidden_tokens(tokenizer, marks), not marks
        self._stop = tuple(s for s in stop if s)
        self._tokens: list[int] = []
        self._prefix = self._read = 0
        self._held = ""
        self.stopped = ""
        """The stop string that was found."""

    def _decode(self, tokens: list[int]) -> str:
        if self._quick is not None:  # what the other comes to, in a fifth of its time
            return str(self._quick.decode(tokens, skip_special_tokens=self._skip))
        return str(self._tokenizer.decode(tokens, skip_special_tokens=self._skip, clean_up_tokenization_spaces=False))

    def push(self, token: int) -> str:
        """Add a token; return the text that is now certain (often empty). Sets ``stopped`` at a stop string."""
        if token in self._hidden:
            return ""
        self._tokens.append(token)
        known = self._decode(self._tokens[self._prefix : self._read])
        text = self._decode(self._tokens[self._prefix :])
        if text.endswith(_REPLACEMENT) and len(self._tokens) - self._read < 8:
            return ""  # a character is still missing bytes; none has more than four
        self._prefix, self._read = self._read, len(self._tokens)
        self._held += text[len(known) :]
        return self._release()

    def _release(self) -> str:
        found = [(at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.stopped = min(found)
            out, self._held = self._held[:at], ""
            return out
        keep = max((overlap(self._held, s) for s in self._stop), default=0)
        if last := _LAST_GRAPHEME.search(self._held):
            keep = max(keep, len(self._held) - last.start())
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def finish(self) -> str:
        """Return what was held back. Nothing comes after a stop string."""
        if self.stopped:
            return ""
        known = self._decode(self._tokens[self._prefix : self._read])
        tail = self._decode(self._tokens[self._prefix :])[len(known) :]
        out, self._held = self._held + tail.rstrip(_REPLACEMENT), ""
        return out


def hidden_tokens(tokenizer: Any, marks: tuple[str, ...] = ()) -> frozenset[int]:
    """Special tokens, named or added as such, whose texts are not ``marks``."""
    added = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return frozenset(id_ for id_, text in (named | added).items() if text not in marks)


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that starts ``stop``."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
