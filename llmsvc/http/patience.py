"""How long a connection may take to say what it wants.

uvicorn waits for ever for the rest of a request, and takes headers of any size: a client that sends them byte by byte,
or without an end, holds a connection and memory for as long as it likes.
"""

import asyncio
from typing import ClassVar

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEADERS = 2**16
"""Bytes before a body."""
LEAST_BYTES = 2**14
"""Of a body in each period; a line of a few KB/s manages it."""


def install() -> None:
    """Every server of this process serves by it."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:PatientProtocol"


class PatientProtocol(HttpToolsProtocol):
    """Ends connections that say nothing for ``seconds``, or too little of what they began to say."""

    seconds: ClassVar[float] = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._unread = self._came = 0
        self._in_body = False
        self._patience: asyncio.TimerHandle | None = None
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._came += len(data)
        if not self._in_body:
            self._unread += len(data)
        super().data_received(data)
        if self._unread > MOST_HEADERS and not self._in_body and not self.transport.is_closing():
            self.send_400_response("These headers are too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._patience is None:
            self._wait()

    def on_headers_complete(self) -> None:
        self._unread, self._in_body = 0, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._unread, self._in_body = 0, False
        self._rest()
        super().on_message_complete()

    def _wait(self) -> None:
        self._came = 0
        self._patience = self.loop.call_later(self.seconds, self._lost)

    def _rest(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lost(self) -> None:
        """A period is over. Nothing is held against a client whose body was not asked for meanwhile."""
        slow = not self._in_body or (self._came < LEAST_BYTES and not self.flow.read_paused)
        if slow and not self.transport.is_closing():
            self._patience = None
            self.transport.close()
        else:
            self._wait()
