"""One answer of another server, from its events to ours.

https://platform.openai.com/docs/api-reference/chat-streaming
"""

import json
from typing import Any

from llmsvc.engine.request import FinishReason, GenerationRequest, TokenEvent, TokenLogprob
from llmsvc.errors import BadRequest, Busy, LlmsvcError, Unavailable
from llmsvc.models.server import said_by


class RemoteAnswer:
    """Turns the events of a server into ours."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.tokens = 0
        """Events with text, until the end tells the number of tokens."""
        self.finish: FinishReason | None = None
        self._prompt_tokens = self._cached = 0
        self._stop = ""
        last = request.source[-1] if request.source and not isinstance(request.source, str) else {"role": ""}
        begun = last["content"] if last["role"] == "assistant" else ""
        self._space = begun[len(begun.rstrip()) :]
        """At the end of what is continued: it was not sent, and comes again if it belongs there."""

    def take(self, line: bytes) -> bool:
        """One line; true at the end. Raises the error that it tells of, or ValueError and its like for what is none."""
        if not line.startswith(b"data:"):
            return False
        data = line[5:].strip()
        if data == b"[DONE]":
            return True
        chunk = json.loads(data)
        if chunk.get("error") or chunk.get("object") == "error":
            raise _reported(chunk.get("error") or chunk, said_by(data))
        if usage := chunk.get("usage"):
            self._prompt_tokens = int(usage.get("prompt_tokens") or 0)
            self._cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
            self.tokens = max(self.tokens, int(usage.get("completion_tokens") or 0))
        for choice in chunk.get("choices") or ():
            self._take_choice(choice)
        return False

    def end(self, reason: FinishReason, error: LlmsvcError | None = None) -> None:
        self.request.deliver(
            TokenEvent(
                self.request.id,
                "",
                self.tokens,
                reason,
                error,
                self._cached,
                stop=self._stop,
                prompt_tokens=self._prompt_tokens,
            )
        )

    def _take_choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or {}
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        text = (delta.get("content") or "") + (choice.get("text") or "")
        logprobs = _logprobs(choice.get("logprobs") or {})
        if choice.get("finish_reason"):
            self.finish = FinishReason.LENGTH if choice["finish_reason"] == "length" else FinishReason.STOP
            self._stop = choice["stop_reason"] if isinstance(choice.get("stop_reason"), str) else ""
        if self._space and text:
            text, self._space = text.removeprefix(self._space), ""
        if text or reasoning or logprobs:
            self.tokens += max(1, len(logprobs))
            event = TokenEvent(self.request.id, text, self.tokens, logprobs=logprobs, reasoning=reasoning)
            self.request.deliver(event)


def _logprobs(found: dict[str, Any]) -> tuple[TokenLogprob, ...]:
    """In the form of chat completions, or of completions."""
    if "content" in found:
        return tuple(
            TokenLogprob(
                one["token"],
                one["logprob"],
                tuple((likely["token"], likely["logprob"]) for likely in one.get("top_logprobs") or ()),
            )
            for one in found["content"] or ()
        )
    tokens, numbers = found.get("tokens") or (), found.get("token_logprobs") or ()
    tops = found.get("top_logprobs") or [{}] * len(tokens)
    return tuple(
        TokenLogprob(token, number, tuple((top or {}).items()))
        for token, number, top in zip(tokens, numbers, tops, strict=False)
    )


def _reported(error: Any, text: str) -> LlmsvcError:
    """An error within a stream, by the types of OpenAI and vLLM."""
    kind = str(error.get("type") or error.get("code") or "") if isinstance(error, dict) else ""
    if kind in ("rate_limit_error", "overloaded_error"):
        return Busy("The model is busy with many other requests. Try again in a moment.")
    if kind in ("invalid_request_error", "BadRequestError"):
        return BadRequest(f"The model's server refuses this: {text}")
    return Unavailable(text or "it reported an error")
