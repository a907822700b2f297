"""Another server with an OpenAI API: what it has, whether it answers. https://platform.openai.com/docs/api-reference"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from itertools import chain, repeat
from typing import Any
from urllib.parse import urlsplit

import httpx

from llmsvc.errors import BadRequest, Busy, LlmsvcError, Unavailable
from llmsvc.models.catalogue import REMOTE

LOOK_SECONDS = 10.0
"""How long a server may take to say what it has."""
UNKNOWN_WINDOW = 8192
"""Tokens that a model is taken to read where its server does not say."""
_PAUSES = (1, 2, 4, 8, 15, 30, 60)
"""Seconds between looks at a server that does not answer; the last one for ever."""
_MOST_BYTES = 4_000_000


class Server:
    """Lives on the event loop of ``Servers``; what it says of itself may be read from any thread."""

    def __init__(
        self, url: str, key: str, client: httpx.AsyncClient, changed: Callable[[], None], models: dict[str, int]
    ) -> None:
        """``changed`` is called when it begins or ceases to answer, or has other models; ``models``: as last known."""
        self.url = url
        self.models = models
        """By id, how many tokens each reads; 0 where it does not say."""
        self.error = ""
        """Why it cannot be used now, for the admin."""
        self.running = 0
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client, self._changed = client, changed
        self._recovery: asyncio.Task[None] | None = None

    def row(self) -> dict[str, Any]:
        """The row of ``/remote_list``, without the key."""
        state = "unreachable" if self.error else "ready"
        seen = {"models": sorted(self.models), "running": self.running, "error": self.error}
        return {"url": self.url, "state": state, "key": bool(self.headers), **seen}

    async def look(self) -> None:
        """Ask what it has. Raises Unavailable or BadRequest with what to do about it."""
        try:
            async with asyncio.timeout(LOOK_SECONDS), self._ask("GET", "/v1/models") as response:
                if response.status_code != 200:
                    raise await self._refusal(response)
                models = _models(await _body(response))
        except (httpx.HTTPError, TimeoutError) as error:
            raise self._unreachable(error) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadRequest(f"{self.url}/v1/models is no list of models. Is it a server with an OpenAI API?") from None
        if not models:
            raise BadRequest(f"{self.url} has no model. Load one there, then add the server again.")
        if (self.models, self.error) != (models, ""):
            self.models, self.error = models, ""
            self._changed()

    def fail(self, error: Exception) -> None:
        """It does not answer: look again until it does."""
        self.error = str(self._unreachable(error))
        if self._recovery is None or self._recovery.done():
            self._recovery = asyncio.get_running_loop().create_task(self._recover())
        self._changed()

    def forget(self) -> None:
        """Look no more."""
        if self._recovery is not None:
            self._recovery.cancel()

    @asynccontextmanager
    async def answer(self, path: str, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of an answer; leaving ends it there too. Raises httpx.HTTPError, or LlmsvcError for a refusal."""
        self.running += 1
        try:
            async with self._ask("POST", path, json={**body, "stream": True}) as response:
                if response.status_code != 200:
                    raise await self._refusal(response)
                if self.error:
                    self.error = ""
                    self._changed()
                async with aclosing(_lines(response)) as lines:
                    yield lines
        finally:
            self.running -= 1

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        return self._client.stream(method, self.url + path, headers=self.headers, **more)

    async def _recover(self) -> None:
        for pause in chain(_PAUSES, repeat(_PAUSES[-1])):
            await asyncio.sleep(pause)
            try:
                await self.look()
            except LlmsvcError as error:
                if str(error) != self.error:
                    self.error = str(error)
                    self._changed()
            else:
                return

    def _unreachable(self, error: Exception) -> LlmsvcError:
        if isinstance(error, LlmsvcError):
            return error
        why = "it took too long" if isinstance(error, TimeoutError | httpx.TimeoutException) else str(error).strip(". ")
        return Unavailable(
            f"{self.url} does not answer ({why or type(error).__name__}). Check the address, and that the server runs "
            "there and can be reached from this machine."
        )

    async def _refusal(self, response: httpx.Response) -> LlmsvcError:
        """What a status other than 200 means."""
        status = response.status_code
        if response.is_redirect:
            where = response.headers.get("location", "")[:200]
            return Unavailable(f"{self.url} sends on to {where}, which is not followed. Add where it serves itself.")
        if status in (401, 403):
            what = "does not take this API key" if self.headers else "wants an API key"
            return Unavailable(f"{self.url} {what}. Add the server again with the right one.")
        said = said_by(await _body(response))
        if status in (400, 413, 422):
            return BadRequest(f"The model's server refuses this: {said or status}")
        if status in (429, 503):
            return Busy(said or "The model is busy with many other requests. Try again in a moment.")
        told = f" ({said})" if said else ""
        return Unavailable(f"{self.url} answers {status}{told}. Is it a server with an OpenAI API?")


def address(url: str, key: str = "") -> tuple[str, str]:
    """The address without ``/v1``, and the key, which may stand in it (``http://:KEY@host``). Raises BadRequest."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        httpx.URL(url)  # is stricter with names
    except (ValueError, httpx.InvalidURL):
        host, port = None, None
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment or not url.isprintable():
        raise BadRequest(f'"{url[:120]}" is no address of a server. Give one like http://10.0.0.5:8000.')
    place = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/").removesuffix("/v1")
    key = (key or parts.password or parts.username or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BadRequest("This API key has characters that no key has. Copy it again.")
    return f"{parts.scheme}://{place}{f':{port}' if port else ''}{path}", key


def said_by(body: bytes) -> str:
    """The text of an error, as OpenAI, vLLM and others write it; "" when there is none."""
    try:
        found = json.loads(body)
        found = found.get("error", found)
        text = found if isinstance(found, str) else found.get("message") or found.get("detail")
    except (ValueError, AttributeError):
        return ""
    return " ".join(text.split())[:300] if isinstance(text, str) else ""


def _models(body: bytes) -> dict[str, int]:
    """What it has itself: to go on with what it has from others could lead round in a circle."""
    rows = json.loads(body)["data"]
    return {row["id"]: _window(row) for row in rows if row["id"].isprintable() and not row["id"].startswith(REMOTE)}


def _window(row: dict[str, Any]) -> int:
    """As llmsvc, vLLM and SGLang, and llama.cpp tell it."""
    meta = row.get("meta") or {}
    return int(row.get("context_length") or row.get("max_model_len") or meta.get("n_ctx") or 0)


async def _body(response: httpx.Response) -> bytes:
    body = b""
    async for part in response.aiter_bytes():
        body += part
        if len(body) > _MOST_BYTES:
            raise ValueError("too long")
    return body


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """By the line ends of server-sent events; httpx' own also cuts at those that may stand in JSON."""
    held = b""
    async for part in response.aiter_bytes():
        *whole, held = (held + part).split(b"\n")
        for line in whole:
            yield line
