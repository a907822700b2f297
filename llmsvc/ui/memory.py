"""The facts that a user wants to be remembered in every chat, as HTML: one component, whatever their number."""

from html import escape
from typing import Any

from llmsvc.chat.memory import LONGEST

JS = """
element.addEventListener('change', (e) => {
  const at = e.target.closest('li');
  if (e.target.type === 'checkbox') trigger('select', {action: 'switch', on: e.target.checked});
  else if (at && e.target.value.trim()) trigger('select', {action: 'set', id: at.dataset.id, text: e.target.value});
  else if (at) trigger('select', {action: 'delete', id: at.dataset.id});
});
element.addEventListener('submit', (e) => {
  e.preventDefault();
  const text = e.target.querySelector('input').value;
  if (text.trim()) trigger('select', {action: 'set', id: '', text});
});
element.addEventListener('click', (e) => {
  const button = e.target.closest('[data-act]');
  if (button?.dataset.act === 'undo') trigger('select', {action: 'set', id: '', text: button.dataset.text});
  else if (button) trigger('select', {action: 'delete', id: button.closest('li').dataset.id});
});
"""


def panel(known: dict[str, Any], deleted: str = "") -> str:
    """A switch, the facts, a field for another one, and a way to bring back the one that was just ``deleted``."""
    facts = "".join(map(_fact, known["facts"]))
    undo = ""
    if deleted:
        text = escape(deleted, quote=True)
        undo = f'<button class="undo" data-act="undo" data-text="{text}">Undo: delete “{escape(deleted[:30])}”</button>'
    return (
        f'<div class="memory"><label><input type="checkbox"{" checked" * known["on"]}> Use in all my chats</label>'
        "<p>What stands here is in every prompt. A message that begins with “Remember:” is added while this is on.</p>"
        f'<ul aria-label="Facts">{facts}</ul>{undo}<form><input maxlength="{LONGEST}" placeholder="Add a fact" '
        'aria-label="Add a fact"><button>Add</button></form></div>'
    )


def _fact(fact: dict[str, str]) -> str:
    text = escape(fact["text"], quote=True)
    return (
        f'<li data-id="{fact["id"]}"><input value="{text}" maxlength="{LONGEST}" aria-label="A fact">'
        f'<button data-act="delete" aria-label="Delete: {text}" title="Delete">×</button></li>'
    )
