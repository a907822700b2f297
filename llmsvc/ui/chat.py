"""Messages as gr.Chatbot shows them."""

import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from llmsvc.chat.transfer import parted

WINDOW = 24
"""Messages mounted at once: the browser's cost grows with each one, and they are sent again when ``RECENT`` is full."""

RECENT = 12
"""Of them, at most so many stand in a part of their own, so that the others need not be sent again at each turn."""

Message = dict[str, Any]
Source = dict[str, Any]

LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
"""Not the single dollar: people write of money."""

_VERBATIM = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,}).*?(?:^ {0,3}(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)"
    r"|\$\$.*?\$\$|\\\(.*?\\\)|\\\[.*?\\\]",
    re.DOTALL | re.MULTILINE,
)
"""Code and mathematics: what stands there is left alone."""


def window(messages: list[dict[str, Any]], running_id: str = "") -> list[Message]:
    """Stored messages, without the answer that is still running: that one is streamed apart."""
    return [message for m in messages if m["id"] != running_id for message in as_messages(m)]


def as_messages(row: dict[str, Any]) -> list[Message]:
    """A stored message with what can be done about it, and before an answer its reasoning, folded."""
    if row["role"] == "user":
        return [_message("user", row["content"], [_button("edit", row["id"], "Edit", "✎"), *_pager(row)])]
    again = _button("again", row["id"], "Answer again", "↻") if row["role"] == "assistant" else ""
    footer = [again, *_pager(row), *_facts(row)]
    reasoning, content = parted(row)
    answer = _message(row["role"], content, footer, row["error"], row["sources"], _ledger(row))
    return [*([_thought(reasoning, row["usage"])] if reasoning else []), answer]


def _thought(reasoning: str, usage: dict[str, Any]) -> Message:
    # "done" is folded, and unfolded by a click or the Enter key.
    metadata = {"title": _thinking_time(usage.get("thinking_seconds") or 0), "status": "done"}
    return {**_typed("assistant", _closed(_escaped(reasoning))), "metadata": metadata}


def _thinking_time(seconds: float) -> str:
    """As ``thinkingTime`` in assets/live.js."""
    whole = max(1, round(seconds))
    time = f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"
    return f"Thought for {time}" if seconds else "Reasoning"


def waiting(rows: list[dict[str, Any]], running: bool) -> str:
    """The messages that wait for their answer."""
    cards = []
    for row in rows:
        text = escape(" ".join(row["content"].split())[:300])
        buttons = "" if running else _act("send", row["id"], "Answer now", "Send")
        buttons += _act("edit-queued", row["id"], "Edit", "✎") + _act("withdraw", row["id"], "Withdraw", "×")
        cards.append(f"<li><b>{'Queued' if running else 'Waiting'}</b><span>{text}</span>{buttons}</li>")
    return f'<ul class="waiting-list" aria-label="Messages that wait">{"".join(cards)}</ul>' if cards else ""


def editing(kind: str, note: str = "") -> str:
    """What stands above the composer: what went wrong, and that it holds a message that is being changed."""
    said = f'<p role="alert" class="note">{escape(note)}</p>' if note else ""
    if not kind:
        return said
    what = "Editing a waiting message." if kind == "queued" else "Editing. Sending begins a new branch."
    return f'{said}<p role="status">{what} {_act("cancel", "", "Cancel (Esc)", "Cancel")}</p>'


def _act(action: str, id_: str, label: str, shown: str) -> str:
    return f'<button data-act="{action}" data-id="{id_}" title="{label}" aria-label="{label}">{shown}</button>'


def _button(action: str, id_: str, label: str, shown: str) -> str:
    # Inside a message only class, title and the like pass the sanitizer, so the class tells what and whom.
    return f'<button class="act do-{action} to-{id_}" title="{label}">{shown}</button>'


def _pager(row: dict[str, Any]) -> list[str]:
    ids = row.get("branches", [])
    if len(ids) < 2:
        return []
    at = ids.index(row["id"])
    before = _button("go", ids[at - 1], "Previous version", "‹") if at else "‹"
    after = _button("go", ids[at + 1], "Next version", "›") if at + 1 < len(ids) else "›"
    return [f'<span class="pager">{before} {at + 1}/{len(ids)} {after}</span>']


def _message(
    role: str, text: str, footer: list[str], error: str = "", sources: Sequence[Source] = (), below: str = ""
) -> Message:
    if error:
        footer = [*footer, f'<span class="failed">{escape(error)}</span>']
    shown, text = " · ".join(part for part in footer if part), _cited(text, sources)
    return _typed(role, f'{_closed(text)}\n\n<sub class="usage">{shown}</sub>{below}' if shown else text)


def _cited(text: str, sources: Sequence[Source]) -> str:
    """Markup as it was written, and places in files, like [report.pdf p.2], as buttons that open them."""
    files = {source["name"]: source["file_id"] for source in sources}
    if not files or "[" not in text:
        return _escaped(text)
    places = {source["place"]: source["page"] for source in sources}
    names = "|".join(re.escape(name.replace("<", "&lt;")) for name in files)
    citation = re.compile(rf"\[({names})(?:,? (?:p\.? ?(\d+)|([^\]\n]{{1,80}})))?\](?!\()")

    def button(found: re.Match[str]) -> str:
        page = int(found[2] or places.get(found[3] or "", 1))
        return _place(files[found[1].replace("&lt;", "<")], page, found[0][1:-1])

    return _escaped(text, lambda part: citation.sub(button, part))


def _place(file_id: str, page: int, shown: str) -> str:
    return f'<button class="act cite do-file-open to-{file_id}:{page}" title="Show this place">{shown}</button>'


_PARTS = {
    "system": "system",
    "memory": "memory",
    "files": "whole files",
    "summary": "summary",
    "history": "earlier messages",
    "excerpts": "passages",
    "recalled": "found in earlier turns",
    "message": "your message",
}


def _ledger(row: dict[str, Any]) -> str:
    """What was in the prompt besides the whole talk: one line, and the rest when it is opened."""
    ledger, sources = row["context"], row["sources"]
    told = ("files", "passages", "memory", "summary", "recalled", "turns_left_out", "left_out")
    if not any(ledger.get(name) for name in told):
        return ""
    counted = {name: ledger.get(name) for name in (*_PARTS, *told, "prompt", "window", "passages_read")}
    tokens = {name: value for name, value in counted.items() if isinstance(value, int)}
    lines = [", ".join(f"{label} {tokens[name]:,}" for name, label in _PARTS.items() if tokens.get(name))]
    places: dict[str, list[str]] = {}
    for source in sources:
        shown = escape("whole" if source.get("whole") else source["place"] or f"part {source['page']}")
        places.setdefault(source["name"], []).append(_place(source["file_id"], source["page"], shown))
    lines += [f"{escape(name)}: {', '.join(dict.fromkeys(found))}" for name, found in places.items()]
    if passages := tokens.get("passages", 0):
        lines.append(f"{tokens.get('passages_read', 0):,} of {passages:,} passages of the files that are searched")
    lines += _earlier_turns(ledger)
    left = [f'<span class="left-out">{escape(str(note))}.</span>' for note in ledger.get("left_out") or ()]
    flag = '<span class="left-out">something was left out</span>' if left else ""
    about = "about " if ledger.get("estimated") else ""
    head = f"{about}{tokens.get('prompt', 0):,} of {tokens.get('window', 0):,} tokens read"
    head = " · ".join(filter(None, (head, escape(", ".join(places)), flag)))
    return f'\n\n<details class="ledger"><summary>{head}</summary>{"<br>".join([*lines, *left])}</details>'


def _earlier_turns(ledger: dict[str, Any]) -> list[str]:
    """What stands for turns that are not there word by word."""
    lines = []
    cut, first, count = (ledger.get(name) for name in ("cut", "summarised_from", "turns_summarised"))
    if ledger.get("summary") and isinstance(first, int) and isinstance(count, int) and str(cut).isalnum():
        shown = f"turn {first}" if count == 1 else f"turns {first}–{first + count - 1}"
        button = f'<button class="act cite do-file-summary to-{cut}" title="Show the summary">{shown}</button>'
        lines.append(f"{button} as a summary")
    depths = {piece.get("depth") for piece in ledger.get("recalled_from") or () if isinstance(piece, dict)}
    if found := sorted(depth for depth in depths if isinstance(depth, int)):
        lines.append(f"found again: {', '.join(f'turn {(depth + 1) // 2}' for depth in found)}")
    return lines


def _typed(role: str, text: str) -> Message:
    # A typed part, because a bare string is dedented by the component.
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _escaped(text: str, change: Callable[[str], str] = str) -> str:
    """Markup that is neither code nor mathematics is shown as it was written; the rest may be changed besides."""
    if "<" not in text and change is str:
        return text
    parts, end = [], 0
    for found in _VERBATIM.finditer(text):
        parts += [change(text[end : found.start()].replace("<", "&lt;")), found[0]]
        end = found.end()
    return "".join([*parts, change(text[end:].replace("<", "&lt;"))])


def _closed(text: str) -> str:
    """Close a code block that was cut, or the footer would become code."""
    return text + "\n```" if sum(line.lstrip().startswith("```") for line in text.splitlines()) % 2 else text


def _facts(row: dict[str, Any]) -> list[str]:
    usage, parts = row["usage"], []
    if usage.get("completion_tokens"):
        parts.append(f"{usage['completion_tokens']} tokens")
    if usage.get("tokens_per_second"):
        parts.append(f"{usage['tokens_per_second']} tok/s")
    if left_out := row["context"].get("turns_left_out"):
        parts.append(f"{left_out} older turn{'s' * (left_out > 1)} left out")
    if usage.get("finish_reason") == "length":
        parts.append("cut at the token limit")
    if usage.get("finish_reason") == "stop" and row["state"] == "done" and row.get("reasoning") and not row["content"]:
        parts.append("ended within its reasoning")
    if usage.get("finish_reason") == "repetition":
        parts.append("stopped: it repeated itself")
    if row["state"] in ("stopped", "interrupted"):
        parts.append(row["state"])
    return parts
