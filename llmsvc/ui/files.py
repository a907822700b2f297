"""The files of a chat as HTML: chips above the composer, cards in the Files tab, and the text that was read."""

from html import escape
from typing import Any

from llmsvc.files.limits import Limits, size

SHOWN = 40_000
"""Characters of a file's text at once."""
_ENCODINGS = [
    *("utf-8", "cp1252", "utf-16", "cp1250", "cp1251", "cp1253", "cp1255", "cp1256", "koi8-r"),
    *("shift_jis", "gb18030", "big5", "euc-kr"),
]
_STATES = {
    "queued": "waiting",
    "ready": "ready",
    "partial": "partly read",
    "needs OCR": "needs OCR",
    "failed": "not read",
}

_CLOSE = '<button data-act="file-close" data-id="" aria-label="Close the text">Close</button>'

Row = dict[str, Any]


def chips(rows: list[Row]) -> str:
    """One for each file: its state, a button to read it and one to remove it."""
    if not rows:
        return ""
    return f'<ul class="chips" aria-label="Files of this chat">{"".join(map(_chip, rows))}</ul>'


def _chip(row: Row) -> str:
    name, hint = escape(row["name"], quote=True), escape(row["error"] or row["note"], quote=True)
    return (
        f'<li class="{_look(row)}">'
        f'<button data-act="file-open" data-id="{row["id"]}" title="{hint or "Show its text"}">'
        f"<b>{name}</b><span>{_state(row)}</span></button>{_remove(row, '×')}{_bar(row)}</li>"
    )


def hint(limits: Limits) -> str:
    """What may be uploaded."""
    return (
        '<p class="hint">PDF, DOCX, text in any encoding, Markdown, CSV, JSON, HTML and source code. '
        f"At most {size(limits.upload)} each, {limits.files} files in a chat.</p>"
    )


def cards(rows: list[Row]) -> str:
    """The Files tab."""
    return "".join(map(_card, rows)) or '<p class="empty">This chat has no files. Drop some anywhere on the page.</p>'


def _card(row: Row) -> str:
    facts = [size(row["bytes"]), _pages(row) if row["pages"] > 1 else "", row["kind"].upper() if row["kind"] else ""]
    facts += [f"{row['characters']:,} characters" if row["characters"] else ""]
    detail = " · ".join(fact for fact in facts if fact)
    said = "".join(f"<p>{escape(row[part])}</p>" for part in ("error", "note") if row[part])
    name = escape(row["name"], quote=True)
    return (
        f'<div class="card file {_look(row)}"><div><b>{name}</b><span class="state">{_state(row)}</span>'
        f"<p>{detail}</p>{said}{_bar(row)}{_password(row)}</div>"
        f'<div class="actions">{_encoding(row)}<button data-act="file-open" data-id="{row["id"]}" '
        f'aria-label="Show the text of {name}">Show</button>{_remove(row, "Remove")}</div></div>'
    )


def text(row: Row, pages: list[str], first: int) -> str:
    """What was read from a file, from page ``first`` (from 1) on."""
    first = min(max(1, first), max(1, len(pages)))
    shown, last = list[str](), first - 1
    for number, page in enumerate(pages[first - 1 :], first):
        if shown and sum(map(len, shown)) + len(page) > SHOWN:
            break
        head = f"<h4>{_unit(row).capitalize()} {number}</h4>" if len(pages) > 1 else ""
        shown.append(f'{head}<pre dir="auto">{escape(page) or "(no text)"}</pre>')
        last = number
    before = _turn(row, max(1, first - max(1, last - first + 1)), "Earlier") if first > 1 else ""
    after = _turn(row, last + 1, "Later") if last < len(pages) else ""
    what = f"{_unit(row)} {first} to {last} of {len(pages)}" if before or after else ""
    return (
        f'<section class="file-text" tabindex="-1" aria-label="Text of {escape(row["name"], quote=True)}"><header>'
        f"<b>{escape(row['name'])}</b><span>{what}</span>{before}{after}{_CLOSE}</header>"
        f"{''.join(shown) or '<p class=empty>Nothing was read yet.</p>'}</section>"
    )


def summary(row: Row) -> str:
    """What stands for turns that no longer fit into the prompt."""
    first, last = row["turns"]
    return (
        '<section class="file-text" tabindex="-1" aria-label="Summary of earlier turns"><header>'
        f"<b>Turns {first} to {last}, as the model reads them now</b>{_CLOSE}</header>"
        f'<pre dir="auto">{escape(row["text"])}</pre></section>'
    )


def _turn(row: Row, page: int, label: str) -> str:
    return f'<button data-act="file-open" data-id="{row["id"]}:{page}">{label}</button>'


def _look(row: Row) -> str:
    return "ready" if row["state"] == "ready" else "loading" if row["state"] in ("queued", "parsing") else "failed"


def _state(row: Row) -> str:
    if row["state"] == "parsing":
        return f"reading {round(100 * row['progress'])} %" if row["pages"] else "reading"
    if row["state"] == "ready" and row["pages"] > 1:
        return _pages(row)
    return _STATES.get(row["state"]) or str(row["state"])


def _pages(row: Row) -> str:
    return f"{row['pages']} {_unit(row)}{'s' * (row['pages'] != 1)}"


def _unit(row: Row) -> str:
    return "page" if row["kind"] in ("pdf", "") else "part"


def _bar(row: Row) -> str:
    if row["state"] not in ("queued", "parsing"):
        return ""
    return f'<div class="bar"><i style="width:{round(100 * row["progress"])}%"></i></div>'


def _remove(row: Row, label: str) -> str:
    name = escape(row["name"], quote=True)
    return f'<button data-act="file-remove" data-id="{row["id"]}" aria-label="Remove {name}">{label}</button>'


def _password(row: Row) -> str:
    if not row["locked"]:
        return ""
    return (
        f'<form data-act="file-password" data-id="{row["id"]}"><input type="password" autocomplete="off" '
        'aria-label="Password of the file" placeholder="Password"><button>Open</button></form>'
    )


def _encoding(row: Row) -> str:
    """Only text has one, and a guess may be wrong."""
    if not row["encoding"]:
        return ""
    names = list(dict.fromkeys([row["encoding"], *_ENCODINGS]))
    options = "".join(f"<option{' selected' * (name == row['encoding'])}>{escape(name)}</option>" for name in names)
    return f'<select data-act="file-encoding" data-id="{row["id"]}" aria-label="Encoding">{options}</select>'
