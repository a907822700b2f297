"""The named endpoints of the contract: plain JSON in and out, for gradio_client and curl."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import gradio as gr

from llmsvc.chat.turn import Turn
from llmsvc.errors import BadRequest
from llmsvc.service import Service
from llmsvc.ui.identity import admin_only, caller_of, owner_of


def add_endpoints(service: Service) -> None:
    """Register every endpoint. Call inside the Blocks context."""
    for name, function in {
        **_session_endpoints(service),
        **_chat_endpoints(service),
        **_file_endpoints(service),
        **_memory_endpoints(service),
        **_model_endpoints(service),
    }.items():
        gr.api(function, api_name=name)
    _add_upload(service)


def _session_endpoints(service: Service) -> dict[str, Callable[..., Any]]:
    sessions = service.sessions

    def session_create(request: gr.Request, title: str = "") -> dict[str, Any]:
        """Create a session."""
        return sessions.create(owner_of(request), title)

    def session_list(request: gr.Request, query: str = "") -> list[dict[str, Any]]:
        """List sessions, newest first; query searches titles and messages."""
        return sessions.list(owner_of(request), query)

    def session_get(request: gr.Request, session_id: str) -> dict[str, Any]:
        """A session with its messages and files."""
        return sessions.get(owner_of(request), session_id)

    def session_rename(request: gr.Request, session_id: str, title: str) -> dict[str, Any]:
        """Rename a session."""
        return sessions.rename(owner_of(request), session_id, title)

    async def session_delete(request: gr.Request, session_id: str) -> dict[str, Any]:
        """Delete a session; session_restore undoes it until undo_until (Unix time)."""
        return service.delete_session(owner_of(request), session_id)

    def session_restore(request: gr.Request, session_id: str) -> dict[str, Any]:
        """Undo a deletion."""
        return service.restore_session(owner_of(request), session_id)

    def session_export(request: gr.Request, session_id: str, format: str = "json") -> str:
        """A session as "json" or "markdown" text."""
        return sessions.export(owner_of(request), session_id, format)

    def session_import(request: gr.Request, text: str) -> dict[str, Any]:
        """Create a session from exported JSON text."""
        return service.import_session(caller_of(request), text)

    made = (session_create, session_list, session_get, session_rename)
    changed = (session_delete, session_restore, session_export, session_import)
    return {function.__name__: function for function in (*made, *changed)}


def _chat_endpoints(service: Service) -> dict[str, Callable[..., Any]]:
    turns = service.turns

    async def frames(turn: Turn, offset: int = 0) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """The text from ``offset`` on with the status, then the turn's error if it has one."""
        async for text, status in turns.attach(turn, offset):
            yield text[offset:], status
        if turn.error is not None and turn.state == "failed":
            raise turn.error

    async def chat(
        request: gr.Request,
        session_id: str,
        message: str,
        model: str = "",
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        stop: list[str] | None = None,
        system: str = "",
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        json_schema: str = "",
        regex: str = "",
        thinking: str = "",
        thinking_budget: int | None = None,
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Send a message; streams (text so far, status). What is left out comes from the settings.

        thinking: off, on, low, medium or high, as far as the model knows it; status["reasoning"] is the reasoning so
        far, which has at most thinking_budget tokens (0 for no bound).
        """
        values: dict[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "max_tokens": max_tokens,
            "seed": seed,
            "stop": stop,
            "system": system,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "json_schema": json_schema,
            "regex": regex,
            "thinking": thinking,
            "thinking_budget": thinking_budget,
        }
        owner = owner_of(request)
        await service.check_model(caller_of(request), model)
        turn = turns.start(owner, session_id, message, model=model, **values)
        async for frame in frames(turn):
            yield frame

    async def attach(
        request: gr.Request, session_id: str, offset: int = 0
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Watch the running answer, or get the last one; streams (text from offset on, status)."""
        if not isinstance(offset, int) or offset < 0:
            raise BadRequest("offset counts characters: a whole number from 0.")
        async for frame in frames(turns.last(owner_of(request), session_id), offset):
            yield frame

    async def regenerate(
        request: gr.Request,
        session_id: str,
        message_id: str,
        thinking: str = "",
        thinking_budget: int | None = None,
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Answer the same message again on a new branch; streams as chat does."""
        how: dict[str, Any] = {"thinking": thinking, "thinking_budget": thinking_budget}
        async for frame in frames(turns.regenerate(owner_of(request), session_id, message_id, **how)):
            yield frame

    async def edit(
        request: gr.Request,
        session_id: str,
        message_id: str,
        text: str,
        thinking: str = "",
        thinking_budget: int | None = None,
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Change a message on a new branch; a user's message is answered anew, streamed as chat does."""
        how: dict[str, Any] = {"thinking": thinking, "thinking_budget": thinking_budget}
        async for frame in frames(turns.edit(owner_of(request), session_id, message_id, text, **how)):
            yield frame

    async def resume(request: gr.Request, session_id: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Continue the last answer where it was interrupted or stopped; streams as chat does."""
        async for frame in frames(turns.resume(owner_of(request), session_id)):
            yield frame

    # gr.api reads the type of one yield, not of the iterator, from the annotation.
    for streaming in (chat, attach, regenerate, edit, resume):
        streaming.__annotations__["return"] = tuple[str, dict[str, Any]]

    async def stop(request: gr.Request, session_id: str) -> dict[str, Any]:
        """Stop the running answer of a session; what it has so far is kept."""
        return await turns.stop(owner_of(request), session_id)

    async def branch_select(request: gr.Request, session_id: str, message_id: str) -> dict[str, Any]:
        """Show the branch of a message (see its branches in session_get); returns the session."""
        return service.select_branch(owner_of(request), session_id, message_id)

    async def queue_edit(request: gr.Request, session_id: str, turn_id: str, text: str) -> dict[str, Any]:
        """Change a message that waits for its answer."""
        turns.edit_queued(owner_of(request), session_id, turn_id, text)
        return {"turn_id": turn_id}

    async def queue_remove(request: gr.Request, session_id: str, turn_id: str) -> dict[str, Any]:
        """Withdraw a message that waits for its answer."""
        turns.withdraw(owner_of(request), session_id, turn_id)
        return {"turn_id": turn_id}

    async def queue_send(request: gr.Request, session_id: str) -> dict[str, Any]:
        """Answer the messages that wait since the service was stopped."""
        turn = turns.send_queued(owner_of(request), session_id)
        return turn.status() if turn else {}

    async def session_settings(
        request: gr.Request, session_id: str, values: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Options of one session, after changing those given; null takes one back to the default."""
        return service.preferences.set_session_settings(owner_of(request), session_id, values or {})

    async def settings_get(model: str = "") -> dict[str, Any]:
        """Sampling and system-prompt defaults, of all models or of one; from_model: those that a model brings."""
        return service.preferences.settings(model)

    async def settings_set(request: gr.Request, values: dict[str, Any], model: str = "") -> dict[str, Any]:
        """Change sampling and system-prompt defaults; returns all of them."""
        admin_only(request)
        return service.preferences.set_settings(values, model)

    streams: dict[str, Callable[..., Any]] = {"chat": chat, "attach": attach, "continue": resume}
    again: dict[str, Callable[..., Any]] = {"regenerate": regenerate, "edit": edit}
    plain = (stop, branch_select, queue_edit, queue_remove, queue_send, session_settings, settings_get, settings_set)
    return {**streams, **again, **{function.__name__: function for function in plain}}


def _file_endpoints(service: Service) -> dict[str, Callable[..., Any]]:
    files = service.files

    def file_list(request: gr.Request, session_id: str) -> list[dict[str, Any]]:
        """The files of a session, oldest first."""
        return files.listed(owner_of(request), session_id)

    def file_get(request: gr.Request, session_id: str, file_id: str) -> dict[str, Any]:
        """A file with the text that was read from it so far."""
        return files.get(owner_of(request), session_id, file_id)

    def file_remove(request: gr.Request, session_id: str, file_id: str) -> dict[str, Any]:
        """Remove a file, also while it is parsed: gone from the next prompt and from the disk."""
        return files.remove(owner_of(request), session_id, file_id)

    def file_retry(
        request: gr.Request, session_id: str, file_id: str, password: str = "", encoding: str = ""
    ) -> dict[str, Any]:
        """Read a file anew, with a password (which is not kept), or in another encoding."""
        return files.retry(owner_of(request), session_id, file_id, password, encoding)

    return {function.__name__: function for function in (file_list, file_get, file_remove, file_retry)}


def _memory_endpoints(service: Service) -> dict[str, Callable[..., Any]]:
    memory = service.memory

    def memory_list(request: gr.Request) -> dict[str, Any]:
        """What you want to be remembered in all your chats: on, and facts with id and text."""
        return memory.listed(owner_of(request))

    def memory_switch(request: gr.Request, on: bool) -> dict[str, Any]:
        """Use the facts in every prompt, or keep them unused; gives what memory_list gives."""
        return memory.switch(owner_of(request), on is True)

    def memory_set(request: gr.Request, id: str, text: str) -> dict[str, Any]:
        """Change a fact, or add one: with an empty id."""
        return memory.set(owner_of(request), id, text)

    def memory_delete(request: gr.Request, id: str) -> dict[str, Any]:
        """Delete a fact; gives it, so that it can be added again."""
        return memory.delete(owner_of(request), id)

    return {function.__name__: function for function in (memory_list, memory_switch, memory_set, memory_delete)}


def _add_upload(service: Service) -> None:
    """The one endpoint made of components: only they let in nothing but what was uploaded."""

    def file_upload(file: str | None, session_id: str, request: gr.Request) -> dict[str, Any]:
        """Upload a file to a session; it is parsed behind. See file_get for its state and text."""
        if not file:
            raise BadRequest("There is no file in this request.")
        return service.files.add(owner_of(request), session_id, Path(file).name, Path(file))

    with gr.Row(visible=False):
        given = [gr.File(label="file"), gr.Textbox(label="session_id")]
        gr.Button().click(file_upload, given, gr.JSON(label="result"), api_name="file_upload")


def _model_endpoints(service: Service) -> dict[str, Callable[..., Any]]:
    def model_catalog() -> list[dict[str, Any]]:
        """Models that can be loaded."""
        return service.pool.catalogued()

    def model_search(request: gr.Request, query: str) -> list[dict[str, Any]]:
        """Models on the Hugging Face hub that can be loaded: id, bytes, parameters, downloads, gated, local."""
        admin_only(request)
        return service.pool.search(query)

    def model_list() -> list[dict[str, Any]]:
        """Models that are loaded or being loaded, with state and memory."""
        return service.pool.list()

    async def model_forecast(
        request: gr.Request, model: str, quantization: str = "none", context: int = 0
    ) -> dict[str, Any]:
        """What a model would take, and whether that fits, without loading it.

        Gives weights_bytes, kv_bytes_per_token, state_bytes (of each chat), load_peak_bytes, peak_bytes (the most while
        it loads, or with a chat of ``context`` tokens), free_bytes, fits, and the idle models that would go (evicts);
        whether it runs at all or the reason, how (kind, checkpoint, served), and the tokens_per_second to expect.
        """
        await service.check_model(caller_of(request), model)
        return await asyncio.to_thread(service.pool.forecast, model, quantization, context)

    async def model_load(
        request: gr.Request, model: str, quantization: str = "none", device: str = "auto"
    ) -> AsyncIterator[dict[str, Any]]:
        """Load a model; streams {stage, done, total}, then the model's row as in model_list.

        Going away does not end it; model_unload does.
        """
        admin_only(request)
        async for row in service.pool.load(model, quantization, device):
            yield row

    model_load.__annotations__["return"] = dict[str, Any]

    def model_unload(request: gr.Request, model: str) -> dict[str, int]:
        """Unload a model, or end its loading; gives the memory of the process, in bytes, before and after."""
        admin_only(request)
        return service.pool.unload(service.catalogue.entry(model).id)

    def model_pin(request: gr.Request, model: str, pinned: bool = True) -> dict[str, Any]:
        """Keep a loaded model in memory until it is unloaded, or no longer; gives its row."""
        admin_only(request)
        return service.pool.pin(service.catalogue.entry(model).id, pinned)

    def model_delete(request: gr.Request, model: str) -> dict[str, int]:
        """Delete the files that were downloaded or converted for a model; gives freed_bytes."""
        admin_only(request)
        return {"freed_bytes": service.pool.delete(model)}

    async def remote_add(request: gr.Request, url: str, key: str = "") -> dict[str, Any]:
        """Offer the models of another server with an OpenAI API, as remote:ID; key is its API key, and not shown again.

        Gives {url, state, models, key (whether there is one), running, error}. The same address again changes the key.
        """
        admin_only(request)
        return await service.servers.add(url, key)

    def remote_list(request: gr.Request) -> list[dict[str, Any]]:
        """The other servers whose models are offered, and how they are."""
        admin_only(request)
        return service.servers.list()

    async def remote_remove(request: gr.Request, url: str) -> dict[str, Any]:
        """Offer the models of another server no longer."""
        admin_only(request)
        return await asyncio.to_thread(service.servers.remove, url)

    made = (model_catalog, model_search, model_list, model_forecast, model_load, model_unload, model_pin, model_delete)
    remote = (remote_add, remote_list, remote_remove)
    return {function.__name__: function for function in (*made, *remote)}
