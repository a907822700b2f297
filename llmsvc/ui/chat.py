"""Messages as gr.Chatbot shows them."""

from html import escape
from typing import Any

WINDOW = 40
"""Messages mounted at once: the browser's cost grows with each one."""

Message = dict[str, Any]


def window(messages: list[dict[str, Any]], running_id: str = "") -> list[Message]:
    """The last messages, without the answer that is still running: that one is streamed apart."""
    return [as_message(m) for m in messages[-WINDOW:] if m["id"] != running_id]


def as_message(row: dict[str, Any]) -> Message:
    """A stored message."""
    if row["role"] != "assistant":
        return _message(row["role"], row["content"])
    return _message("assistant", row["content"], _footer(row))


def live(text: str, status: dict[str, Any]) -> list[Message]:
    """The running answer, as far as it is."""
    if not text:
        waiting = escape(status["note"]) or {"prefill": "Reading…"}.get(status["state"], "Waiting…")
        return [_message("assistant", f'<span class="waiting">{waiting}</span>')]
    return [_message("assistant", text, _footer(status) if status["usage"] else "")]


def _message(role: str, text: str, footer: str = "") -> Message:
    # A typed part, because a bare string is dedented by the component.
    return {"role": role, "content": [{"type": "text", "text": f"{_closed(text)}\n\n{footer}" if footer else text}]}


def _closed(text: str) -> str:
    """Close a code block that was cut, or the footer would become code."""
    return text + "\n```" if sum(line.lstrip().startswith("```") for line in text.splitlines()) % 2 else text


def _footer(row: dict[str, Any]) -> str:
    usage, parts = row["usage"], []
    if usage.get("completion_tokens"):
        parts.append(f"{usage['completion_tokens']} tokens")
    if usage.get("tokens_per_second"):
        parts.append(f"{usage['tokens_per_second']} tok/s")
    if left_out := row["context"].get("turns_left_out"):
        parts.append(f"{left_out} older turn{'s' * (left_out > 1)} left out")
    if usage.get("finish_reason") == "length":
        parts.append("cut at the token limit")
    if row["state"] in ("stopped", "interrupted"):
        parts.append(row["state"])
    footer = f'<sub class="usage">{" · ".join(parts)}</sub>' if parts else ""
    if row["error"]:
        footer += f'<div class="failed">{escape(row["error"])}</div>'
    return footer
