"""A TCP proxy whose connections can be cut: what a phone that leaves the WLAN does to a page."""

import asyncio
import threading


class Proxy:
    def __init__(self, target: int) -> None:
        self._target, self._loop = target, asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        begun = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self._server = begun.result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Break every connection; new ones go through."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _close(self) -> None:
        self._server.close()
        self._cut()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.current_task())
        try:
            onward = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, onward[1]}
        self._open |= ends
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pipe(reader, onward[1]))
                both.create_task(self._pipe(onward[0], writer))
        finally:
            self._open -= ends
            for end in ends:
                end.transport.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:  # one end is gone, so the other one must not wait for it
            writer.transport.abort()
