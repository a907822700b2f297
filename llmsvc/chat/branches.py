"""A session's messages are a tree: an edit, or another answer, begins a branch and overwrites nothing.

Each row has ``parent`` (an id, "" at the start), ``depth`` (1 at the start) and ``chosen``, a number that grows within
its session. The row with the largest ``chosen`` is the tip of the branch that is shown, and that number is the
session's version: a client that knows a smaller one is out of date.
"""

from collections.abc import Iterator
from itertools import islice

from llmsvc.errors import NotFound
from llmsvc.store.database import Row
from llmsvc.store.rows import Rows


def tip(rows: Rows) -> Row | None:
    """The last message of the branch that is shown."""
    return rows.greatest("chosen")


def version(rows: Rows) -> int:
    """0 for a session without messages."""
    return rows.most("chosen")


def upward(rows: Rows, id_: str) -> Iterator[Row]:
    """The message and those before it, newest first, read one by one."""
    while row := rows.get(id_):
        yield row
        id_ = row["parent"]


def shown(rows: Rows, limit: int | None = None) -> list[Row]:
    """The last ``limit`` messages of the shown branch, oldest first.

    Each has ``branches``: the ids of the messages that stand in its place on some branch, itself among them, oldest
    first.
    """
    last = tip(rows)
    found = list(islice(upward(rows, last["id"]), limit)) if last else []
    siblings: dict[str, list[str]] = {row["parent"]: [] for row in found}

    def note(row: Row) -> bool:
        if row["parent"] in siblings:
            siblings[row["parent"]].append(row["id"])
        return False

    rows.find(note)
    return [{**row, "branches": siblings[row["parent"]]} for row in reversed(found)]


def select(rows: Rows, id_: str) -> None:
    """Show the branch of a message, as far as it was last shown. Raises NotFound."""
    if id_ not in rows:
        raise NotFound("There is no such message in this chat. Reload the page to see what there is.")
    ends: dict[str, tuple[int, str]] = {}
    for row in reversed(rows.all()):  # children come before their parents
        end = max(ends.get(row["id"], (0, "")), (row["chosen"], row["id"]))
        ends[row["id"]] = end
        ends[row["parent"]] = max(ends.get(row["parent"], end), end)
    rows.update(ends[id_][1], {"chosen": version(rows) + 1})
