"""Stands in front of everything: whose request it is, whether it may pass, and what browsers are told.

Pure ASGI, since it sees every request and every piece of every stream.
"""

import os
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmsvc.accounts import Accounts, Caller
from llmsvc.errors import Forbidden, LlmsvcError, LoginMissing, TooLarge
from llmsvc.http import login
from llmsvc.http.errors import refused
from llmsvc.http.identity import MISSING
from llmsvc.http.metrics import Counts

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
MOST_BYTES, MOST_IMPORTED = 16 * 2**20, 64 * 2**20
"""Of a body; of one of Gradio's, which may be a whole chat."""

_OPEN = {"/health", "/ready", "/login", "/logout", "/gradio_api/startup-events"}  # Gradio calls the last one itself
_ADMINS = {"/metrics", "/docs", "/redoc", "/openapi.json"}
_COUNTED = {f"/v1/{name}" for name in ("chat/completions", "completions", "responses", "messages", "embeddings")}
_COUNTED |= {"/v1/models", "/v1/sessions", "/v1/keys", "/gradio_api", "/login", "/metrics", "/health", "/ready", "/"}
_PAGES = {"/", "/config"}
_READ = {b"host", b"origin", b"cookie", b"authorization", b"x-api-key", b"content-length", b"transfer-encoding"}
_READ |= {b"x-forwarded-host", b"x-forwarded-proto", b"sec-fetch-site", b"sec-fetch-mode"}
_FRAMES = "'self' https://huggingface.co" if os.environ.get("SPACE_ID") else "'self'"  # Spaces are shown in a frame
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_POLICY = (  # Gradio's page has inline scripts, and makes functions of text
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    f"frame-ancestors {_FRAMES}"
)
_PAGE_HEADERS = [(b"content-security-policy", _POLICY.encode())]


class Guard:
    def __init__(
        self, app: ASGIApp, accounts: Accounts, port: int, host: str, most_uploaded: int, counts: Counts
    ) -> None:
        """``most_uploaded``: bytes of one upload; ``counts``: where answered requests are counted."""
        self._app, self._accounts, self._counts = app, accounts, counts
        self._login, self._guest = (name.format(port) for name in ("llmsvc-login-{}", "llmsvc-guest-{}"))
        self._hosts = LOOPBACK | {host}
        self._most_uploaded = most_uploaded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send) if scope["type"] == "lifespan" else None
        found = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _READ}
        secure = scope["scheme"] == "https" or found.get(b"x-forwarded-proto") == "https"
        made: list[tuple[bytes, bytes]] = []
        try:
            self._check_origin(found)
            cookies = _cookies(found.get(b"cookie", ""))
            guest = cookies.get(self._guest, "")
            if self._accounts.guests and not guest and scope["path"] in _PAGES and scope["method"] == "GET":
                guest = secrets.token_urlsafe(24)
                made = [(b"set-cookie", login.cookie(self._guest, guest, secure).encode())]
            caller = self._accounts.caller(_key(found), cookies.get(self._login, ""), guest)
            scope.setdefault("state", {}).update(
                caller=caller, login=cookies.get(self._login, ""), cookie=self._login, secure=secure
            )
            self._check_caller(scope["path"], caller)
            receive = self._limited(scope["path"], found, receive)
        except LlmsvcError as error:
            html = b"text/html" in dict(scope["headers"]).get(b"accept", b"")
            page = isinstance(error, LoginMissing) and html and scope["path"] == "/"
            response = login.page(status=401) if page else refused(error)
            return await response(scope, receive, self._told(scope["path"], send, []))
        try:
            return await self._app(scope, receive, self._told(scope["path"], send, made))
        except TooLarge as error:  # it came in pieces, and nothing was answered yet
            return await refused(error)(scope, receive, send)

    def _check_origin(self, found: dict[bytes, str]) -> None:
        """Against DNS rebinding and requests that another site's page makes. Raises Forbidden."""
        host = found.get(b"host", "").lower()
        if not self._accounts.closed and _name(host) not in self._hosts:  # with a login, another name has no cookie
            raise Forbidden(f'This service does not answer for the host "{host[:80]}". Use its own address.')
        origin = found.get(b"origin")
        ours = {host, found.get(b"x-forwarded-host", host).lower()} if self._accounts.closed else {host}
        foreign = origin is not None and origin.lower().partition("://")[2] not in ours - {""}
        site = found.get(b"sec-fetch-site", "none")
        if foreign or (site not in ("none", "same-origin") and found.get(b"sec-fetch-mode") != "navigate"):
            raise Forbidden("Another site's page must not use this service. Open its own page instead.")

    def _check_caller(self, path: str, caller: Caller | None) -> None:
        """Raises LoginMissing, or Forbidden for what is the admin's."""
        if path in _OPEN:
            return
        proof = path.startswith("/v1/") and not path.startswith("/v1/sessions/")
        if caller is None or (proof and not caller.proven and (self._accounts.closed or self._accounts.keys_set)):
            raise LoginMissing(MISSING)
        if path in _ADMINS and not caller.admin:
            raise Forbidden("This is for the admin of this service.")

    def _limited(self, path: str, found: dict[bytes, str], receive: Receive) -> Receive:
        """Raises TooLarge, now or when more was read than may be."""
        most = MOST_IMPORTED if path.startswith("/gradio_api/") else MOST_BYTES
        if path.startswith("/gradio_api/upload"):
            most = self._most_uploaded
        too_large = TooLarge(f"This is more than the {most // 2**20:,} MB that may be sent at once. Send less.")
        length = found.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > most:
            raise too_large
        if b"transfer-encoding" not in found:
            return receive
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise too_large
            return message

        return counted

    def _told(self, path: str, send: Send, more: list[tuple[bytes, bytes]]) -> Send:
        """``send``, with what every browser is told; the request is counted."""

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *_HEADERS, *more]
                if any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers):
                    headers += _PAGE_HEADERS
                message["headers"] = headers
                self._counts[(_kind(path), message["status"])] += 1
            await send(message)

        return answer


def _kind(path: str) -> str:
    """A path without what is different in each request."""
    known = path if path in _COUNTED else next((kind for kind in _COUNTED if path.startswith(f"{kind}/")), "")
    return known or "other"


def _key(found: dict[bytes, str]) -> str:
    """The API key that a request brings."""
    kind, _, key = found.get(b"authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else found.get(b"x-api-key", "")


def _cookies(header: str) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return {name: value for name, _, value in pairs if name.startswith("llmsvc-")}


def _name(host: str) -> str:
    """A host without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
