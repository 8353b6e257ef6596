"""A network in user space between two parts of the system: it can be cut, stopped without closing, made slow,
and cut just between a request and its answer. All proxies live on one event loop in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

CHUNK = 64 * 1024
Address = Path | int  # a unix socket, or a port of 127.0.0.1
T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        # Connections break all the time; what is cancelled at the end is no error either.
        self.loop.set_exception_handler(lambda _loop, _context: None)
        self._thread = threading.Thread(target=self.loop.run_forever, name="campaign-loop", daemon=True)
        self._thread.start()

    def do(self, what: Coroutine[Any, Any, T], seconds: float = 20) -> T:
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(seconds)

    def start(self, what: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(what, self.loop)

    def end(self) -> None:
        async def cancel() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        with contextlib.suppress(TimeoutError):
            self.do(cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)


class Proxy:
    """Forwards connections from `here` to `there`. Change its fields from any thread."""

    def __init__(self, loop: Loop, here: Address, there: Address) -> None:
        self.here, self.there = here, there
        self.is_stalled = False  # connections stay open, nothing passes
        self.bytes_per_second = 0  # towards the client; 0: as fast as it goes
        self.cut_after = b""  # a request with these bytes is passed on; its answer is not
        self.cuts = 0
        self._refuses = False
        self._loop = loop
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        loop.do(self._open())

    async def _open(self) -> None:
        if isinstance(self.here, int):
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.here)
        else:
            self.here.unlink(missing_ok=True)
            self._server = await asyncio.start_unix_server(self._serve, self.here)

    @property
    def port(self) -> int:
        """Where it listens, if that is a port."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        """Break every connection, and let none through until `mend`."""
        self._refuses = True
        self._loop.do(self._break())

    def mend(self) -> None:
        """As on the first day. What was stalled may be dead on the other side, and finds out by itself."""
        self._refuses = self.is_stalled = False
        self.bytes_per_second = 0
        self.cut_after = b""

    async def _break(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        try:
            if isinstance(self.there, int):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.there)
            else:
                up_reader, up_writer = await asyncio.open_unix_connection(self.there)
        except OSError:
            writer.transport.abort()
            return
        one = _Connection(self, writer, up_writer)
        self._writers |= {writer, up_writer}
        try:
            await asyncio.gather(
                one.pump(reader, up_writer, is_request=True), one.pump(up_reader, writer, is_request=False)
            )
        finally:
            self._writers -= {writer, up_writer}
            for each in (writer, up_writer):
                each.transport.abort() if one.is_dead else each.close()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._break()


class _Connection:
    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.proxy, self.client, self.server = proxy, client, server
        self.is_dead = False

    async def pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_request: bool
    ) -> None:
        proxy = self.proxy
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                while proxy.is_stalled and not self.is_dead:  # noqa: ASYNC110 (set by another thread)
                    await asyncio.sleep(0.05)
                if self.is_dead:
                    return
                if is_request and proxy.cut_after and proxy.cut_after in data:
                    proxy.cuts += 1
                    self.is_dead = True
                    writer.write(data)
                    await writer.drain()
                    await asyncio.sleep(0.1)  # the server works on it, and nobody hears the answer
                    for each in (self.client, self.server):
                        each.transport.abort()
                    return
                if not is_request and proxy.bytes_per_second:
                    await self._slowly(data, writer)
                    continue
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            if writer.can_write_eof():
                writer.write_eof()

    async def _slowly(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        while data and not self.is_dead:
            rate = self.proxy.bytes_per_second or CHUNK * 10
            part, data = data[: max(rate // 10, 1)], data[max(rate // 10, 1) :]
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.1)
