"""Who is asking, as the guard found it."""

from fastapi import Request

from llmsvc.accounts import Caller
from llmsvc.errors import LoginMissing

MISSING = "Log in first, or send an API key: Authorization: Bearer KEY."


def caller_of(request: Request) -> Caller:
    """Raises LoginMissing."""
    caller: Caller | None = request.state.caller
    if caller is None:
        raise LoginMissing(MISSING)
    return caller


def owner_of(request: Request) -> str:
    """To whom what this request makes belongs. Raises LoginMissing."""
    return caller_of(request).owner
