"""Create, list, switch, rename, delete, restore, search, export and import sessions."""

import json
import secrets
import sys
import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

from llmsvc.errors import BadRequest, NotFound
from llmsvc.store.database import Database, Row
from llmsvc.store.search import Needle

UNDO_SECONDS = 300
_MAX_TITLE = 120
NEW_TITLE = "New chat"


def new_id() -> str:
    return secrets.token_hex(16)


class Sessions:
    """Sessions of every owner. Another owner's session answers as one that does not exist."""

    def __init__(self, database: Database, default_model: str) -> None:
        self._db = database
        self._default_model = default_model
        self.purge()

    def create(self, owner: str, title: str = "", model: str = "") -> Row:
        now = time.time()
        row = {
            "id": new_id(),
            "owner": owner,
            "title": _clean(title) or NEW_TITLE,
            "created_at": now,
            "updated_at": now,
            "model": model or self._default_model,
            "turns": 0,
            "undo_until": None,
        }
        self._db.add_session(row)
        return _public(row)

    def list(self, owner: str, query: str = "", limit: int = sys.maxsize) -> list[Row]:
        """At most ``limit``, last used first; with ``query``, those whose title or messages contain it.

        Reads every file when it searches: call it on a worker thread then.
        """
        needle = Needle(query)
        if not needle:
            return [_public(row) for row in self._db.newest_sessions(owner, limit)]
        return [_public(row) for row in islice(self._db.search_sessions(owner, needle), limit)]

    def get(self, owner: str, session_id: str) -> Row:
        """The session with its messages. Raises NotFound."""
        row = self.row(owner, session_id)
        return {**_public(row), "messages": self._db.messages(row["id"]), "files": []}

    def row(self, owner: str, session_id: str) -> Row:
        """The index row of a session that is there for ``owner``. Raises NotFound."""
        row = self._owned(owner, session_id)
        if row["undo_until"] is not None:
            raise NotFound("This chat was deleted.")
        return row

    def rename(self, owner: str, session_id: str, title: str) -> Row:
        """Raises BadRequest for an empty title, NotFound."""
        if not (clean := _clean(title)):
            raise BadRequest("A chat needs a name. Type at least one character.")
        self.row(owner, session_id)
        self._db.update_session(session_id, {"title": clean})
        return _public(self.row(owner, session_id))

    def set_model(self, owner: str, session_id: str, model: str) -> None:
        self.row(owner, session_id)
        self._db.update_session(session_id, {"model": model})

    def delete(self, owner: str, session_id: str) -> Row:
        """Hide a session; it is gone for good once ``undo_until`` (a Unix time) has passed."""
        self.purge()
        self.row(owner, session_id)
        undo_until = time.time() + UNDO_SECONDS
        self._db.update_session(session_id, {"undo_until": undo_until})
        return {"id": session_id, "undo_until": undo_until}

    def restore(self, owner: str, session_id: str) -> Row:
        """Undo a deletion. Raises NotFound when it is too late."""
        self.purge()
        self._owned(owner, session_id)
        self._db.update_session(session_id, {"undo_until": None})
        return _public(self.row(owner, session_id))

    def touch(self, session_id: str, fields: Row) -> None:
        """Record activity of a turn."""
        self._db.update_session(session_id, {"updated_at": time.time(), **fields})

    def export(self, owner: str, session_id: str, format: str = "json") -> str:
        """The whole session as JSON (which ``import_`` reads) or as Markdown to read. Raises BadRequest."""
        session = self.get(owner, session_id)
        if format == "json":
            return json.dumps(session, ensure_ascii=False, indent=1)
        if format != "markdown":
            raise BadRequest(f'Unknown format "{format}". Use "json" or "markdown".')
        parts = [f"# {session['title']}"]
        parts += [f"## {m['role'].capitalize()}\n\n{m['content']}" for m in session["messages"]]
        return "\n\n".join(parts) + "\n"

    def import_(self, owner: str, text: str) -> Row:
        """A new session from exported JSON. Raises BadRequest."""
        try:
            data = json.loads(text)
            messages = [_imported(m) for m in data["messages"]]
            title, model = str(data.get("title", "")), str(data.get("model", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadRequest('This is no exported chat. Use the text that "export" gave in the JSON format.') from None
        created = self.create(owner, title, model)
        self._db.add_messages(created["id"], messages)
        self._db.update_session(created["id"], {"turns": sum(m["role"] == "user" for m in messages)})
        return _public(self.row(owner, created["id"]))

    def _owned(self, owner: str, session_id: str) -> Row:
        row = self._db.session(session_id)
        if row["owner"] != owner:
            raise NotFound("There is no such chat. It may have been deleted; pick one from the list.")
        return row

    def purge(self) -> None:
        """Remove for good what can no longer be restored."""
        for row in self._db.sessions_with("undo_until"):
            if row["undo_until"] < time.time():
                self._db.remove_session(row["id"])


def message(role: str, content: str, turn_id: str, **fields: Any) -> Row:
    """A message row with every field of the contract."""
    return {
        "id": new_id(),
        "turn_id": turn_id,
        "role": role,
        "content": content,
        "created_at": time.time(),
        "state": "done",
        "model": "",
        "usage": {},
        "context": {},
        "sources": [],
        "error": "",
        **fields,
    }


def _imported(data: Row) -> Row:
    if data["role"] not in ("user", "assistant", "system") or not isinstance(data["content"], str):
        raise ValueError
    known: Iterable[str] = ("created_at", "state", "model", "usage", "context", "sources")
    kept = {k: data[k] for k in known if k in data}
    return message(data["role"], data["content"], str(data.get("turn_id", "")) or new_id(), **kept)


def _public(row: Row) -> Row:
    return {k: row[k] for k in ("id", "title", "created_at", "updated_at", "model", "turns")}


def _clean(title: str) -> str:
    """One printable line."""
    return " ".join("".join(c if c.isprintable() else " " for c in title).split())[:_MAX_TITLE]
