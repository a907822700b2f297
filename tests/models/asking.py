"""What a test asks of a pool's models."""

import asyncio
import os

from llmsvc.engine import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from llmsvc.models.pool import ModelPool

PROMPT = tuple(range(40, 140))


async def ask(pool: ModelPool, model: str, prompt: tuple[int, ...] = PROMPT, tokens: int = 8) -> tuple[str, int]:
    """A greedy answer, and how much of the prompt was cached."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[TokenEvent]()
    pooled = await pool.acquire(model)
    try:

        def deliver(event: TokenEvent) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        params = SamplingParams(temperature=0, max_tokens=tokens)
        pooled.engine.submit(GenerationRequest(os.urandom(8).hex(), prompt, params, deliver))
        text = ""
        while True:
            event = await events.get()
            text += event.text
            if event.finish_reason is not None:
                assert event.finish_reason in (FinishReason.STOP, FinishReason.LENGTH), event.error
                return text, event.cached_tokens
    finally:
        pool.release(pooled)
