"""Texts as vectors, one after the other, so that answers keep their speed."""

import asyncio
from collections.abc import Sequence
from typing import Any

from llmsvc.chat.completions import Completions, encode
from llmsvc.errors import BadRequest, Busy, TooLong, Unavailable

MOST_WAITING = 64
MOST_TEXTS = 256


class Embeddings:
    """Makes embeddings. Lives on the event loop."""

    def __init__(self, completions: Completions) -> None:
        self._completions = completions
        self._one = asyncio.Semaphore(1)
        self._waiting = 0

    async def make(
        self, owner: str, model: str, texts: Sequence[str | Sequence[int]]
    ) -> tuple[str, list[list[float]], int]:
        """The model's id, the vectors and the tokens of all texts.

        Raises BadRequest, TooMany, TooLong, UnknownModel, Busy or Unavailable.
        """
        if not 1 <= len(texts) <= MOST_TEXTS:
            raise BadRequest(f"One request takes 1 to {MOST_TEXTS} texts, not {len(texts)}. Send several requests.")
        self._completions.rates.take(owner)
        if self._waiting >= MOST_WAITING:
            raise Busy("Many other texts are being embedded. Try again in a moment.")
        self._waiting += 1
        try:
            async with self._completions.model(model) as pooled:
                loaded = pooled.loaded
                if loaded is None:
                    raise Unavailable(f"{pooled.id} was unloaded. Ask again to load it.")
                if pooled.remote:
                    raise BadRequest(
                        f"{pooled.id} is on another server. Choose a model of this machine for embeddings."
                    )
                prompts = [await asyncio.to_thread(encode, loaded.tokenizer, text) for text in texts]
                for prompt in prompts:
                    if not prompt:
                        raise BadRequest("A text is empty. Leave it out.")
                    if len(prompt) > loaded.window:
                        raise TooLong(
                            f"A text has {len(prompt):,} tokens, but {pooled.id} reads at most {loaded.window:,}. "
                            "Cut it."
                        )
                async with self._one:
                    return (
                        pooled.id,
                        [await _vector(loaded.model, prompt) for prompt in prompts],
                        sum(map(len, prompts)),
                    )
        finally:
            self._waiting -= 1


async def _vector(model: Any, prompt: Sequence[int]) -> list[float]:
    def work() -> list[float]:
        from llmsvc.engine.embed import embed  # torch comes with it

        return embed(model, prompt)

    return await asyncio.to_thread(work)
