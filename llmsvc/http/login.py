"""The login: a page for browsers, and the same address for gradio_client's ``auth``."""

import asyncio
import html
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from llmsvc.accounts import LOGIN_SECONDS
from llmsvc.errors import LlmsvcError, LoginMissing
from llmsvc.http.errors import refused
from llmsvc.service import Service

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>llmsvc: log in</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ display: grid; place-items: center; min-height: 90vh; margin: 0; }}
form {{ display: grid; gap: .75rem; width: min(20rem, 90vw); }}
h1 {{ font-size: 1.3rem; margin: 0 0 .5rem; }} label {{ display: grid; gap: .25rem; }}
input, button {{ font: inherit; padding: .5rem .75rem; border-radius: .5rem; border: 1px solid #8888; }}
button {{ background: #4f46e5; color: #fff; border: 0; cursor: pointer; }} p {{ color: #dc2626; margin: 0; }}
</style></head><body><form method="post" action="/login"><h1>llmsvc</h1>
<label>Name<input name="username" autocomplete="username" required autofocus></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required></label>
<p role="alert">{note}</p><button>Log in</button></form></body></html>"""


def page(note: str = "", status: int = 200) -> HTMLResponse:
    return HTMLResponse(_PAGE.format(note=html.escape(note)), status, {"Cache-Control": "no-store"})


def cookie(name: str, value: str, secure: bool, seconds: int = LOGIN_SECONDS) -> str:
    """A Set-Cookie header that no script can read and no other site sends."""
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"


def add_routes(router: APIRouter, service: Service) -> None:
    accounts = service.accounts
    form = Form(max_length=200)

    @router.get("/login")
    async def login_page() -> Response:
        return page()

    @router.post("/login")
    async def log_in(request: Request, username: Annotated[str, form], password: Annotated[str, form]) -> Response:
        """Sets the cookie. A browser is led to the page, a script is told."""
        browser = "text/html" in request.headers.get("accept", "")
        try:
            token = await asyncio.to_thread(accounts.log_in, username, password)
        except LlmsvcError as error:
            status = 400 if isinstance(error, LoginMissing) else error.status  # gradio_client knows 400
            if browser:
                return page(str(error), status)
            response = refused(error)
            response.status_code = status
            return response
        answer: Response = RedirectResponse("/", 303) if browser else JSONResponse({"success": True})
        answer.headers["set-cookie"] = cookie(request.state.cookie, token, request.state.secure)
        return answer

    @router.get("/logout")
    async def log_out(request: Request) -> Response:
        if request.state.login:
            await asyncio.to_thread(accounts.log_out, request.state.login)
        answer = RedirectResponse("/", 303)
        answer.headers["set-cookie"] = cookie(request.state.cookie, "", request.state.secure, 0)
        return answer
