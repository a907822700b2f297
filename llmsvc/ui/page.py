"""What the page does: handlers that call the rooms below and say what changed on the screen."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr

from llmsvc.accounts import Caller
from llmsvc.chat.options import nearest
from llmsvc.chat.turn import can_continue
from llmsvc.errors import BadRequest, LlmsvcError, NotFound
from llmsvc.models.catalogue import SMOLLM2
from llmsvc.models.memory import size
from llmsvc.service import Service
from llmsvc.ui import chat, files, memory, models, sidebar
from llmsvc.ui.endpoints import add_endpoints
from llmsvc.ui.identity import admin_only, caller_of, owner_of
from llmsvc.ui.keys import Keys
from llmsvc.ui.layout import AS_MADE, FROM_MODEL, INFO, KNOBS, LOADING, Layout
from llmsvc.ui.lean import LeanBlocks
from llmsvc.ui.tabs import Tab, Tabs

MOST_IMPORTED = 50_000_000
"""Bytes of a chat that is brought from a file."""


@dataclass
class View:
    """One value for each component that a handler may change; ``gr.skip()`` leaves it as it is."""

    saved: Any = None
    history: Any = None
    recent: Any = None
    live: Any = None
    box: Any = None
    list: Any = None
    undo: Any = None
    chip: Any = None
    table: Any = None
    more: Any = None
    earlier: Any = None
    waiting: Any = None
    editing: Any = None
    files: Any = None
    file_list: Any = None
    file_text: Any = None
    go: Any = None
    thinking: Any = None
    budget: Any = None

    def values(self) -> tuple[Any, ...]:
        found = (getattr(self, f.name) for f in fields(self))
        return tuple(gr.skip() if value is None else value for value in found)

    def over(self, below: "View") -> "View":
        """This view where it says something, the other one elsewhere."""
        pairs = ((getattr(self, f.name), getattr(below, f.name)) for f in fields(self))
        merged = (
            {**b, **a} if isinstance(a, dict) and isinstance(b, dict) else b if a is None else a for a, b in pairs
        )
        return View(*merged)


Values = tuple[Any, ...]


class Page:
    """Builds the Blocks and handles its events."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._tabs = Tabs()

    def build(self) -> gr.Blocks:
        with LeanBlocks(title="llmsvc", fill_width=True, analytics_enabled=False) as demo:
            self._wire(demo, Layout(self._service))
            add_endpoints(self._service)
        return demo

    def _wire(self, demo: gr.Blocks, on: Layout) -> None:
        private: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "multiple"}
        quick: dict[str, Any] = {**private, "queue": False, "outputs": [getattr(on, f.name) for f in fields(View)]}
        # The address names the chat, so that each tab reloads its own, and a link opens one.
        demo.load(self.on_load, [on.saved], js="(saved) => [window.llmsvcStart || saved]", **quick)
        on.saved.change(
            None,
            [on.saved],
            None,
            js="(id) => { history.replaceState(null, '', id ? '#' + id : location.pathname + location.search) }",
            **private,
        )
        # None goes through Gradio's queue: that takes two requests and a wait, and drops a command with its connection.
        on.box.submit(self.on_submit, [on.saved, on.box], **quick)
        on.more.click(self.on_continue, [on.saved], **quick)
        on.waiting.select(self.on_action, [on.saved], **quick)
        on.list.select(self.on_list, [on.saved, on.query], **quick)
        on.undo.click(self.on_undo, None, **quick)
        for attach in (on.attach, on.attach_here):
            attach.upload(self.on_attach, [on.saved, attach], **quick)
        on.bring.upload(self.on_import, [on.bring], **quick)
        on.box.stop(self.on_stop, [on.saved], **quick)
        on.new.click(self.on_new, [on.query], **quick)
        on.earlier.click(self.on_earlier, [on.saved], **quick)
        on.query.change(self.on_search, [on.saved, on.query], **quick)
        on.table.select(self.on_model, [on.saved], **quick)
        on.chip.select(self.on_model, [on.saved], **quick)
        on.load.click(self.on_load_model, [on.choice, on.quantization], None, queue=False, **private)
        on.models_tab.select(self.on_models_shown, None, [on.choice], queue=False, **private)
        gr.on(
            [on.models_tab.select, on.choice.change, on.quantization.change],
            self.on_forecast,
            [on.choice, on.quantization],
            [on.forecast, on.load],
            queue=False,
            **private,
        )
        on.memory_part.expand(self.on_memory_shown, None, [on.memory], queue=False, **private)
        on.memory.select(self.on_memory, None, [on.memory], queue=False, **private)
        on.delete.click(
            self.on_delete_model,
            [on.choice],
            [on.choice],
            js="(id) => confirm('Delete the files of ' + id + ' from this machine?') ? [id] : ['']",
            queue=False,
            **private,
        )
        on.wanted.submit(self.on_wanted, [on.wanted], [on.found], queue=False, **private | {"show_progress": "full"})
        on.models_tab.select(self.on_suggested, None, [on.suggested], queue=False, **private)
        for cards in (on.found, on.suggested):
            cards.select(self.on_found, None, [on.choice], queue=False, **private)
        servers: dict[str, Any] = {"outputs": [on.servers], "queue": False, **private}
        on.models_tab.select(self.on_servers_shown, None, **servers)
        on.servers.select(self.on_server, None, **servers)
        on.add.click(self.on_add_server, [on.url, on.key], [on.servers, on.url, on.key], queue=False, **private)
        # The running answer comes to the browser as server-sent events: Gradio's own stream costs ten times as much,
        # and an answer must survive a cut of it.
        on.go.change(None, [on.go], None, js="(go) => { window.llmsvcWatch(go) }", **private)
        on.pipe.select(None, None, [on.live], js="() => window.llmsvcLive()", **private)
        # "multiple" (in private): one request that never comes back, from a lost network, must not make the page deaf.
        shown = "(saved, go) => [saved, go, window.llmsvcShown?.() ?? '']"
        gr.Timer(1.0).tick(self.on_tick, [on.saved, on.go, on.go], [on.news], js=shown, queue=False, **private)
        on.news.change(self.on_news, [on.saved, on.query], **quick)
        on.settings_tab.select(self.on_settings_shown, None, [on.whose], queue=False, **private)
        own, defaults = [on.own[name] for name in KNOBS], list(on.defaults.values())
        parts = [on.only_admin, on.no_loading, on.load_buttons, on.hub, on.remote, on.keys.box]
        demo.load(self.on_defaults_shown, None, [*defaults, *parts], **private)
        on.saved.change(self.on_own_shown, [on.saved], [*own, on.links], **private)
        on.panel.expand(self.on_own_sampling, [on.saved], [on.own[name] for name in INFO], **private)
        on.reset.click(self.on_reset, [on.saved], [*own, on.thinking, on.budget], **private)
        on.whose.change(self.on_whose, [on.whose], [*defaults, on.common], **private)
        on.common.click(self.on_common, [on.whose], [*defaults, on.common], **private)
        saved = [(name, knob, self._default_saver(name), [on.whose, knob]) for name, knob in on.defaults.items()]
        saved += [(name, knob, self._own_saver(name), [on.saved, knob]) for name, knob in on.own.items()]
        budget = "thinking_budget"
        saved.append((budget, on.budget, self._own_saver(budget), [on.saved, on.budget]))
        for name, knob, save, given in saved:
            changed = [knob.release] if isinstance(knob, gr.Slider) else [knob.blur, knob.submit]
            gr.on(changed, save, given, [knob] if name in INFO else None, **private)
        on.thinking.input(self._own_saver("thinking"), [on.saved, on.thinking], None, **private)

    # What changes by itself

    async def on_tick(self, saved: str, go: str, shown: str, request: gr.Request) -> str:
        """Once a second: a word that changes when there is news. ``shown``: the messages that are on the screen."""
        owner, service, tab = owner_of(request), self._service, self._tab(request, saved)
        arrived = (go or "") == tab.told and not (tab.session_id and self._is_old(owner, tab))
        # A view may have come without the one before it. That is mended once: a message may hide what is counted.
        arrived = arrived and (shown == tab.shown or tab.told == tab.repaired)
        tab.missed = 0 if arrived else tab.missed + 1
        state = (
            tab.missed // 2,  # what this tab was to show got lost with its connection: tell it again
            service.sessions.revision(owner),
            service.pool.state(),
            service.files.version(tab.session_id),
            *sorted(service.turns.running_sessions(owner)),
        )
        if state != tab.seen:
            tab.seen, tab.count = state, tab.count + 1
        return f"{tab.count}"

    async def on_news(self, saved: str, query: str, request: gr.Request) -> Values:
        """What changed without this tab."""
        owner, service, tab = owner_of(request), self._service, self._tab(request, saved)
        here = self._here(owner, tab.session_id)
        rows = service.pool.list()
        model = service.sessions.row(owner, here)["model"] if here else service.default_model
        listed = await asyncio.to_thread(self._list, owner, tab, query) if query else self._list(owner, tab, "")
        news = View(chip=self._chip(owner, model, rows), table=self._table(owner, rows, model), list=listed)
        news = news.over(self._files(tab, here)).over(self._thinking(owner, tab, model))
        if tab.missed > 1:
            tab.mounted = ()
            whole = self._show(tab.session_id, request, listed=False)
            tab.repaired = tab.told
            return news.over(whole).values()
        if tab.session_id and self._is_old(owner, tab):
            return news.over(self._opened(owner, tab, listed=False)).values()
        if here:
            news.waiting = self._waiting(service.sessions.window(owner, here, 1))
        return news.values()

    # Commands: each does one thing, and says what is on the screen then

    async def on_load(self, saved: str, request: gr.Request) -> Values:
        """Open the chat that the address names, or that this browser had open."""
        return self._show(str(saved or ""), request).values()

    async def on_submit(self, saved: str, value: dict[str, Any], request: gr.Request) -> Values:
        """Send the message, or the changed one."""
        owner, tab, text = owner_of(request), self._tab(request, saved), value.get("text") or ""
        turns = self._service.turns
        if not text.strip():
            return View().values()
        kind, id_ = tab.editing
        session_id = here = self._here(owner, tab.session_id)
        with _noted() as note:
            session_id = here or self._new_session(owner, tab)
            if kind == "queued":
                turns.edit_queued(owner, session_id, id_, text)
            elif kind == "message":
                turns.edit(owner, session_id, id_, text, version=tab.version)
            else:
                turns.start(owner, session_id, text, version=tab.version)
        if note:  # the text stays in the box
            return self._show(session_id, request, "\n".join(note)).values()
        tab.editing = ("", "")
        sent = View(box=gr.update(value={"text": "", "files": []}), editing="", undo=gr.update(visible=False))
        return sent.over(self._show(session_id, request, listed=not here)).values()

    async def on_continue(self, saved: str, request: gr.Request) -> Values:
        """Go on with an answer that was cut."""
        tab = self._tab(request, saved)
        with _noted() as note:
            self._service.turns.resume(owner_of(request), tab.session_id, version=tab.version)
        return self._show(tab.session_id, request, "\n".join(note)).values()

    async def on_action(self, saved: str, event: gr.EventData, request: gr.Request) -> Values:
        """A button of a message, of one that waits, or a key."""
        owner, tab, turns = owner_of(request), self._tab(request, saved), self._service.turns
        action, id_, session_id = str(event.action), str(event.id), tab.session_id
        if action in ("edit", "edit-last", "edit-queued", "cancel"):
            return self._edit(owner, tab, action, id_).values()
        if action.startswith("file-"):
            return (await asyncio.to_thread(self._file_action, owner, tab, action, id_, str(event.text))).values()
        with _noted() as note:
            if action == "again":
                turns.regenerate(owner, session_id, id_, version=tab.version)
            elif action == "go":
                self._service.select_branch(owner, session_id, id_, tab.version)
            elif action == "withdraw":
                turns.withdraw(owner, session_id, id_)
            elif action == "send":
                turns.send_queued(owner, session_id)
            # What is left is "done": the answer that was watched has ended.
        return self._show(session_id, request, "\n".join(note), listed=action != "done").values()

    async def on_list(self, saved: str, query: str, event: gr.EventData, request: gr.Request) -> Values:
        """Open, rename or delete the chosen chat."""
        owner, tab = owner_of(request), self._tab(request, saved)
        chosen, action = str(event.id), str(event.action)
        if action == "open":
            return self._show(chosen, request).values()
        if action == "rename":
            self._service.sessions.rename(owner, chosen, str(event.title))
            return View(list=self._list(owner, tab, query)).values()
        title = self._service.sessions.row(owner, chosen)["title"]
        self._service.delete_session(owner, chosen)
        tab.deleted = chosen
        undo = View(undo=gr.update(value=f"Undo: delete “{title[:30]}”", visible=True))
        if chosen == tab.session_id:
            return undo.over(self._blank(owner, tab, query)).values()
        undo.list = self._list(owner, tab, query)
        return undo.values()

    async def on_undo(self, request: gr.Request) -> Values:
        tab = self._tabs.of(request)
        self._service.restore_session(owner_of(request), tab.deleted)
        return View(undo=gr.update(visible=False)).over(self._show(tab.deleted, request)).values()

    async def on_import(self, path: str, request: gr.Request) -> Values:
        """Bring a chat from an exported file, and open it."""
        created = await asyncio.to_thread(self._import, caller_of(request), Path(path))
        return self._show(created["id"], request).values()

    async def on_attach(self, saved: str, uploads: list[str], request: gr.Request) -> Values:
        """Take files in; a new chat begins with them."""
        owner, tab = owner_of(request), self._tab(request, saved)
        with _noted() as note:
            session_id = self._here(owner, tab.session_id) or self._new_session(owner, tab)
            tab.open(session_id)
            for upload in uploads or []:
                with _noted() as refused:
                    await asyncio.to_thread(self._service.files.add, owner, session_id, Path(upload).name, Path(upload))
                note += [f"{Path(upload).name}: {text}" for text in refused]
        return self._show(tab.session_id, request, "\n".join(note)).values()

    async def on_model(self, saved: str, event: gr.EventData, request: gr.Request) -> Values:
        """Use a model in this chat, pin it, or unload it."""
        owner, tab, model_id = owner_of(request), self._tab(request, saved), str(event.id)
        if event.action == "unload":
            admin_only(request)
            await asyncio.to_thread(self._service.pool.unload, model_id)
            return View().values()
        if event.action in ("pin", "unpin"):
            admin_only(request)
            self._service.pool.pin(model_id, event.action == "pin")
            return View().values()
        await self._service.check_model(caller_of(request), model_id)
        session_id = self._here(owner, tab.session_id) or self._new_session(owner, tab)
        self._service.sessions.set_model(owner, session_id, model_id)
        rows = self._service.pool.list()
        return View(table=self._table(owner, rows, model_id)).over(self._show(session_id, request)).values()

    async def on_stop(self, saved: str, request: gr.Request) -> Values:
        try:
            await self._service.turns.stop(owner_of(request), self._tab(request, saved).session_id)
        except NotFound:  # it ended by itself meanwhile
            return View(box=_box(running=False)).values()
        return View().values()

    async def on_new(self, query: str, request: gr.Request) -> Values:
        return self._blank(owner_of(request), self._tabs.of(request), query).values()

    async def on_earlier(self, saved: str, request: gr.Request) -> Values:
        tab = self._tab(request, saved)
        tab.limit *= 2
        tab.mounted = ()
        whole = self._opened(owner_of(request), tab, listed=False)
        return View(history=whole.history, recent=whole.recent, earlier=whole.earlier).values()

    async def on_search(self, saved: str, query: str, request: gr.Request) -> Values:
        owner, tab = owner_of(request), self._tab(request, saved)
        return View(list=await asyncio.to_thread(self._list, owner, tab, query)).values()

    async def on_load_model(self, model_id: str, quantization: str, request: gr.Request) -> None:
        admin_only(request)
        self._service.pool.request((model_id or "").strip(), quantization)

    async def on_models_shown(self) -> Any:
        listed = await asyncio.to_thread(self._service.catalogue.list)
        return gr.update(choices=models.choices(listed))

    async def on_forecast(self, model_id: str, quantization: str, request: gr.Request) -> tuple[Any, Any]:
        """What the chosen model would take; what is wrong with it stands in its place. Only what runs can be loaded."""
        model_id = (model_id or "").strip()
        tab = self._tabs.of(request)
        asked = tab.forecast = (model_id, quantization)
        try:
            await self._service.check_model(caller_of(request), model_id)
            row = await asyncio.to_thread(self._service.pool.forecast, model_id, quantization)
            shown, runs = models.forecast(row), row["runs"]
        except LlmsvcError as error:
            shown, runs = models.refusal(str(error)), True
        return (shown, gr.update(interactive=runs)) if tab.forecast == asked else (gr.skip(), gr.skip())

    async def on_delete_model(self, model_id: str, request: gr.Request) -> Any:
        """Delete the files of the chosen model; nothing when it was not confirmed."""
        if not model_id:
            return gr.skip()
        admin_only(request)
        freed = await asyncio.to_thread(self._service.pool.delete, model_id.strip())
        gr.Info(f"{size(freed)} are free again.")
        return await self.on_models_shown()

    async def on_wanted(self, query: str, request: gr.Request) -> str:
        """What the hub has of that name; what is wrong stands in its place."""
        try:
            admin_only(request)
            return models.found(await asyncio.to_thread(self._service.pool.search, query or ""))
        except LlmsvcError as error:
            return models.refusal(str(error))

    async def on_suggested(self, request: gr.Request) -> str:
        """Better models than the embedded one, for the admin who uses that one and can reach the hub."""
        small = self._service.default_model == SMOLLM2.id
        if not (small and caller_of(request).admin):
            return ""
        return models.suggested(await asyncio.to_thread(self._service.pool.suggested))

    async def on_found(self, event: gr.EventData) -> str:
        """Put it where models are loaded, which tells what it would take."""
        return str(event.id)

    async def on_servers_shown(self, request: gr.Request) -> str:
        admin = caller_of(request).admin
        return models.servers(self._service.servers.list()) if admin else models.hint("The admin adds servers here.")

    async def on_add_server(self, url: str, key: str, request: gr.Request) -> tuple[str, str, str]:
        admin_only(request)
        await self._service.servers.add(url, key)
        return await self.on_servers_shown(request), "", ""

    async def on_server(self, event: gr.EventData, request: gr.Request) -> str:
        """Remove a server."""
        admin_only(request)
        await asyncio.to_thread(self._service.servers.remove, str(event.id))
        return await self.on_servers_shown(request)

    # Memory: what the user wants to be remembered in every chat

    async def on_memory_shown(self, request: gr.Request) -> str:
        return memory.panel(self._service.memory.listed(owner_of(request)))

    async def on_memory(self, event: gr.EventData, request: gr.Request) -> str:
        """Turn it on or off; change, add, delete a fact, or bring back the last that was deleted."""
        owner, room, action = owner_of(request), self._service.memory, str(event.action)
        deleted = ""
        if action == "switch":
            room.switch(owner, bool(event.on))
        elif action == "delete":
            deleted = room.delete(owner, str(event.id))["text"]
        else:
            room.set(owner, str(event.id), str(event.text))
        return memory.panel(room.listed(owner), deleted)

    # Settings: of all chats, and of the one that is open

    async def on_defaults_shown(self, request: gr.Request) -> tuple[Any, ...]:
        """The defaults, and only those buttons that this visitor may use."""
        admin, values = caller_of(request).admin, self._default_values("")
        knobs = values if admin else tuple({**_as_update(value), "interactive": False} for value in values)
        shows = (not admin, not admin, admin, admin, admin, Keys.may(request))
        return *knobs, *(gr.update(visible=shown) for shown in shows)

    async def on_settings_shown(self) -> Any:
        listed = await asyncio.to_thread(self._service.catalogue.list)
        return gr.update(choices=[("Every model", ""), *(row["id"] for row in listed)])

    async def on_whose(self, model_id: str, request: gr.Request) -> tuple[Any, ...]:
        """The defaults of every model, or of one."""
        shown = gr.update(visible=bool(model_id) and caller_of(request).admin)
        return *self._default_values(model_id or ""), shown

    async def on_common(self, model_id: str, request: gr.Request) -> tuple[Any, ...]:
        """Take back what one model has of its own."""
        admin_only(request)
        self._service.preferences.set_settings(dict.fromkeys((*KNOBS, *LOADING)), model_id)
        return await self.on_whose(model_id, request)

    async def on_own_shown(self, saved: str, request: gr.Request) -> tuple[Any, ...]:
        owner = owner_of(request)
        here = self._here(owner, str(saved or ""))
        return *self._own_values(owner, here), _links(here)

    async def on_own_sampling(self, saved: str, request: gr.Request) -> tuple[Any, ...]:
        """What the model brings, which may have been loaded since; nothing that one may be typing."""
        owner, tab = owner_of(request), self._tab(request, saved)
        values = self._own_values(owner, self._here(owner, tab.session_id), tab.settings)
        return tuple(value for name, value in zip(KNOBS, values, strict=True) if name in INFO)

    async def on_reset(self, saved: str, request: gr.Request) -> tuple[Any, ...]:
        owner, tab = owner_of(request), self._tab(request, saved)
        tab.settings = {}
        here = self._here(owner, tab.session_id)
        if here:
            nothing = dict.fromkeys((*KNOBS, "thinking", "thinking_budget"))
            self._service.preferences.set_session_settings(owner, here, nothing)
        row = self._service.sessions.row(owner, here) if here else {"model": self._service.default_model}
        tab.thinking = ()
        thinking = self._thinking(owner, tab, row["model"])
        return *self._own_values(owner, here), thinking.thinking, thinking.budget

    def _own_values(self, owner: str, here: str, chosen: dict[str, Any] | None = None) -> tuple[Any, ...]:
        """Of the open chat, or of one that is still to begin, for which options are ``chosen`` already."""
        preferences, sessions = self._service.preferences, self._service.sessions
        if not here:
            model = self._service.default_model
            chosen = chosen or {}
            return _knob_values({**preferences.settings(model), **chosen}, preferences.from_model(model, chosen))
        row = sessions.row(owner, here)
        return _knob_values(
            preferences.session_settings(owner, here), preferences.from_model(row["model"], row["settings"])
        )

    def _default_values(self, model: str) -> tuple[Any, ...]:
        """The defaults of every model, or of one."""
        values = self._service.preferences.settings(model)
        knobs = _knob_values(values, self._service.preferences.from_model(model))
        return *knobs, *(values[name] for name in LOADING)

    def _default_saver(self, name: str) -> Callable[..., Any]:
        async def save(model_id: str, value: Any, request: gr.Request) -> Any:
            preferences = self._service.preferences
            admin_only(request)
            given = _typed_in(name, value)
            if changes := preferences.settings(model_id or "")[name] != given:
                preferences.set_settings({name: given}, model_id or "")
            return _as_own(name, changes)

        return save

    def _own_saver(self, name: str) -> Callable[..., Any]:
        async def save(saved: str, value: Any, request: gr.Request) -> Any:
            owner, tab, preferences = owner_of(request), self._tab(request, saved), self._service.preferences
            change = {name: _typed_in(name, value)}
            here, model = self._here(owner, tab.session_id), self._service.default_model
            before = (
                preferences.session_settings(owner, here) if here else {**preferences.settings(model), **tab.settings}
            )
            changes = before[name] != change[name]
            if changes and here:
                preferences.set_session_settings(owner, here, change)
            elif changes:
                tab.settings |= change  # kept until the first message makes the chat
            return _as_own(name, changes)

        return save

    # What is on the screen

    def _table(self, owner: str, rows: list[dict[str, Any]], model: str) -> str:
        return models.model_table(rows, model, self._service.pool.usage(), self._service.accounts.is_admin(owner))

    def _chip(self, owner: str, model: str, rows: list[dict[str, Any]]) -> str:
        return models.chip(model, rows, self._service.accounts.is_admin(owner))

    def _tab(self, request: gr.Request, saved: str) -> Tab:
        """This tab. One that the server does not know, since it was started again, shows what the page says."""
        return self._tabs.of(request, lambda: self._here(owner_of(request), str(saved or "")))

    def _show(self, session_id: str, request: gr.Request, note: str = "", listed: bool = True) -> View:
        """Open a session in this tab, as a whole if it showed another one, and say what went wrong."""
        owner, tab = owner_of(request), self._tabs.of(request)
        session_id = self._here(owner, session_id)
        if not session_id:
            return self._blank(owner, tab, "", note)
        tab.open(session_id)
        return self._opened(owner, tab, note, listed)

    def _opened(self, owner: str, tab: Tab, note: str = "", listed: bool = True) -> View:
        """The whole chat, and with ``listed`` the list of all, which otherwise comes as news."""
        try:
            session = self._service.sessions.window(owner, tab.session_id, tab.limit)
        except NotFound:  # deleted while it was watched
            return self._blank(owner, tab, "", note)
        messages, turn = session["messages"], self._service.turns.active(tab.session_id)
        tab.version = session["version"]
        tab.last_asked = next((m["id"] for m in reversed(messages) if m["role"] == "user"), "")
        tab.turn = turn.id if turn else ""
        tab.told = f"{tab.session_id} {tab.turn} {tab.version}"
        history, recent = self._parts(tab, messages, turn.message_id if turn else "")
        return (
            View(
                saved=tab.session_id,
                history=history,
                recent=recent,
                live=[] if turn is None else None,
                box=_box(running=turn is not None),
                list=self._list(owner, tab, "") if listed else None,
                more=gr.update(visible=turn is None and bool(messages) and can_continue(messages[-1])),
                earlier=gr.update(visible=bool(messages) and messages[0]["depth"] > 1),
                waiting=self._waiting(session),
                editing=chat.editing(tab.editing[0], note),
                chip=self._chip(owner, session["model"], self._service.pool.list()),
                go=tab.told,
            )
            .over(self._files(tab, tab.session_id))
            .over(self._thinking(owner, tab, session["model"]))
        )

    def _parts(self, tab: Tab, messages: list[dict[str, Any]], running: str) -> tuple[Any, Any]:
        """What stands in the long part of the conversation, which is sent rarely, and in the short one after it."""
        messages = [m for m in messages if m["id"] != running]
        ids = [m["id"] for m in messages]
        tab.shown = f"{len(ids)} {ids[-1] if ids else ''}"
        at = ids.index(tab.mounted[-1]) + 1 if tab.mounted and tab.mounted[-1] in ids else 0
        if at and tab.mounted[-at:] == tuple(ids[:at]) and len(ids) - at <= chat.RECENT:
            return None, chat.window(messages[at:])
        tab.mounted = tuple(ids)
        return chat.window(messages), []

    def _blank(self, owner: str, tab: Tab, query: str, note: str = "") -> View:
        """A chat that is still to begin."""
        tab.open("")
        tab.version, tab.last_asked, tab.turn, tab.told, tab.shown = 0, "", "", "", "0 "
        return (
            View(
                saved="",
                history=[],
                recent=[],
                live=[],
                go="",
                box=_box(running=False),
                list=self._list(owner, tab, query),
                more=gr.update(visible=False),
                earlier=gr.update(visible=False),
                waiting="",
                editing=chat.editing("", note),
                chip=self._chip(owner, self._service.default_model, self._service.pool.list()),
            )
            .over(self._files(tab, ""))
            .over(self._thinking(owner, tab, self._service.default_model))
        )

    def _thinking(self, owner: str, tab: Tab, model: str) -> View:
        """What this chat's model can be told of thinking, if it is not what is shown; nothing where it knows none."""
        preferences = self._service.preferences
        here = self._here(owner, tab.session_id)
        chosen = preferences.session_settings(owner, here) if here else {**preferences.settings(model), **tab.settings}
        modes = preferences.modes(model) or ()
        before, mode = tab.thinking, nearest(chosen["thinking"], modes)
        tab.thinking = (modes, mode, chosen["thinking_budget"])
        if tab.thinking == before:
            return View()
        choices = [AS_MADE, *((name.capitalize(), name) for name in modes)]
        return View(
            thinking=gr.update(choices=choices, value=mode, visible=bool(modes)),
            budget=gr.update(value=chosen["thinking_budget"], visible=bool(modes)),
        )

    def _files(self, tab: Tab, session_id: str) -> View:
        """The files of the open chat, if they are not what is shown."""
        before, service = tab.files, self._service
        tab.files = (session_id, service.files.version(session_id))
        if tab.files == before:
            return View()
        rows = service.files.rows(session_id) if session_id else []
        closed = "" if session_id != before[0] else None
        return View(files=files.chips(rows), file_list=files.cards(rows), file_text=closed)

    def _file_action(self, owner: str, tab: Tab, action: str, target: str, text: str) -> View:
        """Show, remove, or read anew. What goes wrong is said above the composer."""
        room, (id_, _, page) = self._service.files, target.partition(":")
        shown = View()
        with _noted() as note:
            if action == "file-close":
                shown.file_text = ""
            elif action == "file-open":
                row = room.row(owner, tab.session_id, id_)
                shown.file_text = files.text(row, room.pages(tab.session_id, id_), int(page) if page.isdecimal() else 1)
            elif action == "file-summary":
                shown.file_text = files.summary(self._service.sessions.summary(owner, tab.session_id, id_))
            elif action == "file-remove":
                room.remove(owner, tab.session_id, id_)
                shown.file_text = ""
            elif action == "file-password":
                room.retry(owner, tab.session_id, id_, password=text)
            elif action == "file-encoding":
                room.retry(owner, tab.session_id, id_, encoding=text)
        shown.editing = chat.editing(tab.editing[0], *note)
        return shown.over(self._files(tab, self._here(owner, tab.session_id)))

    def _edit(self, owner: str, tab: Tab, action: str, id_: str) -> View:
        """Put a message into the composer, or take it out again. Raises NotFound."""
        text, kind = "", ""
        if action == "edit-queued":
            text, kind = self._service.turns.queued(owner, tab.session_id, id_)["content"], "queued"
        elif action != "cancel":
            id_ = id_ or tab.last_asked
            if not id_:
                return View()
            text, kind = self._service.sessions.message(owner, tab.session_id, id_)["content"], "message"
        tab.editing = (kind, id_ if kind else "")
        return View(box=gr.update(value={"text": text, "files": []}), editing=chat.editing(kind))

    def _list(self, owner: str, tab: Tab, query: str) -> str:
        rows = self._service.sessions.list(owner, query, sidebar.MOST)
        return sidebar.session_list(rows, tab.session_id, self._service.turns.running_sessions(owner), query)

    def _waiting(self, session: dict[str, Any]) -> str:
        return chat.waiting(session["queued"], self._service.turns.active(session["id"]) is not None)

    def _is_old(self, owner: str, tab: Tab) -> bool:
        """Whether the chat is not any more what this tab shows."""
        if not self._here(owner, tab.session_id):
            return True
        turn = self._service.turns.active(tab.session_id)
        return tab.turn != (turn.id if turn else "") or self._service.sessions.version(tab.session_id) != tab.version

    def _here(self, owner: str, session_id: str) -> str:
        """The id, or nothing when there is no such session for this owner any more."""
        try:
            return str(self._service.sessions.row(owner, session_id)["id"]) if session_id else ""
        except LlmsvcError:
            return ""

    def _new_session(self, owner: str, tab: Tab) -> str:
        session_id = str(self._service.sessions.create(owner)["id"])
        if tab.settings:
            self._service.preferences.set_session_settings(owner, session_id, tab.settings)
        tab.version = 0
        return session_id

    def _import(self, caller: Caller, path: Path) -> dict[str, Any]:
        if path.stat().st_size > MOST_IMPORTED:
            raise BadRequest(f"This file is larger than {size(MOST_IMPORTED)}, more than any chat.")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise BadRequest("This file is no text in UTF-8. Choose one that was exported here.") from None
        finally:
            path.unlink(missing_ok=True)  # the upload folder can be read by whoever knows its address
        return self._service.import_session(caller, text)


@contextmanager
def _noted() -> Iterator[list[str]]:
    """Our errors become a note on the page, which goes on to show the newest state."""
    note: list[str] = []
    try:
        yield note
    except LlmsvcError as error:
        note.append(str(error))


def _box(running: bool) -> Any:
    """The composer: with a stop button while an answer runs. It can send meanwhile: the message waits."""
    return gr.update(stop_btn=running)


def _links(session_id: str) -> str:
    """Downloads of the open chat."""
    if not session_id:
        return ""
    where = f"v1/sessions/{session_id}/export?format="
    return (
        f'<p class="links">Export: <a href="{where}json" download>JSON</a> '
        f'<a href="{where}markdown" download>Markdown</a></p>'
    )


def _knob_values(values: dict[str, Any], from_model: set[str]) -> tuple[Any, ...]:
    """With a word at those that the model brings."""
    shown = {name: "" if values[name] is None else values[name] for name in KNOBS}
    infos = {name: FROM_MODEL if name in from_model else info for name, info in INFO.items()}
    return tuple(gr.update(value=v, info=infos[name]) if name in infos else v for name, v in shown.items())


def _as_own(name: str, changed: bool) -> Any:
    """What a knob says that the model does not set any more."""
    if name not in INFO:
        return None
    return gr.update(info=INFO[name]) if changed else gr.skip()


def _as_update(value: Any) -> dict[str, Any]:
    update: dict[str, Any] = value if isinstance(value, dict) else gr.update(value=value)
    return update


def _typed_in(name: str, value: Any) -> Any:
    """A seed is typed as text, and empty is none."""
    if name != "seed":
        return 0 if value is None and name in (*LOADING, "thinking_budget") else value
    text = str(value or "").strip()
    if text and not text.isdecimal():
        raise BadRequest("A seed is a whole number from 0, or empty.")
    return int(text) if text else None
