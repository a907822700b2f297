"""What the page says of models: the chip above the chat and the list in the Models tab."""

from html import escape
from typing import Any

JS = """
element.addEventListener('click', (e) => {
  const button = e.target.closest('[data-act]');
  if (button) trigger('select', {action: button.dataset.act, id: button.dataset.id});
});
"""


def chip(model_id: str, rows: list[dict[str, Any]]) -> str:
    """State of the model that the open chat uses."""
    row = next((r for r in rows if r["id"] == model_id), None)
    name = escape(_short(model_id))
    if row is None:
        return _chip("idle", name, "loads when you send a message")
    if row["state"] == "ready":
        detail = f"{row['dtype']} · {size(row['memory_bytes'])} · {row['device']} · ready"
        if row["plain_template"]:
            detail += " · base model, plain template"
        return _chip("ready", name, detail)
    if row["state"] == "failed":
        return _chip("failed", name, row["error"])
    return _chip("loading", name, f"{row['stage']}{_percent(row)}")


def _chip(state: str, name: str, detail: str) -> str:
    return f'<div class="chip {state}" role="status"><i></i><b>{name}</b><span>{escape(detail)}</span></div>'


def model_table(loaded: list[dict[str, Any]], current: str) -> str:
    """The loaded models with their actions."""
    if not loaded:
        return '<p class="empty">No model is loaded. Choose one below and press Load.</p>'
    return f'<div class="models">{"".join(_card(row, row["id"] == current) for row in loaded)}</div>'


def _card(row: dict[str, Any], current: bool) -> str:
    name, state = escape(row["id"], quote=True), escape(row["state"])
    facts = [row["device"], row["dtype"], size(row["memory_bytes"]) if row["memory_bytes"] else ""]
    facts += [f"{row['context']:,} tokens of context" if row["context"] else ""]
    facts += [f"{row['running']} running" if row["running"] else "", f"{row['queued']} queued" if row["queued"] else ""]
    detail = " · ".join(escape(f) for f in facts if f) if row["state"] == "ready" else ""
    if row["state"] == "loading":
        width = 100 * row["done"] // row["total"] if row["total"] else 0
        detail = f'{escape(row["stage"])}{_percent(row)}<div class="bar"><i style="width:{width}%"></i></div>'
    if row["state"] == "failed":
        detail = escape(row["error"])
    use = (
        "<em>used in this chat</em>"
        if current
        else f'<button data-act="use" data-id="{name}">Use in this chat</button>'
    )
    return (
        f'<div class="card {state}"><div><b>{name}</b><span class="state">{state}</span><p>{detail}</p></div>'
        f'<div class="actions">{use}<button data-act="unload" data-id="{name}">Unload</button></div></div>'
    )


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _short(model_id: str) -> str:
    return model_id.rsplit("/", 1)[-1] if model_id.startswith("/") else model_id


def _percent(row: dict[str, Any]) -> str:
    return f" {100 * row['done'] // row['total']} %" if row["total"] > 10 else ""
