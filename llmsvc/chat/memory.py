"""Facts that users want to be remembered across their chats: only if they turned it on, and only in their own words."""

import re
import time

from llmsvc.chat.transfer import new_id
from llmsvc.errors import BadRequest, NotFound
from llmsvc.store.database import Database, Row

MOST_FACTS, LONGEST = 100, 500
_REMEMBER = re.compile(r"\s*remember:\s*(\S.*)", re.IGNORECASE | re.DOTALL)


class Memory:
    """By owner. Safe from any thread."""

    def __init__(self, database: Database) -> None:
        self._db, self._rows = database, database.index("memory")

    def listed(self, owner: str) -> Row:
        """``{on, facts: [{id, text}]}``, oldest first."""
        facts = [{"id": row["id"], "text": row["text"]} for row in self._of(owner)]
        return {"on": bool(self._db.setting(f"memory:{owner}").get("on")), "facts": facts}

    def facts(self, owner: str) -> list[str]:
        """What prompts are to have; nothing while it is off."""
        known = self.listed(owner)
        return [fact["text"] for fact in known["facts"]] if known["on"] else []

    def switch(self, owner: str, on: bool) -> Row:
        """Use the facts in prompts, or do not; they are kept."""
        self._db.set_setting(f"memory:{owner}", {"on": on})
        return self.listed(owner)

    def set(self, owner: str, id_: str, text: str) -> Row:
        """Change a fact, or add one where ``id_`` is "". Raises BadRequest, NotFound."""
        text = " ".join(text.split())
        if not text or len(text) > LONGEST:
            raise BadRequest(f"A fact has 1 to {LONGEST} characters. Split a longer one, or delete one that is empty.")
        if id_:
            self._own(owner, id_)
            self._rows.update(id_, {"text": text})
            return {"id": id_, "text": text}
        known = self._of(owner)
        for row in known:
            if row["text"] == text:
                return {"id": row["id"], "text": text}
        if len(known) >= MOST_FACTS:
            raise BadRequest(f"The memory has {MOST_FACTS} facts, and every answer reads them. Delete one first.")
        row = {"id": new_id(), "owner": owner, "text": text, "created_at": time.time()}
        self._rows.add(row)
        return {"id": row["id"], "text": text}

    def delete(self, owner: str, id_: str) -> Row:
        """The fact that is gone. Raises NotFound."""
        row = self._own(owner, id_)
        self._rows.remove(id_)
        return {"id": id_, "text": row["text"]}

    def note(self, owner: str, message: str) -> None:
        """Keep what a message that begins with ``Remember:`` says, if the memory is on. Raises BadRequest."""
        if (said := _REMEMBER.fullmatch(message)) and self.listed(owner)["on"]:
            self.set(owner, "", said[1])

    def _of(self, owner: str) -> list[Row]:
        return self._rows.find(lambda row: row["owner"] == owner)

    def _own(self, owner: str, id_: str) -> Row:
        row = self._rows.get(id_)
        if row is None or row["owner"] != owner:
            raise NotFound("There is no such fact in the memory. It may have been deleted.")
        return row
