"""Titles that the model itself makes of a chat's first exchange, while nobody waits for it."""

import re
from functools import partial

from llmsvc.chat import branches
from llmsvc.chat.idle import Idle
from llmsvc.chat.sessions import Sessions
from llmsvc.chat.transfer import parted
from llmsvc.engine import FinishReason, SamplingParams
from llmsvc.models.pooled import PooledModel
from llmsvc.store.database import Database

_LONGEST = 60


class Titles:
    """Lives on the event loop."""

    def __init__(self, database: Database, sessions: Sessions, idle: Idle) -> None:
        self._db, self._sessions, self._idle = database, sessions, idle

    def want(self, session_id: str, model: str) -> None:
        """Make a title for a chat that has one exchange and was not named by its user."""
        self._idle.want(f"title {session_id}", model, partial(self._entitle, session_id))

    async def _entitle(self, session_id: str, pooled: PooledModel) -> bool:
        """False when it was disturbed and is to be tried again."""
        with self._db.session_rows(session_id, "messages") as rows:
            messages = branches.shown(rows, 3)
        wanted = self._db.session(session_id)["auto_title"] and len(messages) == 2
        if not wanted or pooled.loaded is None:
            return True
        question, answer = (parted(row)[1] for row in messages)
        chat = []
        for asked, answered, title in (*_EXAMPLES, (question[:600], answer[:200], "")):
            chat.append({"role": "user", "content": _PROMPT.format(question=asked, answer=answered)})
            chat.append({"role": "assistant", "content": title})
        chat.pop()
        said = await self._idle.ask(pooled, chat, SamplingParams(temperature=0, max_tokens=24, stop=("\n",)))
        if said is None:
            return False
        text, end = said
        if end is FinishReason.STOP and (title := clean_title(text)):  # one that had no end is no title
            self._sessions.entitle(session_id, title)
        return True


_PROMPT = "Write a title of two to six words for this conversation:\n\nQuestion: {question}\n\nAnswer: {answer}"
_EXAMPLES = (  # small models need to be shown
    ("How do I sort a list of numbers in Python?", "Use sorted().", "Sorting Lists in Python"),
    ("My cat does not eat since yesterday, what could it be?", "There are many causes.", "Cat Not Eating"),
    ("Write a poem on autumn", "Leaves of gold drift down.", "Autumn Poem"),
)


def clean_title(text: str) -> str:
    """A model's words as a title, or "" when they are none."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    line = re.sub(r"^\W*(?:title|conversation title)\s*[:\-]\s*", "", line, flags=re.IGNORECASE)
    line = " ".join(line.strip(" \t\"'`*#_“”‘’").rstrip(".:;,").split())
    return line if 2 < len(line) <= _LONGEST and not re.search(r"[<>{}]", line) else ""


def first_line(text: str) -> str:
    """A title until the model makes one."""
    line = " ".join(text.split())
    return line if len(line) <= 48 else line[:47].rstrip() + "…"
