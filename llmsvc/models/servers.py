"""The other servers whose models are offered here: added and removed by the admin, watched, and told to the pool."""

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import httpx

from llmsvc.errors import BadRequest, LlmsvcError, NotFound, StorageError
from llmsvc.models.catalogue import REMOTE
from llmsvc.models.pool import ModelPool
from llmsvc.models.pooled import PooledModel
from llmsvc.models.remote import follow, remote_model
from llmsvc.models.server import Server, address
from llmsvc.store.rows import Row, Rows

CONNECT_SECONDS = 5.0

Result = TypeVar("Result")


class Servers:
    """Safe from any thread. All talk with servers is on one event loop, in a thread that begins with the first one.

    The same model on several servers is one model of the pool.
    """

    def __init__(self, rows: Rows, pool: ModelPool, given: Sequence[str] = ()) -> None:
        """``rows``: address as id, key, and models as last known. ``given``: addresses from the command line.

        Nobody is asked before ``start``. Raises BadRequest for an address that is none.
        """
        self._rows, self._pool = rows, pool
        self._servers: dict[str, Server] = {}
        self._models: dict[str, PooledModel] = {}
        self._given = dict(address(url) for url in given)
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        for row in rows.all():
            self._servers[row["id"]] = self._server(row["id"], row["key"], row["models"])
        for url, key in self._given.items():
            if key or url not in self._servers:
                self._servers[url] = self._server(url, key, {})
        self._align()

    def start(self) -> None:
        """Look at every server; those that do not answer are looked at until they do."""
        for server in list(self._servers.values()):
            self._begin(self._first_look(server))

    def list(self) -> list[Row]:
        """The rows of ``/remote_list``: without keys."""
        with self._lock:
            return [{**server.row(), "flag": server.url in self._given} for server in self._servers.values()]

    async def add(self, url: str, key: str = "") -> Row:
        """Add a server that answers, or change its key; gives its row. Raises BadRequest or Unavailable."""
        url, key = address(url, key)
        server = self._server(url, key, {})
        await asyncio.wrap_future(self._begin(server.look()))
        with self._lock:
            self._rows.put({"id": url, "key": key, "models": server.models})
            old, self._servers[url] = self._servers.get(url), server
        if old is not None:
            self._call(old.forget)
        self._align()
        return server.row()

    def remove(self, url: str) -> Row:
        """Ask it no more; what it alone has ends with it. Raises BadRequest or NotFound."""
        url, _ = address(url)
        with self._lock:
            if url in self._given:
                raise BadRequest(f"{url} was given with --remote. Start the service without that to remove it.")
            server = self._servers.pop(url, None)
            if server is None:
                raise NotFound(f"There is no server {url} in the list.")
            self._rows.remove(url)
        self._call(server.forget)
        self._align()
        return {"url": url}

    def close(self) -> None:
        """End every answer and the thread."""
        with self._lock:
            loop, self._loop = self._loop, None
            self._servers = {}
        self._align()
        if loop is not None:
            asyncio.run_coroutine_threadsafe(self._finish(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    # Inside

    def _server(self, url: str, key: str, models: dict[str, int]) -> Server:
        self._running_loop()
        return Server(url, key, self._client, self._align, models)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                # Nothing of ours goes along: no cookies, no .netrc, no redirects. A connection for each request: one
                # that was kept may be dead, and an answer takes longer than to connect.
                self._client = httpx.AsyncClient(
                    verify=ssl.create_default_context(),
                    trust_env=False,
                    follow_redirects=False,
                    timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
                    cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
                )
                self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
                self._thread.start()
            return self._loop

    def _begin(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        return asyncio.run_coroutine_threadsafe(work, self._running_loop())

    def _call(self, function: Callable[[], None]) -> None:
        self._running_loop().call_soon_threadsafe(function)

    async def _first_look(self, server: Server) -> None:
        try:
            await server.look()
        except LlmsvcError as error:
            server.fail(error)

    async def _finish(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def _align(self) -> None:
        """Make the store, the catalogue and the pool have what the servers have."""
        with self._lock:
            found: dict[str, list[Server]] = {}
            for server in self._servers.values():
                self._remember(server)
                for name in server.models:
                    found.setdefault(f"{REMOTE}{name}", []).append(server)
            for model_id in set(self._models) - set(found):
                del self._models[model_id]
                self._pool.leave(model_id)
            for model_id, servers in found.items():
                pooled = self._models.get(model_id) or remote_model(model_id, self._running_loop())
                follow(pooled, servers)
                if model_id not in self._models:
                    self._models[model_id] = pooled
                    self._pool.join(pooled)
            self._pool.catalogue.remote = {id_: pooled.engine.window for id_, pooled in self._models.items()}

    def _remember(self, server: Server) -> None:
        """So that its models are there after a start at which it does not answer."""
        row = self._rows.get(server.url)
        if row and row["models"] != server.models:
            with suppress(StorageError):  # a full disk: they are asked for again at the next start
                self._rows.put({**row, "models": server.models})
