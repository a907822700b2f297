"""Answers this page's own events without what Gradio does around each: that costs more than most of them.

Gradio's route checks, converts and times in general what is particular here: a coroutine that takes a few texts, whose
answer comes at once. Its own code still reads the inputs and makes the outputs. What is different goes on to Gradio.
"""

import inspect
import time
from collections.abc import Callable
from typing import Any

import gradio as gr
import orjson
from gradio.context import LocalContext
from gradio.route_utils import Request as GradioRequest
from gradio.routes import ORJSONResponse
from gradio.utils import error_payload, get_type_hints
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmsvc.ui.shut import closed

PATH = "/gradio_api/run/predict"
_TEXTS = (gr.BrowserState, gr.HTML, gr.MultimodalTextbox, gr.Textbox)


class Quick:
    """Stands before Gradio, behind the guard."""

    def __init__(self, app: ASGIApp, demo: gr.Blocks) -> None:
        self._app, self._demo = app, demo
        self._known = {id_: _extras(function.fn) for id_, function in demo.fns.items() if _is_ours(function)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST":
            request = Request(scope, receive)
            body = await request.body()
            plain = request.headers.get("content-type", "").partition(";")[0].strip() == "application/json"
            if plain and (response := await self._answer(request, body)):
                await response(scope, receive, send)
                return
            receive = _again(body, receive)
        await self._app(scope, receive, send)

    async def _answer(self, request: Request, body: bytes) -> Response | None:
        """None: Gradio is to answer."""
        try:
            asked = orjson.loads(body)
            id_, hash_, values, event = (asked.get(name) for name in ("fn_index", "session_hash", "data", "event_data"))
            extras = self._known.get(id_)
        except (ValueError, TypeError, AttributeError):
            return None
        if extras is None or not isinstance(hash_, str) or not isinstance(values, list) or asked.get("batched"):
            return None
        demo, function, began = self._demo, self._demo.fns[id_], time.time()
        LocalContext.blocks.set(demo)
        state = demo.app.state_holder[hash_]
        try:
            with closed():
                inputs = await demo.preprocess_data(function, values, state)
                asks = GradioRequest(request=request, session_hash=hash_)
                inputs += [asks if kind is gr.Request else gr.EventData(None, event) for kind in extras]
                data = await demo.postprocess_data(function, await function.fn(*inputs), state)
        except gr.Error as error:
            failed: Response = ORJSONResponse(error_payload(error, True), 500)
            return failed
        took = time.time() - began
        told = {"data": data, "is_generating": False, "duration": took, "average_duration": took}
        done: Response = ORJSONResponse({**told, "render_config": None, "changed_state_ids": []})
        return done


def _again(body: bytes, receive: Receive) -> Receive:
    """The request from its start for who comes next."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return messages.pop() if messages else await receive()

    return received


def _is_ours(function: Any) -> bool:
    """Whether it is a coroutine that takes texts, and does not wait in Gradio's queue."""
    texts = all(isinstance(component, _TEXTS) for component in function.inputs)
    return inspect.iscoroutinefunction(function.fn) and not function.queue and not function.batch and texts


def _extras(function: Callable[..., Any]) -> list[Any]:
    """What it takes behind its inputs: the event, the request, or both."""
    plain = inspect.unwrap(getattr(function, "__func__", function))
    hints = get_type_hints(plain)
    kinds = [hints.get(name) for name in inspect.signature(plain).parameters]
    return [kind for kind in kinds if kind in (gr.Request, gr.EventData)]
