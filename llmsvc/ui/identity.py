"""Who is asking, and errors as Gradio shows them."""

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from llmsvc.accounts import Caller
from llmsvc.errors import Forbidden, LlmsvcError
from llmsvc.http import identity as http
from llmsvc.logs import REQUEST


def caller_of(request: gr.Request) -> Caller:
    """As the guard found it. Raises LoginMissing."""
    REQUEST.set(request.request.state.request)  # Gradio's queue calls from a task of its own
    return http.caller_of(request.request)


def owner_of(request: gr.Request) -> str:
    """To whom what this request makes belongs."""
    return caller_of(request).owner


def key_owner_of(request: gr.Request) -> str:
    """Whose keys this request may see and make. Raises Forbidden."""
    caller = caller_of(request)
    if caller.guest:
        raise Forbidden("A visitor has no keys. Log in to make one.")
    return caller.owner


def admin_only(request: gr.Request) -> None:
    """Raises Forbidden for whoever must not change what is everybody's."""
    if not caller_of(request).admin:
        raise Forbidden("Only the admin of this service can change this.")


@contextmanager
def shown_errors() -> Iterator[None]:
    """Turn our errors into toasts and client errors, with their text as it stands and no traceback."""
    try:
        yield
    except LlmsvcError as error:
        raise gr.Error(str(error), print_exception=False) from error
