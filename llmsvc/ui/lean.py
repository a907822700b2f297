"""Gradio without work that this page never needs, for what it does at each event and each frame of each stream.

Measured by ``bench.watching``; each is safe to lose with another version of Gradio, and only costs time then.
"""

import asyncio
import copy
import functools
import inspect
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anyio.to_thread
import fastapi.dependencies.utils
import gradio as gr
import gradio.blocks
import gradio.queueing
import gradio.route_utils
import gradio.state_holder
import gradio.utils
import uvicorn
from gradio.blocks import BlocksConfig

from llmsvc.ui.shut import ShutBlocks

# Gradio looks for it around every call, on the whole path when it is not there. Nothing here draws with it.
sys.modules.setdefault("matplotlib", None)  # type: ignore[arg-type]


async def _at_once(call: Callable[..., Any], *args: Any, **values: Any) -> Any:
    return call(*args, **values)


# Gradio's only dependency that is no coroutine compares two words: a thread for it costs more than the request.
fastapi.dependencies.utils.run_in_threadpool = _at_once  # type: ignore[attr-defined, assignment]
gradio.queueing.run_sync = _at_once  # it is for analytics, which are turned off below

_LIGHT = (gr.BrowserState, gr.HTML, gr.Markdown, gr.MultimodalTextbox, gr.State, gr.Textbox)
_FEW = 16
_MOST_ROOTS = 256
_HOT = {f"/gradio_api/{path}" for path in ("run/{api_name}", "call/{api_name}", "call/{api_name}/{event_id}")}


async def _where_it_belongs(call: Callable[..., Any], *args: Any, limiter: Any = None) -> Any:
    """``anyio.to_thread.run_sync`` without a thread for what only begins a stream, or is done sooner than one wakes."""
    component = getattr(call, "__self__", None)
    light = isinstance(component, _LIGHT) or (isinstance(component, gr.Chatbot) and len(args[0] or ()) <= _FEW)
    if light or inspect.isasyncgenfunction(call):
        return call(*args)
    return await anyio.to_thread.run_sync(call, *args, limiter=limiter)


gradio.utils.get_type_hints = functools.cache(gradio.utils.get_type_hints)
gradio.blocks.anyio = SimpleNamespace(to_thread=SimpleNamespace(run_sync=_where_it_belongs))


class _LeanState(gradio.state_holder.SessionState):  # type: ignore[misc]
    """Describes no component, as _LeanConfig does not."""

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks=()))


gradio.state_holder.SessionState = _LeanState


async def _main_loop(server: uvicorn.Server) -> None:
    """uvicorn's, which wakes ten times in a second for the date in its headers, and to see whether it is to end."""
    while not await server.on_tick(0):  # noqa: ASYNC110
        await asyncio.sleep(0.5)


uvicorn.Server.main_loop = _main_loop  # type: ignore[method-assign, assignment]


class _Until:
    """``asyncio`` as Gradio's queue sees it: an empty queue sleeps until something is sent."""

    def __init__(self, queue: Any) -> None:
        self._queue, self._sent, push = queue, asyncio.Event(), queue.push

        async def pushed(*args: Any, **kwargs: Any) -> Any:
            try:
                return await push(*args, **kwargs)
            finally:
                self._sent.set()

        queue.push = pushed

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        if seconds == self._queue.sleep_when_free and not len(self._queue):
            self._sent.clear()
            await self._sent.wait()
        else:
            await asyncio.sleep(seconds)


_SKIP = gr.skip()
_PLAIN = {"__type__", "visible", "stop_btn", "value"}
_EMPTY_BOX = {"text": "", "files": []}


def _is_plain(value: Any) -> bool:
    """Whether it can go to the browser as it is: an update of nothing, or of what the server never reads again."""
    plain = isinstance(value, dict) and value.get("__type__") == "update" and value.keys() <= _PLAIN
    return plain and value.get("value", _EMPTY_BOX) == _EMPTY_BOX


class _LeanConfig(BlocksConfig):  # type: ignore[misc]
    """Describes no component to a client's state, which keeps that for deep links: 10 ms and 200 KB for each client,
    and each call of a script is a client."""

    @staticmethod
    def config_for_block(_id: int, rendered_ids: list[int], block: Any, renderable: Any = None) -> dict[str, Any]:
        if not rendered_ids and renderable is None:
            return {}
        found: dict[str, Any] = BlocksConfig.config_for_block(_id, rendered_ids, block, renderable)
        return found

    def __copy__(self) -> "_LeanConfig":
        copied = super().__copy__()
        copied.__class__ = type(self)
        made: _LeanConfig = copied
        return made


_ORIGIN = ("host", "x-forwarded-host", "x-forwarded-proto", "x-gradio-server")
_roots: dict[tuple[Any, ...], str] = {}
_root_of = gradio.route_utils.get_root_url


def _root_url(request: Any, route_path: str, root_path: str | None) -> str:
    """Gradio's, which takes the same few addresses apart for every request."""
    scope = request.scope
    named = map(request.headers.get, _ORIGIN)
    key = (scope["scheme"], scope.get("server"), scope["path"], route_path, root_path, *named)
    if key not in _roots:
        if len(_roots) >= _MOST_ROOTS:
            _roots.clear()
        _roots[key] = _root_of(request, route_path, root_path)
    return _roots[key]


gradio.route_utils.get_root_url = _root_url


def hot_first(app: Any) -> None:
    """Of all routes that Gradio has, look at those first that a chat uses."""
    for router in (getattr(route, "original_router", None) for route in app.router.routes):
        if router is not None and hasattr(router, "_mark_routes_changed"):
            router.routes.sort(key=lambda route: getattr(route, "path", "") not in _HOT)
            router._mark_routes_changed()


class LeanBlocks(ShutBlocks):
    """``gr.skip()`` costs nothing, and to show or hide a component little: as they stand, each builds it anew."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.default_config.__class__ = _LeanConfig

    def queue(self, *args: Any, **kwargs: Any) -> Any:
        made = super().queue(*args, **kwargs)
        self._queue.sleep_when_free, self._queue.progress_update_sleep_when_free = 0.02, 1.0  # shows no progress here
        gradio.queueing.asyncio = _Until(self._queue)
        # After each event it makes a pandas table of the last 10,000, for a page that is turned off.
        self._queue.ANALYTICS_MAX_EVENTS, self._queue.ANAYLTICS_CACHE_FREQUENCY = 1, sys.maxsize
        self._queue.broadcast_estimations = lambda *_: None  # with each event, to each that waits; not shown here
        for block in self.fns.values():  # asked for at each event, and made anew each time
            function = inspect.unwrap(getattr(block.fn, "__func__", block.fn)) if block.fn else None
            if inspect.isfunction(function):
                function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return made

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        if len(block_fn.outputs) < 2 or not isinstance(predictions, list | tuple):
            whole: list[Any] = await super().postprocess_data(block_fn, predictions, state)
            return whole
        found: list[Any] = [value if _is_plain(value) else _SKIP for value in predictions]
        said = [number for number, value in enumerate(predictions) if not _is_plain(value)]
        if said:
            part = copy.copy(block_fn)
            part.outputs = [block_fn.outputs[number] for number in said]
            values = [predictions[number] for number in said]
            shown = await super().postprocess_data(part, values if len(said) > 1 else values[0], state)
            for number, value in zip(said, shown, strict=True):
                found[number] = value
        return found
