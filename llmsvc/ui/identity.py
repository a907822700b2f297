"""Who is asking, and errors as Gradio shows them."""

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from llmsvc.errors import LlmsvcError


def owner_of(request: gr.Request) -> str:
    """The login's name; without logins everything on this machine belongs to ``local``."""
    return str(request.username or "local")


@contextmanager
def shown_errors() -> Iterator[None]:
    """Turn our errors into toasts and client errors, with their text as it stands and no traceback."""
    try:
        yield
    except LlmsvcError as error:
        raise gr.Error(str(error), print_exception=False) from error
