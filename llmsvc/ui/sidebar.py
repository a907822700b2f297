"""The list of sessions, as HTML: one component instead of four buttons per chat."""

from datetime import datetime, time, timedelta
from functools import lru_cache
from html import escape
from itertools import groupby
from math import inf
from typing import Any

MOST = 200
"""Chats shown at once; older ones are found by searching."""

JS = """
// The list may be drawn anew between the press and the release, and then the click hits no row.
let pressed = null;
element.addEventListener('pointerdown', (e) => { pressed = e.target; });
element.addEventListener('click', (e) => {
  const hit = e.target.closest('[data-id]') ? e.target : pressed, row = hit?.closest('[data-id]');
  pressed = null;
  if (!row) return;
  const act = hit.closest('[data-act]')?.dataset.act ?? 'open';
  if (act === 'rename') return edit(row.dataset.id);
  if (!e.target.closest('input')) trigger('select', {action: act, id: row.dataset.id});
});
function edit(id) {
  const box = document.createElement('input'), title = place()?.title;
  if (title === undefined) return;
  function place() { return element.querySelector(`[data-id="${id}"] .name`); }
  function put() { place()?.replaceWith(box); box.focus(); }
  let over = false;
  const watch = new MutationObserver(() => { if (!box.isConnected) put(); });  // the list was drawn anew
  const end = (save) => {
    if (over) return;
    over = true; watch.disconnect();
    const name = document.createElement('span');
    name.className = 'name'; name.textContent = name.title = title; box.replaceWith(name);
    if (save && box.value.trim() && box.value !== title) trigger('select', {action: 'rename', id, title: box.value});
  };
  box.value = title; box.setAttribute('aria-label', 'Name of this chat');
  box.addEventListener('keydown', (e) => { if (e.key === 'Enter') end(true); if (e.key === 'Escape') end(false); });
  box.addEventListener('blur', () => setTimeout(() => { if (document.activeElement !== box) end(true); }));
  put(); box.select(); watch.observe(element, {childList: true, subtree: true});
}
"""


def session_list(rows: list[dict[str, Any]], current: str, running: set[str], query: str = "") -> str:
    """Grouped by age, the open one marked, a dot on those being answered."""
    if not rows:
        text = "No chat matches." if query else "Your chats will appear here."
        return f'<div class="sessions"><p class="empty">{text}</p></div>'
    parts = []
    ages = _ages()
    for group, members in groupby(rows, lambda r: next(name for since, name in ages if r["updated_at"] >= since)):
        parts.append(f"<h3>{group}</h3><ul>")
        parts += [_item(row["id"], row["title"], row["id"] == current, row["id"] in running) for row in members]
        parts.append("</ul>")
    if len(rows) >= MOST:
        parts.append('<p class="empty">Search to find older chats.</p>')
    return f'<nav class="sessions" aria-label="Chats">{"".join(parts)}</nav>'


@lru_cache(4096)
def _item(id_: str, title: str, open_: bool, running: bool) -> str:
    title = escape(title, quote=True)
    dot = '<i class="dot" title="being answered"></i>' if running else ""
    current = ' class="current"' if open_ else ""
    mark = ' aria-current="true"' if open_ else ""
    return (
        f'<li data-id="{id_}"{current}><button class="open"{mark}>'
        f'<span class="name" title="{title}">{title}</span>'
        f"{dot}</button>"
        f'<button class="act" data-act="rename" aria-label="Rename {title}" title="Rename"></button>'
        f'<button class="act" data-act="delete" aria-label="Delete {title}" title="Delete"></button></li>'
    )


def _ages() -> list[tuple[float, str]]:
    """Names of times, newest first, each with when it began."""
    today = datetime.combine(datetime.now().date(), time())

    def before(days: int) -> float:
        return (today - timedelta(days=days)).timestamp()

    return [(before(0), "Today"), (before(1), "Yesterday"), (before(6), "Previous 7 days"), (-inf, "Older")]
