"""Prompts of what is stored: a chat's messages, its files, where it was cut, and what its owner wants remembered."""

from typing import Any

from llmsvc.chat import branches, context
from llmsvc.chat.asking import Manner
from llmsvc.chat.memory import Memory
from llmsvc.chat.past import Attics, Cut, Cuts
from llmsvc.files.files import Files
from llmsvc.models.loader import LoadedModel
from llmsvc.store.database import Database, Row


class Prompts:
    """Its methods read the disk and count tokens: call them on a worker thread. Each raises NotFound."""

    def __init__(self, database: Database, files: Files, memory: Memory) -> None:
        self._db, self._files, self._memory = database, files, memory
        self._attics = Attics()

    def build(
        self,
        session_id: str,
        loaded: LoadedModel,
        system: str,
        question: str,
        begun: tuple[str, str],
        sources: list[Row],
        speed: float,
        manner: Manner,
    ) -> context.Prompt:
        """For the answer to the message ``question`` (an id); ``begun``: reasoning and words that it has already.

        See ``context.build``, also for what it raises.
        """
        with self._db.session_rows(session_id, "messages") as rows:
            above = branches.upward(rows, question)
            row = next(above)
            reasoning, answer = begun
            place = (loaded.tokenizer, loaded.window, system, above, row["content"], answer, row["depth"])
            library = self._files.library(session_id)
            how = {"speed": speed, "manner": manner, "reasoning": reasoning, **self._known(session_id)}
            return context.build(*place, library, sources, **how)

    def plan(self, session_id: str, loaded: LoadedModel, system: str, manner: Manner) -> context.Plan | None:
        """What to cut before the next message comes."""
        with self._db.session_rows(session_id, "messages") as rows:
            last = branches.tip(rows)
            older = branches.upward(rows, last["id"] if last else "")
            library = self._files.library(session_id)
            place = (loaded.tokenizer, loaded.window, system, older, library)
            known = {**self._known(session_id), "manner": manner}
            return context.plan(*place, **known)

    def following(self, session_id: str, loaded: LoadedModel, cut: Cut, system: str, manner: Manner) -> context.Prompt:
        """As the next prompt will begin after a cut that is not stored yet."""
        with self._db.session_rows(session_id, "messages") as rows:
            last = branches.tip(rows)
            older, depth = branches.upward(rows, cut.id), last["depth"] + 1 if last else 1
            known = self._known(session_id)
            stored: Cuts = known["cuts"]
            known["cuts"] = lambda id_: cut.row() if id_ == cut.id else stored(id_)
            library = self._files.library(session_id)
            place = (loaded.tokenizer, loaded.window, system, older, "", "", depth, library)
            return context.build(*place, manner=manner, **known)

    def keep(self, session_id: str, cut: Cut) -> None:
        with self._db.session_rows(session_id, "cuts") as rows:
            rows.put(cut.row())

    def _known(self, session_id: str) -> dict[str, Any]:
        facts = self._memory.facts(self._db.session(session_id)["owner"])
        return {"facts": facts, "cuts": lambda id_: self._cut(session_id, id_), "attics": self._attics}

    def _cut(self, session_id: str, id_: str) -> Row | None:
        with self._db.session_rows(session_id, "cuts") as rows:
            return rows.get(id_)
