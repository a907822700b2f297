"""Who is asking."""

from fastapi import Request

from llmsvc.errors import LoginMissing


def owner_of(request: Request) -> str:
    """The login's name, by Gradio's own cookie; without logins everything here belongs to ``local``.

    Raises LoginMissing.
    """
    app = request.app
    if app.auth is None:
        return "local"
    token = request.cookies.get(f"access-token-{app.cookie_id}") or request.cookies.get(
        f"access-token-unsecure-{app.cookie_id}"
    )
    if (name := app.tokens.get(token)) is None:
        raise LoginMissing("Log in first.")
    return str(name)
