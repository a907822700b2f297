"""Gradio without what no visitor may ask it for.

It fetches addresses that it finds in place of an upload, prints what handlers fail with, quoting what they were given,
and invites every other site's page in wherever its own host is not this machine.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import gradio as gr
import gradio.routes
from gradio import processing_utils
from starlette.types import ASGIApp

from llmsvc.errors import LlmsvcError

log = logging.getLogger(__name__)


def shut() -> None:
    """Before the page is built."""
    processing_utils.async_ssrf_protected_get = _fetch_nothing
    processing_utils.async_ssrf_protected_download = _fetch_nothing
    gradio.routes.CustomCORSMiddleware = _as_it_is


class ShutBlocks(gr.Blocks):  # type: ignore[misc]
    """Says of what fails inside nothing but that it did."""

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with closed():
            made: dict[str, Any] = await super().process_api(*args, **kwargs)
            return made


@contextmanager
def closed() -> Iterator[None]:
    """Raises gr.Error for whatever fails in it, with the text of our own errors: toasts, and errors of clients."""
    try:
        yield
    except gr.Error as error:
        error.print_exception = False
        raise
    except LlmsvcError as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Exception as error:
        log.exception("an event of the page failed")
        text = "This request could not be answered. Check what it sends; the service's log says where it failed."
        raise gr.Error(text, print_exception=False) from error


async def _fetch_nothing(*_: Any, **__: Any) -> NoReturn:
    raise gr.Error("An address is not fetched here. Send the file itself.", print_exception=False)


def _as_it_is(app: ASGIApp, **_: object) -> ASGIApp:
    """A middleware that does nothing. The guard lets no other site in, so there is nobody to invite."""
    return app
