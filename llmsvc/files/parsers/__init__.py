"""One module for each kind of file. They run in the child process only, and may fail in any way.

Each has ``pages(given, report)``, which yields the text of one page, or another convenient part, after the other.
Headings are Markdown's, tables are Markdown's, whatever the file was. ``report(name, value)`` tells facts as soon as
they are known: ``pages`` (how many there will be), ``encoding``, ``note`` (what the user should know of the result),
``cut`` (there is more than may be read).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Report = Callable[[str, Any], None]


@dataclass(frozen=True)
class Given:
    path: Path
    name: str
    password: str = ""
    encoding: str = ""
    """As the user says; empty: guess."""
    characters: int = 5_000_000
    """More than these are not wanted."""


class Refused(Exception):
    """The file cannot be read; the text tells the user what to do."""


class PasswordMissing(Refused):
    """It is encrypted, and the password that was given, if any, does not open it."""


class ScannedOnly(Refused):
    """There are pictures of pages, and no text."""


def table(rows: Sequence[Sequence[str | None]]) -> str:
    """Rows as a Markdown table, the first one as its head. Empty rows are left out."""
    lines = [[" ".join((cell or "").replace("|", "\\|").split()) for cell in row] for row in rows]
    lines = [row for row in lines if any(row)]
    if not lines:
        return ""
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
