"""A server that has little patience, with clients that try it."""

import socket
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest
import uvicorn

from llmsvc.http.patience import PatientProtocol


class Hasty(PatientProtocol):
    seconds: ClassVar[float] = 0.3


async def answer(scope, receive, send) -> None:
    """With how much it was sent."""
    if scope["type"] != "http":
        return
    read, more = 0, True
    while more:
        message = await receive()
        read, more = read + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d bytes" % read})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(answer, http=Hasty, log_level="error", timeout_keep_alive=60))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: ",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nhalf of it",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
    ],
)
def test_who_says_no_more_is_hung_up_on(port, begin) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(begin)
        assert client.recv(1000) in (b"", b"HTTP/1.1 500 Internal Server Error")


def test_headers_have_an_end(port) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2**17)
        assert client.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_others_are_served(port, monkeypatch) -> None:
    monkeypatch.setattr(Hasty, "seconds", 10)
    body = b"x" * 2**22
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        for _ in range(3):
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            heard = b""
            while b" bytes" not in heard:
                more = client.recv(1000)
                assert more
                heard += more
            assert b"%d bytes" % len(body) in heard
