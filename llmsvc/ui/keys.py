"""One's own API keys on the page: made, listed, revoked. A part of the Settings tab with events of its own."""

import asyncio
import time
from html import escape
from typing import Any

import gradio as gr

from llmsvc.service import Service
from llmsvc.ui.identity import caller_of, key_owner_of

_JS = """
element.addEventListener('click', (e) => {
  const button = e.target.closest('[data-id]');
  if (!button || !confirm('Revoke this key? What uses it is refused from now on.')) return;
  trigger('select', {id: button.dataset.id});
});
"""
_HINT = """<p class="hint">A script that sends a key asks as you: on /v1 as <code>Authorization: Bearer KEY</code>, with
gradio_client as a header. Once there is a key, /v1 asks everybody for one.</p>"""


class Keys:
    """Built inside the Blocks context; ``box`` is to be shown to whoever ``may``."""

    def __init__(self, service: Service) -> None:
        self._accounts = service.accounts
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        with gr.Accordion("API keys", open=False, visible=False, elem_id="keys") as self.box:
            gr.HTML(_HINT)
            listed = gr.HTML(elem_id="key-list", js_on_load=_JS, apply_default_css=False)
            with gr.Row():
                name = gr.Textbox(label="Name of a new key", placeholder="What will use it", max_lines=1, scale=4)
                make = gr.Button("Make a key", size="sm", elem_id="make-key", scale=1)
            made = gr.Textbox(
                label="The new key. Copy it now: it is not shown again",
                visible=False,
                interactive=False,
                buttons=["copy"],
                elem_id="made-key",
            )
        self.box.expand(self._on_shown, None, [listed], **quick)
        self.box.collapse(lambda: gr.update(value="", visible=False), None, [made], **quick)
        gr.on([make.click, name.submit], self._on_make, [name], [listed, name, made], **quick)
        listed.select(self._on_revoke, None, [listed], **quick)

    @staticmethod
    def may(request: gr.Request) -> bool:
        """Guests have no keys: what a visitor is known by ends with a cookie."""
        return not caller_of(request).guest

    async def _on_shown(self, request: gr.Request) -> str:
        return await asyncio.to_thread(self._listed, key_owner_of(request))

    async def _on_make(self, name: str, request: gr.Request) -> tuple[Any, ...]:
        owner = key_owner_of(request)
        made = await asyncio.to_thread(self._accounts.make_key, owner, name or "")
        return await asyncio.to_thread(self._listed, owner), "", gr.update(value=made["key"], visible=True)

    async def _on_revoke(self, event: gr.EventData, request: gr.Request) -> str:
        owner = key_owner_of(request)
        await asyncio.to_thread(self._accounts.revoke_key, owner, str(event.id))
        return await asyncio.to_thread(self._listed, owner)

    def _listed(self, owner: str) -> str:
        rows = self._accounts.keys(owner)
        return "".join(map(_row, rows)) or '<p class="empty">You have no keys.</p>'


def _row(row: dict[str, Any]) -> str:
    made = time.strftime("%Y-%m-%d", time.localtime(row["created_at"]))
    name = escape(row["name"], quote=True)
    return (
        f'<div class="card"><div><b>{name}</b><p>made {made} · {row["id"]}</p></div><div class="actions">'
        f'<button data-id="{row["id"]}" aria-label="Revoke {name}">Revoke</button></div></div>'
    )
