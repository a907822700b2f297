"""Create, list, switch, rename, delete, restore, search, export and import sessions."""

import json
import sys
import time
from collections import Counter
from collections.abc import Container
from contextlib import suppress
from itertools import islice

from llmsvc.chat import branches, transfer
from llmsvc.chat.past import number
from llmsvc.chat.transfer import new_id
from llmsvc.errors import BadRequest, Conflict, NotFound
from llmsvc.files.files import Files
from llmsvc.store.database import LISTED, Database, Row
from llmsvc.store.search import Needle

UNDO_SECONDS = 300
MOST_OF_GUEST = 100
_MAX_TITLE = 120
NEW_TITLE = "New chat"


class Sessions:
    """Sessions of every owner. Another owner's session answers as one that does not exist."""

    def __init__(self, database: Database, default_model: str, files: Files) -> None:
        self._db, self._files = database, files
        self._default_model = default_model
        self._revisions: Counter[str] = Counter()
        self.purge()

    def create(self, owner: str, title: str = "", model: str = "") -> Row:
        """Raises Conflict for a guest who has too many."""
        if owner.startswith("guest:") and len(self._db.newest_sessions(owner, MOST_OF_GUEST)) == MOST_OF_GUEST:
            raise Conflict(f"A visitor may have {MOST_OF_GUEST} chats. Delete one first.")
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
            "settings": {},
            "auto_title": not _clean(title),
        }
        self._db.add_session(row)
        self._revisions[owner] += 1
        return _public(row)

    def list(self, owner: str, query: str = "", limit: int = sys.maxsize) -> list[Row]:
        """At most ``limit``, last used first; with ``query``, those whose title or messages contain it.

        Reads every file when it searches: call it on a worker thread then.
        """
        needle = Needle(query)
        if not needle:
            return self._db.newest_sessions(owner, limit)
        return list(islice(self._db.search_sessions(owner, needle), limit))

    def get(self, owner: str, session_id: str) -> Row:
        """The session with the messages of the shown branch, those that wait, and summaries. Raises NotFound."""
        session = self.window(owner, session_id, None)
        with self._db.session_rows(session_id, "cuts") as rows:
            return {**session, "summaries": [_summary(row) for row in rows.all() if row["summary"]]}

    def window(self, owner: str, session_id: str, limit: int | None) -> Row:
        """``get`` with the last ``limit`` messages; its cost does not grow with the others. Raises NotFound."""
        row = self.row(owner, session_id)
        with self._db.session_rows(session_id, "messages") as rows:
            messages, version = branches.shown(rows, limit), branches.version(rows)
        with self._db.session_rows(session_id, "queue") as rows:
            queued = rows.all()
        own = {"settings": row["settings"], "version": version, "queued": queued}
        return {**_public(row), **own, "messages": messages, "files": self._files.rows(session_id)}

    def message(self, owner: str, session_id: str, message_id: str) -> Row:
        """One message of any branch. Raises NotFound."""
        self.row(owner, session_id)
        with self._db.session_rows(session_id, "messages") as rows:
            if row := rows.get(message_id):
                return row
        raise NotFound("There is no such message in this chat. Reload the page to see what there is.")

    def summary(self, owner: str, session_id: str, id_: str) -> Row:
        """``{id, turns, text}``: the first and the last turn of which it tells. Raises NotFound."""
        self.row(owner, session_id)
        with self._db.session_rows(session_id, "cuts") as rows:
            if row := rows.get(id_):
                return _summary(row)
        raise NotFound("There is no such summary in this chat. It belonged to the chat that this one was made from.")

    def version(self, session_id: str) -> int:
        """See ``chat.branches``. Raises NotFound."""
        with self._db.session_rows(session_id, "messages") as rows:
            return branches.version(rows)

    def select_branch(self, owner: str, session_id: str, message_id: str) -> Row:
        """Show the branch on which a message stands. Raises NotFound."""
        self.row(owner, session_id)
        with self._db.session_rows(session_id, "messages") as rows:
            branches.select(rows, message_id)
        self._revisions[owner] += 1
        return self.get(owner, session_id)

    def row(self, owner: str, session_id: str) -> Row:
        """The index row of a session that is there for ``owner``. Raises NotFound."""
        return self._db.owned_session(owner, session_id)

    def rename(self, owner: str, session_id: str, title: str) -> Row:
        """Raises BadRequest for an empty title, NotFound."""
        if not (clean := _clean(title)):
            raise BadRequest("A chat needs a name. Type at least one character.")
        self.row(owner, session_id)
        self._change(session_id, {"title": clean, "auto_title": False})
        return _public(self.row(owner, session_id))

    def entitle(self, session_id: str, title: str) -> None:
        """Name a session whose user gave it no name."""
        self._change(session_id, {"title": _clean(title), "auto_title": False})

    def set_model(self, owner: str, session_id: str, model: str) -> None:
        self.row(owner, session_id)
        self._change(session_id, {"model": model})

    def set_settings(self, owner: str, session_id: str, values: Row) -> None:
        """Replace the session's own sampling and system prompt. They must have been checked."""
        self.row(owner, session_id)
        self._change(session_id, {"settings": values})

    def delete(self, owner: str, session_id: str) -> Row:
        """Hide a session; it is gone for good once ``undo_until`` (a Unix time) has passed."""
        self.purge()
        self.row(owner, session_id)
        undo_until = time.time() + UNDO_SECONDS
        self._change(session_id, {"undo_until": undo_until})
        return {"id": session_id, "undo_until": undo_until}

    def restore(self, owner: str, session_id: str) -> Row:
        """Undo a deletion. Raises NotFound when it is too late."""
        self.purge()
        self._db.owned_session(owner, session_id, deleted=True)
        self._change(session_id, {"undo_until": None})
        return _public(self.row(owner, session_id))

    def touch(self, session_id: str, fields: Row) -> None:
        """Record activity of a turn; it is on the medium with the next ``Database.flush``."""
        self._db.update_session_later(session_id, fields)
        self.changed(session_id)

    def export(self, owner: str, session_id: str, format: str = "json") -> str:
        """The whole session as JSON, or the branch that is shown as Markdown; ``import_`` reads both.

        Raises BadRequest for another format.
        """
        session = self.get(owner, session_id)
        if format == "markdown":
            return transfer.to_markdown(session)
        if format != "json":
            raise BadRequest(f'Unknown format "{format}". Use "json" or "markdown".')
        here = {row["id"] for row in session["messages"]}
        others = [row for row in self._db.messages(session_id) if row["id"] not in here]
        return json.dumps({**session, "other_branches": others}, ensure_ascii=False, indent=1)

    def import_(self, owner: str, text: str, allowed: Container[str] | None = None) -> Row:
        """A new session from exported JSON or Markdown, without models that are not ``allowed``. Raises BadRequest."""
        found = transfer.read(text)
        if allowed is not None:
            found.model = found.model if found.model in allowed else ""
            for row in found.messages:  # one that was cut is continued with its own model
                row["model"] = row["model"] if row["model"] in allowed else ""
        created = self.create(owner, found.title, found.model)
        self._db.add_messages(created["id"], found.messages)
        turns = sum(m["role"] == "user" for m in found.messages)
        self._change(created["id"], {"turns": turns, "settings": found.settings})
        return _public(self.row(owner, created["id"]))

    def revision(self, owner: str) -> int:
        """Grows with every change to this owner's sessions, so that a page can ask whether it is still right."""
        return self._revisions[owner]

    def changed(self, session_id: str) -> None:
        """Something that a page shows of a session changed, if it is still there."""
        with suppress(NotFound):
            self._revisions[self._db.session(session_id)["owner"]] += 1

    def _change(self, session_id: str, fields: Row) -> None:
        self._db.update_session(session_id, fields)
        self.changed(session_id)

    def purge(self) -> None:
        """Remove for good what can no longer be restored."""
        for row in self._db.sessions_with("undo_until"):
            if row["undo_until"] < time.time():
                self._db.remove_session(row["id"])
                self._revisions[row["owner"]] += 1


def _public(row: Row) -> Row:
    return {name: row[name] for name in LISTED}


def _summary(cut: Row) -> Row:
    return {"id": cut["id"], "turns": [number(cut["first"]), number(cut["covers"])], "text": cut["summary"]}


def _clean(title: str) -> str:
    """One printable line."""
    return " ".join("".join(c if c.isprintable() else " " for c in title).split())[:_MAX_TITLE]
