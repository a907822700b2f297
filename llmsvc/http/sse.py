"""The running turn of a session as server-sent events.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html.

Each event has the id ``TURN:CHARACTERS``, the last one ``TURN:CHARACTERS:end``, and ``{"turn_id", "state", "offset",
"length", "text", "usage"}``: what a client shows is what it had up to ``offset``, then ``text``, ``length`` characters
in all. The first event, those that tell more than new text, and the last (``event: end``) have the whole status of
``/attach`` besides.
"""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from llmsvc.chat.turn import Turn
from llmsvc.chat.turns import Turns

END = ":end"
"""Behind the id of the last event: who has seen all of the text may not know yet how the answer ended."""
_BRIEF = ("completion_tokens", "tokens_per_second")
_JSON = json.JSONEncoder(ensure_ascii=False)


async def events(turns: Turns, turn: Turn, last_id: str) -> AsyncIterator[bytes]:
    """Exactly what comes behind ``last_id``; from the start when that is of another turn."""
    yield b"retry: 500\n\n"
    of, _, seen = last_id.removesuffix(END).partition(":")
    # A client may have seen more than a crash left on the disk: it is told to go back to there.
    shown = min(int(seen[:12]) if of == turn.id and seen.isdecimal() else 0, len(turn.text))
    told: tuple[Any, ...] = ()
    async with aclosing(turns.follow(turn, shown)) as changes:
        async for _ in changes:
            place = placed(turn.text, shown)
            shown, ended = place["length"], turn.finished
            news = (turn.state, turn.note, turn.error, ended)
            if news == told:
                usage = {name: turn.usage.get(name) for name in _BRIEF}
                status = {"turn_id": turn.id, "state": turn.state, "usage": usage}
            else:
                told, status = news, turn.status()
            name, end = ("event: end\n", END) if ended else ("", "")
            yield f"{name}id: {turn.id}:{shown}{end}\ndata: {_JSON.encode(status | place)}\n\n".encode()


def placed(text: str, shown: int) -> dict[str, Any]:
    """What comes behind ``shown`` characters of a text, as each event says it."""
    return {"offset": shown, "length": len(text), "text": text[shown:]}
