"""Turns that will not fit much longer, told in short by the chat's own model while nobody waits for it.

The next prompt's beginning is then read in idle time as well, so that a cut costs no user any time.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from llmsvc.chat.asking import Manner, rendered
from llmsvc.chat.idle import Idle, at_once
from llmsvc.chat.past import Chat, Cut, Turn
from llmsvc.chat.prompts import Prompts
from llmsvc.chat.transfer import parted
from llmsvc.engine import FinishReason, SamplingParams
from llmsvc.formats import templates
from llmsvc.models.loader import LoadedModel
from llmsvc.models.pooled import PooledModel
from llmsvc.store.database import Row

LONGEST, SHARE = 256, 16
"""Tokens of a summary, which is at most one part in so many of the window."""
_PROMPT = (
    "Summarize this conversation in a short paragraph, for somebody who goes on with it. Keep names, numbers, dates, "
    "what was decided, and what the user wants.\n\n{conversation}"
)


class Summaries:
    """Lives on the event loop."""

    def __init__(self, prompts: Prompts, idle: Idle) -> None:
        self._prompts, self._idle = prompts, idle

    def want(self, session_id: str, model: str, chosen: Row) -> None:
        """Cut the chat if it fills its window; ``chosen``: options of its last answer, the system prompt among them."""
        self._idle.want(f"summary {session_id}", model, partial(self._cut, session_id, chosen))

    async def _cut(self, session_id: str, chosen: Row, pooled: PooledModel) -> bool:
        """False when it was disturbed and is to be tried again."""
        loaded = pooled.loaded
        if loaded is None:
            return True
        how = (chosen["system"], Manner.of(chosen, loaded.tokenizer))
        plan = await asyncio.to_thread(self._prompts.plan, session_id, loaded, *how)
        if plan is None:
            return True
        cut = plan.cut
        if plan.turns:
            chat, told = await asyncio.to_thread(_question, loaded, cut, plan.turns)
            most = min(LONGEST, loaded.window // SHARE)
            sampling = SamplingParams(temperature=0, repetition_penalty=1.1, max_tokens=most)
            said = await self._idle.ask(pooled, chat, sampling)
            if said is None:
                return False
            if summary := clean_summary(*said):
                goes_on = cut.summary and told[0] is plan.turns[0]
                first = cut.first if goes_on else told[0].depth
                cut = replace(cut, first=first, covers=told[-1].answers[-1]["depth"], summary=summary)
        if not pooled.remote:  # what others' servers have read is theirs to keep
            beginning = await asyncio.to_thread(self._prompts.following, session_id, loaded, cut, *how)
            if not await self._idle.read_ahead(pooled, beginning):
                return False
        await asyncio.to_thread(self._prompts.keep, session_id, cut)
        return True


def _question(loaded: LoadedModel, cut: Cut, turns: Sequence[Turn]) -> tuple[Chat, Sequence[Turn]]:
    """The request for a summary, and the turns in it: the newest ones, where there is no room for all."""
    most, longest = loaded.window // 2, 1200
    while True:
        parts = [
            f"User: {_short(turn.user['content'], longest)}\nAssistant: {_answer(turn, longest)}" for turn in turns
        ]
        before = [f"What was said before: {cut.summary}"] if cut.summary else []
        chat = [{"role": "user", "content": _PROMPT.format(conversation="\n\n".join([*before, *parts]))}]
        if _tokens(loaded, chat) <= most or (len(turns) == 1 and longest < 100):
            return chat, turns
        if longest > 300:
            longest //= 2
        elif len(turns) > 1:
            turns, cut = turns[len(turns) // 2 :], replace(cut, summary="")
        else:
            longest //= 2


def _tokens(loaded: LoadedModel, chat: Chat) -> int:
    return len(templates.encode(loaded.tokenizer, rendered(loaded.tokenizer, chat, at_once(loaded.tokenizer))))


def _answer(turn: Turn, longest: int) -> str:
    return _short("\n".join(parted(row)[1] for row in turn.answers), longest)


def _short(text: str, longest: int) -> str:
    """Its beginning and its end."""
    return text if len(text) <= longest else f"{text[: 2 * longest // 3]} … {text[-longest // 3 :]}"


def clean_summary(text: str, end: FinishReason) -> str:
    """What a model said: each sentence once, without a last one that it could not finish; "" when it said nothing."""
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    if end is FinishReason.LENGTH and len(sentences) > 1 and sentences[-1][-1:] not in ".!?":
        sentences.pop()
    return " ".join(dict.fromkeys(sentences)) if end in (FinishReason.STOP, FinishReason.LENGTH) else ""
