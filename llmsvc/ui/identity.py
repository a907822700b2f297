"""Who is asking."""

import gradio as gr

from llmsvc.accounts import Caller
from llmsvc.errors import Forbidden
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
