"""What the page says of models: the chip above the chat, and the Models tab."""

from html import escape
from typing import Any

from llmsvc.models.memory import size

JS = """
element.addEventListener('click', (e) => {
  const button = e.target.closest('[data-act]');
  if (!button) return;
  button.closest('details')?.removeAttribute('open');
  if (button.dataset.act === 'tab') return document.querySelector('[role=tab]:nth-of-type(2)')?.click();
  trigger('select', {action: button.dataset.act, id: button.dataset.id});
});
"""
_MOST_CHOICES = 8


def chip(model_id: str, rows: list[dict[str, Any]], admin: bool) -> str:
    """State of the model that the open chat uses, and the other loaded ones to switch to; for the admin, to unload."""
    row = next((r for r in rows if r["id"] == model_id), None)
    state, detail = _state(row)
    above, slash, name = (escape(part) for part in _short(model_id).rpartition("/"))
    others = [r for r in rows if r["id"] != model_id and r["state"] in ("ready", "parked")][:_MOST_CHOICES]
    shown = f'<i></i><b><em>{above}{slash}</em>{name}</b><span role="status">{escape(detail)}</span>'
    choices = "".join(_button("use", _short(r["id"]), r["id"]) for r in others)
    here = admin and row and row["state"] in ("ready", "parked") and row["device"] != "remote"
    eject = _button("unload", "Unload", model_id) if here else ""
    menu = f'{choices}{eject}<button data-act="tab">More models…</button>'
    return f'<details class="chip {state}"><summary>{shown}</summary><menu>{menu}</menu></details>'


def _state(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None:
        return "idle", "loads when you send a message"
    if row["state"] == "ready" and row["device"] == "remote":
        return "ready", "on another server · ready"
    if row["state"] == "ready":
        detail = f"{row['dtype']} · {size(row['memory_bytes'])} · {row['device']} · ready"
        return "ready", detail + (" · base model, plain template" if row["plain_template"] else "")
    if row["state"] == "failed":
        return "failed", row["error"]
    if row["state"] == "parked":
        return "parked", "parked · comes back when you send a message"
    return "loading", f"{row['stage']}{_percent(row)}"


def model_table(loaded: list[dict[str, Any]], current: str, usage: dict[str, int], admin: bool) -> str:
    """The memory that models take, and the loaded ones with the actions that one may take."""
    meter = _meter("In memory", usage["used"], usage["limit"])
    if usage["parked"]:
        meter += _meter("Parked", usage["parked"], usage["parked_limit"])
    if not loaded:
        hint = "Choose one below and press Load." if admin else "One is loaded when you send a message."
        return f'{meter}<p class="empty">No model is loaded. {hint}</p>'
    return f'{meter}<div class="models">{"".join(_card(row, row["id"] == current, admin) for row in loaded)}</div>'


def _meter(label: str, used: int, limit: int) -> str:
    width = min(100, 100 * used // (limit or 1))
    return (
        f'<div class="meter"><span>{label}</span><div class="bar"><i style="width:{width}%"></i></div>'
        f"<span>{size(used)} of {size(limit)}</span></div>"
    )


def _card(row: dict[str, Any], current: bool, admin: bool) -> str:
    name, state = escape(row["id"], quote=True), escape(row["state"])
    detail, buttons = "", []
    if row["state"] in ("ready", "parked"):
        rate = f"{row['tokens_per_second']:.0f} tokens/s" if row["tokens_per_second"] else ""
        facts = [row["device"], row["dtype"], size(row["memory_bytes"])]
        facts += [f"{size(row['kv_bytes'])} of chats" if row["kv_bytes"] > 10**6 else ""]
        facts += [f"{row['context']:,} tokens of context", row["note"]]
        facts += ["one answer at a time" * (row["served"] == "one at a time"), "pinned" * row["pinned"]]
        facts += [f"{row['running']} running" if row["running"] else "", rate if row["running"] else ""]
        facts += [f"{row['queued']} queued" if row["queued"] else ""]
        detail = " · ".join(escape(f) for f in facts if f)
        if admin:
            buttons.append(_button("unpin", "Unpin", name) if row["pinned"] else _button("pin", "Pin", name))
    if row["state"] == "loading":
        width = 100 * row["done"] // row["total"] if row["total"] else 0
        detail = (
            f'{escape(row["stage"])}{_percent(row)}{_bytes(row)}<div class="bar"><i style="width:{width}%"></i></div>'
        )
    if row["state"] == "failed":
        detail = escape(row["error"])
    if row["device"] == "remote":
        facts = [row["stage"], f"reads {row['context']:,} tokens", f"{row['running']} running" * bool(row["running"])]
        facts += [f"{row['queued']} queued" * bool(row["queued"])]
        detail, buttons = " · ".join(escape(fact) for fact in facts if fact), []
    usable = row["state"] != "failed"
    use = "<em>used in this chat</em>" if current else _button("use", "Use in this chat", name) * usable
    if admin and row["device"] != "remote":
        last = {"loading": "Cancel", "failed": "Dismiss"}.get(row["state"], "Unload")
        buttons.append(_button("unload", last, name))
    return (
        f'<div class="card {state}"><div><b>{name}</b><span class="state">{state}</span><p>{detail}</p></div>'
        f'<div class="actions">{use}{"".join(buttons)}</div></div>'
    )


def _button(action: str, label: str, model_id: str) -> str:
    return f'<button data-act="{action}" data-id="{escape(model_id, quote=True)}">{escape(label)}</button>'


def servers(rows: list[dict[str, Any]]) -> str:
    """Other servers, and what they have."""
    if not rows:
        return hint("Models of any server with an OpenAI API: vLLM, SGLang, llama.cpp, another llmsvc.")
    return f'<div class="models">{"".join(map(_server, rows))}</div>'


def _server(row: dict[str, Any]) -> str:
    facts = [row["error"], ", ".join(row["models"]), f"{row['running']} running" * bool(row["running"])]
    facts += ["with a key" * row["key"], "given with --remote" * row["flag"]]
    detail, state = escape(" · ".join(filter(None, facts))), "failed" if row["error"] else "ready"
    remove = "" if row["flag"] else _button("remove", "Remove", row["url"])
    return (
        f'<div class="card {state}"><div><b>{escape(row["url"])}</b><span class="state">{row["state"]}</span>'
        f'<p>{detail}</p></div><div class="actions">{remove}</div></div>'
    )


def found(rows: list[dict[str, Any]]) -> str:
    """What the hub found."""
    if not rows:
        return hint("The hub has no model of that name that writes text. Try fewer words.")
    return f'<div class="models">{"".join(map(_found, rows))}</div>'


def _found(row: dict[str, Any]) -> str:
    name = escape(row["id"], quote=True)
    facts = [
        f"{_count(row['parameters'])} parameters" * bool(row["parameters"]),
        size(row["bytes"]) if row["bytes"] else "",
    ]
    facts += [f"{_count(row['downloads'])} downloads", "on this machine" * row["local"]]
    facts += ["gated: accept its licence there first" * row["gated"], row["served"], rate(row)]
    page = f'<a href="https://huggingface.co/{name}" target="_blank" rel="noopener">About it</a>'
    choose = _button("choose", "Choose", row["id"]) if row["runs"] else ""
    return (
        f'<div class="card {"" if row["runs"] else "failed"}"><div><b>{name}</b>'
        f"<p>{escape(' · '.join(filter(None, facts)))}</p>{_refused(row)}</div>"
        f'<div class="actions">{page}{choose}</div></div>'
    )


def _refused(row: dict[str, Any]) -> str:
    return "" if row["runs"] else f"<p>Will not run here: {escape(row['reason'])}</p>"


def rate(row: dict[str, Any]) -> str:
    """How fast a model is expected to be; nothing where that cannot be said."""
    speed = row["tokens_per_second"]
    return f"about {speed:.{0 if speed >= 10 else 1}f} tokens/s here" if speed else ""


def suggested(rows: list[dict[str, Any]]) -> str:
    """Better models than the embedded one, to choose with one click; nothing where there are none."""
    if not rows:
        return ""
    cards = "".join(
        f'<div class="card"><div><b>{escape(row["id"])}</b><p>{escape(row["why"])} · {size(row["bytes"])}</p></div>'
        f'<div class="actions">{_button("choose", "Choose", row["id"])}</div></div>'
        for row in rows
    )
    said = "The model that comes along is a small one to begin with. Better ones for this machine:"
    return f'{hint(said)}<div class="models">{cards}</div>'


def _count(number: int) -> str:
    """Like 135M."""
    for least, sign in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= least:
            return f"{number / least:.3g}{sign}"
    return str(number)


def hint(text: str) -> str:
    return f'<p class="hint">{escape(text)}</p>'


def forecast(row: dict[str, Any]) -> str:
    """What a model would take, as a bar against what is free, how it would run and how fast; or why it would not."""
    if not row["runs"]:
        return refusal(f"It will not run here: {row['reason']}")
    whole = max(row["free_bytes"], row["peak_bytes"], 1)
    share = {name: 100 * row[name] / whole for name in ("weights_bytes", "peak_bytes", "free_bytes")}
    kv = size(1000 * row["kv_bytes_per_token"]) + " for each 1,000 tokens of a chat"
    kv += f" and {size(row['state_bytes'])} for the chat itself" * bool(row["state_bytes"])
    verdict = "It fits." if row["fits"] else "It does not fit. Choose a smaller model, int8 or nf4, or unload others."
    if row["evicts"]:
        verdict = f"It fits once {', '.join(_short(i) for i in row['evicts'])} made room, which happens by itself."
    how = "; ".join(filter(None, (row["served"], rate(row))))
    how = f"{how[0].upper()}{how[1:]}. " if how else ""
    return (
        f'<div class="forecast {"fits" if row["fits"] else "over"}"><div class="bar">'
        f'<u style="width:{share["peak_bytes"]:.1f}%"></u><i style="width:{share["weights_bytes"]:.1f}%"></i>'
        f'<s style="left:min({share["free_bytes"]:.1f}%, calc(100% - 2px))"></s></div>'
        f"<p>{size(row['weights_bytes'])} of weights, {kv}, at most "
        f"{size(row['peak_bytes'])} · {size(row['free_bytes'])} free. {escape(how)}<b>{escape(verdict)}</b></p></div>"
    )


def refusal(text: str) -> str:
    """Why there is no forecast."""
    return f'<div class="forecast over"><p>{escape(text)}</p></div>'


def choices(catalogue: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What can be loaded, with its size, as label and value."""
    return [
        (f"{row['id']} ({size(row['bytes']) + ', ' if row['bytes'] else ''}{_where(row)})", row["id"])
        for row in catalogue
    ]


def _where(row: dict[str, Any]) -> str:
    if row["source"] == "remote":
        return "on another server"
    return "on this machine" if row["local"] else "to be downloaded"


def _short(model_id: str) -> str:
    return model_id.rsplit("/", 1)[-1] if model_id.startswith("/") else model_id


def _percent(row: dict[str, Any]) -> str:
    return f" {100 * row['done'] // row['total']} %" if row["total"] > 10 else ""


def _bytes(row: dict[str, Any]) -> str:
    speed = f", {size(row['bytes_per_second'])}/s" if row["bytes_per_second"] else ""
    return f", {size(row['done'])} of {size(row['total'])}{speed}" if row["total"] > 10**6 else ""
