"""The running turn of a session as server-sent events.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html.

Each event has the id ``TURN:CHARACTERS``, the last one ``TURN:CHARACTERS:end``, and ``{"turn_id", "state", "offset",
"length", "text", "usage"}``: what a client shows is what it had up to ``offset``, then ``text``, ``length`` characters
in all. Where there is reasoning, ``reasoning_offset``, ``reasoning_length`` and ``reasoning`` say the same of it, and
ids have its characters as well: ``TURN:CHARACTERS+CHARACTERS``. The first event, those that tell more than new text,
and the last (``event: end``) have the whole status of ``/attach`` besides.
"""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from llmsvc.chat.turn import Turn
from llmsvc.chat.turns import Turns

END = ":end"
"""Behind the id of the last event: who has seen all of the text may not know yet how the answer ended."""
_BRIEF = ("completion_tokens", "tokens_per_second", "thinking_seconds")
_JSON = json.JSONEncoder(ensure_ascii=False)


async def events(turns: Turns, turn: Turn, last_id: str) -> AsyncIterator[bytes]:
    """Exactly what comes behind ``last_id``; from the start when that is of another turn."""
    yield b"retry: 500\n\n"
    shown, thought = _seen(turn, last_id), "+" in last_id
    told: tuple[Any, ...] = ()
    async with aclosing(turns.follow(turn, shown[0])) as changes:
        async for _ in changes:
            place, ended = placed(turn, shown, thought), turn.finished
            shown = (len(turn.text), len(turn.reasoning))
            news = (turn.state, turn.note, turn.error, ended)
            if news == told:
                usage = {name: turn.usage.get(name) for name in _BRIEF}
                status = {"turn_id": turn.id, "state": turn.state, "usage": usage}
            else:
                told, status = news, turn.status()
            name = "event: end\n" if ended else ""
            yield f"{name}id: {event_id(turn)}\ndata: {_JSON.encode(status | place)}\n\n".encode()


def event_id(turn: Turn) -> str:
    """Of the event that says all there is."""
    thought = f"+{len(turn.reasoning)}" if turn.reasoning else ""
    return f"{turn.id}:{len(turn.text)}{thought}{END if turn.finished else ''}"


def placed(turn: Turn, shown: tuple[int, int] = (0, 0), thought: bool = False) -> dict[str, Any]:
    """What comes behind so many characters of the text and of the reasoning, as each event says it.

    ``thought``: the client has reasoning, which may be gone by now.
    """
    said, reasoned = min(shown[0], len(turn.text)), min(shown[1], len(turn.reasoning))
    place = {"offset": said, "length": len(turn.text), "text": turn.text[said:]}
    if turn.reasoning or thought:
        reasoning = turn.reasoning[reasoned:]
        place |= {"reasoning_offset": reasoned, "reasoning_length": len(turn.reasoning), "reasoning": reasoning}
    return place


def _seen(turn: Turn, last_id: str) -> tuple[int, int]:
    """Characters of text and reasoning that a client has.

    It may have seen more than a crash left on the disk: it is told to go back to there.
    """
    of, _, seen = last_id.removesuffix(END).partition(":")
    said, _, thought = seen.partition("+") if of == turn.id else ("", "", "")
    return _number(said, len(turn.text)), _number(thought, len(turn.reasoning))


def _number(text: str, most: int) -> int:
    return min(int(text[:12]) if text.isdecimal() else 0, most)
