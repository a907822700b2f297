"""The page: sidebar, Chat, Models, Files and Settings. Handlers only call rooms below and say what changed."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from llmsvc.chat.sessions import NEW_TITLE
from llmsvc.chat.turns import Turn, can_continue
from llmsvc.errors import LlmsvcError, NotFound
from llmsvc.service import Service
from llmsvc.ui import chat, models, sidebar
from llmsvc.ui.endpoints import add_endpoints
from llmsvc.ui.identity import owner_of, shown_errors

GREETING = """<div class="greeting"><h2>What shall we talk about?</h2>
<p>Everything stays on this machine. Enter sends, Shift+Enter starts a new line.</p></div>"""


@dataclass
class View:
    """One value for each component that a chat handler may change; ``gr.skip()`` leaves it as it is."""

    current: Any = None
    saved: Any = None
    history: Any = None
    live: Any = None
    box: Any = None
    list: Any = None
    undo: Any = None
    deleted: Any = None
    chip: Any = None
    more: Any = None

    def values(self) -> tuple[Any, ...]:
        found = (getattr(self, f.name) for f in fields(self))
        return tuple(gr.skip() if value is None else value for value in found)


HIDDEN = {"value": [], "visible": "hidden"}


class Page:
    """Builds the Blocks and handles its events."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._views: dict[str, asyncio.Event] = {}
        """By browser tab: set to end the stream that the tab watches, because a newer view replaces it."""

    def build(self) -> gr.Blocks:
        with gr.Blocks(title="llmsvc", fill_width=True, analytics_enabled=False) as demo:
            self._sidebar()
            with gr.Tabs(elem_id="tabs"):
                with gr.Tab("Chat", id="chat", elem_id="tab-chat"):
                    self._chat()
                with gr.Tab("Models", id="models", elem_id="tab-models"):
                    self._models()
                with gr.Tab("Files", id="files", elem_id="tab-files"):
                    gr.HTML(
                        '<p class="empty">Talking about files is not built yet. Paste text into the chat for now.</p>'
                    )
                with gr.Tab("Settings", id="settings", elem_id="tab-settings"):
                    self._settings()
            self._wire(demo)
            add_endpoints(self._service)
        return demo

    # Components

    def _sidebar(self) -> None:
        with gr.Sidebar(width=280, elem_id="sidebar"):
            gr.HTML('<div class="brand"><svg viewBox="0 0 16 16"><path d="M8 1l7 7-7 7-7-7z"/></svg>llmsvc</div>')
            self.new = gr.Button("+ New chat", elem_id="new-chat")
            self.query = gr.Textbox(
                placeholder="Search chats", show_label=False, container=False, elem_id="search", label="Search chats"
            )
            self.list = gr.HTML(elem_id="sessions", js_on_load=sidebar.JS, apply_default_css=False)
            self.undo = gr.Button(visible=False, elem_id="undo")
        self.current = gr.State("")
        self.deleted = gr.State("")
        self.saved = gr.BrowserState("", storage_key="llmsvc-session", secret="llmsvc")

    def _chat(self) -> None:
        self.chip = gr.HTML(elem_id="chip", apply_default_css=False)
        look: dict[str, Any] = {
            "show_label": False,
            "container": False,
            "height": "auto",
            "buttons": ["copy"],
            "sanitize_html": True,
            "layout": "bubble",
            "reasoning_tags": [("<think>", "</think>")],
            "group_consecutive_messages": False,
        }
        with gr.Column(elem_id="scroll"):
            self.history = gr.Chatbot(elem_id="history", placeholder=GREETING, label="Conversation", **look)
            self.live = gr.Chatbot(elem_id="live", visible="hidden", label="Running answer", **look)
            self.more = gr.Button("Continue", visible=False, size="sm", elem_id="continue")
        self.box = gr.MultimodalTextbox(
            placeholder="Message llmsvc…",
            show_label=False,
            container=False,
            sources=[],
            max_lines=8,
            elem_id="composer",
            label="Message",
            autofocus=True,
        )

    def _models(self) -> None:
        self.table = gr.HTML(elem_id="model-list", js_on_load=models.JS, apply_default_css=False)
        with gr.Row(elem_id="load-row"):
            self.choice = gr.Dropdown(
                choices=[row["id"] for row in self._service.catalogue.list()],
                value=self._service.default_model,
                allow_custom_value=True,
                label="Load a model",
                info="One from the list, any Hugging Face id, or a folder with safetensors",
                scale=4,
            )
            self.quantization = gr.Dropdown(
                ["none", "int8", "nf4"], value="none", label="Quantization", info="bitsandbytes", scale=1
            )
        self.load = gr.Button("Load", variant="primary", elem_id="load-model")
        self.seen = gr.State("")

    def _settings(self) -> None:
        values = self._service.turns.settings()
        gr.HTML('<p class="hint">How answers are made, in every chat. Saved as you change them.</p>')
        self.temperature = gr.Slider(
            0, 2, values["temperature"], step=0.05, label="Temperature", info="0 always takes the likeliest token"
        )
        self.top_p = gr.Slider(0, 1, values["top_p"], step=0.01, label="Top-p", info="Share of the likeliest tokens")
        self.top_k = gr.Slider(0, 200, values["top_k"], step=1, label="Top-k", info="0 is off")
        self.max_tokens = gr.Slider(16, 8192, values["max_tokens"], step=16, label="Longest answer", info="In tokens")
        self.system = gr.Textbox(
            values["system"], lines=3, label="System prompt", info="Instructions before every conversation"
        )

    def _wire(self, demo: gr.Blocks) -> None:
        outputs = [getattr(self, f.name) for f in fields(View)]
        stream: dict[str, Any] = {
            "outputs": outputs,
            "show_progress": "hidden",
            "trigger_mode": "multiple",
            "api_visibility": "private",
        }
        quick = {**stream, "queue": False}
        timer = gr.Timer(1.0)
        demo.load(self.on_load, [self.saved], **stream)
        self.box.submit(self.on_submit, [self.box, self.current], **stream)
        self.more.click(self.on_continue, [self.current], **stream)
        self.box.stop(self.on_stop, [self.current], **quick)
        self.new.click(self.on_new, [self.query], **quick)
        self.list.select(self.on_list, [self.current, self.query], **stream)
        self.query.change(self.on_search, [self.query, self.current], **quick)
        self.undo.click(self.on_undo, [self.deleted, self.query], **stream)
        self.table.select(self.on_model, [self.current], **quick)
        private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.load.click(self.on_load_model, [self.choice, self.quantization], None, **private)
        timer.tick(
            self.on_tick,
            [self.current, self.query, self.seen],
            [self.chip, self.table, self.list, self.seen],
            **private,
        )
        knobs = [self.temperature, self.top_p, self.top_k, self.max_tokens, self.system]
        demo.load(self.on_settings_shown, None, knobs, **private)
        for knob in knobs:
            changed = knob.input if isinstance(knob, gr.Textbox) else knob.release
            changed(self.on_settings, knobs, None, **private)
            knob.blur(self.on_settings, knobs, None, **private) if isinstance(knob, gr.Textbox) else None

    # Chat handlers: each yields views; the last of a stream is empty, since Gradio sends the last one twice

    async def on_load(self, saved: str, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        """Open the chat that this browser had open."""
        async for view in self._show(saved or "", request):
            yield view

    async def on_submit(
        self, value: dict[str, Any], session_id: str, request: gr.Request
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Send the message, in a new session if none is open, and watch the answer."""
        owner, text = owner_of(request), value.get("text") or ""
        with shown_errors():
            if not text.strip():
                yield View().values()
                return
            session_id = self._here(owner, session_id) or self._service.sessions.create(owner)["id"]
            turn = self._service.turns.start(owner, session_id, text)
        async for view in self._watch(owner, session_id, turn, request, sent=True):
            yield view

    async def on_continue(self, session_id: str, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        """Go on with an answer that was cut, and watch it."""
        owner = owner_of(request)
        with shown_errors():
            turn = self._service.turns.resume(owner, session_id)
        async for view in self._watch(owner, session_id, turn, request):
            yield view

    async def on_stop(self, session_id: str, request: gr.Request) -> tuple[Any, ...]:
        try:
            self._service.turns.stop(owner_of(request), session_id)
        except NotFound:
            return View(box=_box(running=False)).values()  # it ended by itself meanwhile
        return View().values()

    async def on_new(self, query: str, request: gr.Request) -> tuple[Any, ...]:
        self._supersede(request)
        return self._blank(owner_of(request), query).values()

    async def on_search(self, query: str, session_id: str, request: gr.Request) -> tuple[Any, ...]:
        listed = await asyncio.to_thread(self._list, owner_of(request), session_id, query)
        return View(list=listed).values()

    async def on_list(
        self, session_id: str, query: str, event: gr.EventData, request: gr.Request
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Open, rename or delete the chosen chat."""
        owner, chosen, action = owner_of(request), str(event.id), str(event.action)
        with shown_errors():
            if action == "open":
                async for view in self._show(chosen, request):
                    yield view
            elif action == "rename":
                self._service.sessions.rename(owner, chosen, str(event.title))
                yield View(list=self._list(owner, session_id, query)).values()
            elif action == "delete":
                title = self._service.sessions.row(owner, chosen)["title"]
                self._service.delete_session(owner, chosen)
                if chosen == session_id:
                    self._supersede(request)
                view_ = self._blank(owner, query) if chosen == session_id else View()
                view_.list = self._list(owner, "" if chosen == session_id else session_id, query)
                view_.undo = gr.update(value=f"Undo: delete “{title[:30]}”", visible=True)
                view_.deleted = chosen
                yield view_.values()

    async def on_undo(self, deleted: str, query: str, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        with shown_errors():
            self._service.sessions.restore(owner_of(request), deleted)
        async for view in self._show(deleted, request):
            yield view

    async def _show(self, session_id: str, request: gr.Request) -> AsyncIterator[tuple[Any, ...]]:
        owner = owner_of(request)
        session_id = self._here(owner, session_id)
        if not session_id:
            self._supersede(request)
            yield self._blank(owner, "").values()
            return
        turn = self._service.turns.active(session_id)
        async for view in self._watch(owner, session_id, turn, request):
            yield view

    async def _watch(
        self, owner: str, session_id: str, turn: Turn | None, request: gr.Request, sent: bool = False
    ) -> AsyncIterator[tuple[Any, ...]]:
        """The one streaming loop of the page: the history once, then only the running answer."""
        until = self._supersede(request)
        view = self._opened(owner, session_id, turn)
        if sent:
            view.box = _box(running=True, value={"text": "", "files": []})
        yield view.values()
        if turn is None:
            return
        async for text, status in self._service.turns.attach(turn, until=until):
            yield View(live=gr.update(value=chat.live(text, status), visible=True)).values()
        if not until.is_set():
            yield self._opened(owner, session_id, None).values()
        yield View().values()

    def _opened(self, owner: str, session_id: str, turn: Turn | None) -> View:
        try:
            session = self._service.sessions.get(owner, session_id)
        except NotFound:  # deleted while it was watched
            return self._blank(owner, "")
        return View(
            current=session_id,
            saved=session_id,
            history=chat.window(session["messages"], turn.message_id if turn else ""),
            live=gr.update(**HIDDEN) if turn is None else gr.update(value=chat.live("", turn.status()), visible=True),
            box=_box(running=turn is not None),
            list=self._list(owner, session_id, ""),
            undo=gr.update(visible=False) if turn else None,
            more=gr.update(visible=turn is None and can_continue(session["messages"])),
            chip=models.chip(session["model"], self._service.pool.list()),
        )

    def _blank(self, owner: str, query: str) -> View:
        return View(
            current="",
            saved="",
            history=[],
            live=gr.update(**HIDDEN),
            box=_box(running=False),
            list=self._list(owner, "", query),
            more=gr.update(visible=False),
            chip=models.chip(self._service.default_model, self._service.pool.list()),
        )

    def _list(self, owner: str, session_id: str, query: str) -> str:
        rows = self._service.sessions.list(owner, query, sidebar.MOST)
        return sidebar.session_list(rows, session_id, self._service.turns.running_sessions(), query)

    def _here(self, owner: str, session_id: str) -> str:
        """The id, or nothing when there is no such session for this owner any more."""
        try:
            return str(self._service.sessions.row(owner, session_id)["id"]) if session_id else ""
        except LlmsvcError:
            return ""

    def _supersede(self, request: gr.Request) -> asyncio.Event:
        """End what this tab watches; return the event that ends its successor."""
        tab = str(request.session_hash)
        if before := self._views.get(tab):
            before.set()
        self._views[tab] = asyncio.Event()
        return self._views[tab]

    def forget_tab(self, request: gr.Request) -> None:
        if before := self._views.pop(str(request.session_hash), None):
            before.set()

    # Models and settings

    async def on_tick(self, session_id: str, query: str, seen: str, request: gr.Request) -> tuple[Any, ...]:
        """Once a second: what changed by itself. Nothing is sent when nothing did."""
        owner = owner_of(request)
        rows = self._service.pool.list()
        here = self._here(owner, session_id)
        model = self._service.sessions.row(owner, here)["model"] if here else self._service.default_model
        chip_, table = models.chip(model, rows), models.model_table(rows, model)
        running = ",".join(sorted(self._service.turns.running_sessions()))
        now = f"{chip_}{table}{running}"
        if now == seen:
            return (gr.skip(),) * 4
        return chip_, table, await asyncio.to_thread(self._list, owner, session_id, query), now

    async def on_load_model(self, model_id: str, quantization: str) -> None:
        with shown_errors():
            self._service.pool.request((model_id or "").strip(), quantization)

    async def on_model(self, session_id: str, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        owner, model_id = owner_of(request), str(event.id)
        with shown_errors():
            if event.action == "unload":
                await asyncio.to_thread(self._service.pool.unload, model_id)
                return View().values()
            session_id = self._here(owner, session_id) or self._service.sessions.create(owner, NEW_TITLE)["id"]
            self._service.sessions.set_model(owner, session_id, model_id)
        return self._opened(owner, session_id, self._service.turns.active(session_id)).values()

    def on_settings(self, *values: Any) -> None:
        names = ("temperature", "top_p", "top_k", "max_tokens", "system")
        with shown_errors():
            self._service.turns.set_settings(dict(zip(names, values, strict=True)))

    def on_settings_shown(self) -> tuple[Any, ...]:
        values = self._service.turns.settings()
        return tuple(values[n] for n in ("temperature", "top_p", "top_k", "max_tokens", "system"))


def _box(running: bool, value: dict[str, Any] | None = None) -> Any:
    """The composer: a stop button while an answer runs, a send button otherwise."""
    changes: dict[str, Any] = {"stop_btn": running, "submit_btn": not running}
    if value is not None:
        changes["value"] = value
    return gr.update(**changes)
