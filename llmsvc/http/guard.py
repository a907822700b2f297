"""Stands in front of everything: whose request it is, whether it may pass, and what browsers are told.

Pure ASGI, since it sees every request and every piece of every stream.
"""

import hashlib
import itertools
import logging
import os
import re
import secrets
import shutil
import time
from pathlib import Path

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmsvc.accounts import Accounts, Caller
from llmsvc.errors import Forbidden, LlmsvcError, LoginMissing, NotFound, StorageError, TooLarge, TooMany
from llmsvc.http import login
from llmsvc.http.errors import refused
from llmsvc.http.identity import MISSING
from llmsvc.http.metrics import Counts
from llmsvc.logs import REQUEST, event
from llmsvc.rates import Rates

log = logging.getLogger(__name__)

LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
MOST_BYTES, MOST_IMPORTED = 16 * 2**20, 64 * 2**20
"""Of a body; of one of Gradio's, which may be a whole chat."""
UPLOADS, GUEST_UPLOADS = 10, 2
"""Times the largest upload that an owner may send in a minute, chats that are imported included."""
SMALL = 2**20
FREE_BYTES = 500_000_000
"""Of the disk on which uploads arrive, left for everything else."""

_OPEN = {"/health", "/ready", "/login", "/logout", "/gradio_api/startup-events"}  # Gradio calls the last one itself
_ADMINS = {"/metrics", "/docs", "/redoc", "/openapi.json"}
_COUNTED = {f"/v1/{name}" for name in ("chat/completions", "completions", "responses", "messages", "embeddings")}
_COUNTED |= {"/v1/models", "/v1/sessions", "/v1/keys", "/gradio_api", "/login", "/metrics", "/health", "/ready", "/"}
_PAGES = {"/", "/config"}
_LINKED = {*_PAGES, "/login"}
"""Where another site may lead to."""
_GRADIO = {"app_id", "call", "cancel", "heartbeat", "info", "queue", "run", "startup-events", "theme.css"}
_GRADIO |= {"upload", "upload_progress"}
"""What the page and gradio_client use of Gradio's routes. The others hand out files of its cache, whoever uploaded
them, fetch addresses that they are given, edit the program or record the screen."""
_READ = {b"host", b"origin", b"cookie", b"authorization", b"x-api-key", b"content-length", b"transfer-encoding"}
_READ |= {b"x-forwarded-host", b"x-forwarded-proto", b"sec-fetch-site", b"sec-fetch-mode", b"x-request-id"}
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
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
        self,
        app: ASGIApp,
        accounts: Accounts,
        port: int,
        host: str,
        most_uploaded: int,
        uploads: Path,
        counts: Counts,
        log_level: int = logging.DEBUG,
        mcp: bool = False,
    ) -> None:
        """``most_uploaded``: bytes of one upload, which arrives in ``uploads``; ``counts``: where answered requests are
        counted; ``log_level``: at which each is logged; ``mcp``: whether that is offered."""
        self._app, self._accounts, self._counts = app, accounts, counts
        self._login, self._guest = (name.format(port) for name in ("llmsvc-login-{}", "llmsvc-guest-{}"))
        self._hosts = LOOPBACK | {f"[{host}]" if ":" in host else host.lower()}
        self._gradio = _GRADIO | ({"mcp"} if mcp else set())
        self._most_uploaded, self._folder = most_uploaded, uploads
        self._uploads = Rates("bytes of uploads", UPLOADS * most_uploaded, GUEST_UPLOADS * most_uploaded)
        self._log_level, self._run, self._numbers = log_level, secrets.token_hex(4), itertools.count(1)
        self._secret = secrets.token_hex(16)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send) if scope["type"] == "lifespan" else None
        begun, state = time.perf_counter(), scope.setdefault("state", {})
        found = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _READ}
        request = found.get(b"x-request-id", "")
        if not request or not _SANE_ID.fullmatch(request):
            request = f"{self._run}-{next(self._numbers):x}"
        state["request"] = request
        REQUEST.set(request)
        try:
            await self._pass(scope, found, receive, send)
        finally:
            if log.isEnabledFor(self._log_level):
                self._say(scope, time.perf_counter() - begun)

    async def _pass(self, scope: Scope, found: dict[bytes, str], receive: Receive, send: Send) -> None:
        secure = scope["scheme"] == "https" or found.get(b"x-forwarded-proto") == "https"
        made: list[tuple[bytes, bytes]] = []
        try:
            self._check_origin(scope, found)
            cookies = _cookies(found.get(b"cookie", ""))
            guest = cookies.get(self._guest, "")
            if self._accounts.guests and not guest and scope["path"] in _PAGES and scope["method"] == "GET":
                guest = secrets.token_urlsafe(24)
                made = [(b"set-cookie", login.cookie(self._guest, guest, secure).encode())]
            caller = self._accounts.caller(_key(found), cookies.get(self._login, ""), guest)
            scope["state"].update(caller=caller, login=cookies.get(self._login, ""), cookie=self._login, secure=secure)
            self._check_caller(scope["path"], caller)
            if scope["path"].startswith("/gradio_api/"):
                self._check_gradio(scope, caller)
            receive = self._limited(scope["path"], found, receive, caller)
        except LlmsvcError as error:
            html = b"text/html" in dict(scope["headers"]).get(b"accept", b"")
            page = isinstance(error, LoginMissing) and html and scope["path"] == "/"
            response = login.page(status=401) if page else refused(error)
            await response(scope, receive, self._told(scope, send, []))
            return
        told = self._told(scope, send, made)
        try:
            await self._app(scope, receive, told)
            return
        except ClientDisconnect:
            return
        except (TooLarge, TooMany, StorageError) as error:  # it came in pieces
            failure: LlmsvcError = error
        except Exception:  # Gradio's own routes; what the server would log quotes what was sent
            log.exception("a request failed")
            failure = LlmsvcError("This request failed inside the service. Its log says where.")
        if "status" not in scope["state"]:
            await refused(failure)(scope, receive, told)

    def _check_origin(self, scope: Scope, found: dict[bytes, str]) -> None:
        """Against DNS rebinding and requests that another site's page makes. Raises Forbidden."""
        host = found.get(b"host", "").lower()
        if not self._accounts.closed and _name(host) not in self._hosts:  # with a login, another name has no cookie
            raise Forbidden(f'This service does not answer for the host "{host[:80]}". Use its own address.')
        origin = found.get(b"origin")
        ours = {host, found.get(b"x-forwarded-host", host).lower()} if self._accounts.closed else {host}
        foreign = origin is not None and origin.lower().partition("://")[2] not in ours - {""}
        if found.get(b"sec-fetch-site", "none") not in ("none", "same-origin"):
            link = found.get(b"sec-fetch-mode") == "navigate" and scope["method"] == "GET"
            foreign |= not link or scope["path"] not in _LINKED
        if foreign:
            raise Forbidden("Another site's page must not use this service. Open its own page instead.")

    def _check_gradio(self, scope: Scope, caller: Caller | None) -> None:
        """Raises NotFound for a route that is not used here."""
        room = scope["path"].split("/", 3)[2]
        if room not in self._gradio or (room == "mcp" and scope["path"].rstrip("/") != "/gradio_api/mcp"):
            raise NotFound("There is nothing at this address.")
        if room.startswith("upload") and caller:  # who guesses the id of another's upload must not watch it
            own = hashlib.sha256(f"{self._secret} {caller.owner}".encode()).hexdigest()[:16].encode()
            scope["query_string"] = scope["query_string"].replace(b"upload_id=", b"upload_id=" + own)

    def _check_caller(self, path: str, caller: Caller | None) -> None:
        """Raises LoginMissing, or Forbidden for what is the admin's."""
        if path in _OPEN:
            return
        proof = path.startswith("/v1/") and not path.startswith("/v1/sessions/")
        if caller is None or (proof and not caller.proven and (self._accounts.closed or self._accounts.keys_set)):
            raise LoginMissing(MISSING)
        if path in _ADMINS and not caller.admin:
            raise Forbidden("This is for the admin of this service.")

    def _limited(self, path: str, found: dict[bytes, str], receive: Receive, caller: Caller | None) -> Receive:
        """Raises TooLarge, TooMany or StorageError, now or when more was read than may be."""
        gradios = path.startswith("/gradio_api/")
        upload = gradios and path.startswith(("/gradio_api/upload", "/gradio_api/mcp"))
        most = self._most_uploaded if upload else MOST_IMPORTED if gradios else MOST_BYTES
        length = found.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > most:
            raise _too_large(most)
        if caller and (upload or int(length) > SMALL):
            self._take(caller.owner, int(length))
        if b"transfer-encoding" not in found:
            return receive
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += (more := len(message.get("body", b"")))
            if read > most:
                raise _too_large(most)
            if caller and (upload or read > SMALL):
                self._take(caller.owner, more)
            return message

        return counted

    def _take(self, owner: str, length: int) -> None:
        """Raises TooMany or StorageError."""
        if self._accounts.closed:
            self._uploads.take(owner, length)
        if shutil.disk_usage(self._folder).free < FREE_BYTES + length:
            raise StorageError("The disk is nearly full, so nothing more is taken. Free some space first.")

    def _told(self, scope: Scope, send: Send, more: list[tuple[bytes, bytes]]) -> Send:
        """``send``, with what every browser is told; the request is counted."""
        path, state = scope["path"], scope["state"]

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), *_HEADERS, (b"x-request-id", state["request"].encode()), *more]
                if any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers):
                    headers += _PAGE_HEADERS
                message["headers"], state["status"] = headers, message["status"]
                self._counts[(_kind(path), message["status"])] += 1
            await send(message)

        return answer

    def _say(self, scope: Scope, seconds: float) -> None:
        """No path, since it may hold what a user wrote. A status of 0: the client went away."""
        state = scope["state"]
        caller: Caller | None = state.get("caller")
        event(
            log,
            self._log_level,
            "request",
            id=state["request"],
            method=scope["method"],
            path=_kind(scope["path"]),
            status=state.get("status", 0),
            ms=round(1000 * seconds, 1),
            owner=caller.owner if caller else "",
        )


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"This is more than the {most // 2**20:,} MB that may be sent at once. Send less.")


def _kind(path: str) -> str:
    """A path without what is different in each request."""
    if path in _COUNTED:
        return path
    parts = path.split("/", 3)
    return next((kind for kind in ("/".join(parts[:3]), "/".join(parts[:2])) if kind in _COUNTED), "other")


def _key(found: dict[bytes, str]) -> str:
    """The API key that a request brings."""
    kind, _, key = found.get(b"authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else found.get(b"x-api-key", "")


def _cookies(header: str) -> dict[str, str]:
    if "llmsvc-" not in header:
        return {}
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return {name: value for name, _, value in pairs if name.startswith("llmsvc-")}


def _name(host: str) -> str:
    """A host without its port, which may be another one behind a tunnel."""
    name, _, port = host.rpartition(":")
    return name if port.isdecimal() else host
