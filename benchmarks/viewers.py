"""Browser tabs without a browser: log in, follow a run, give back what comes. Django must be set up."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import websockets
from asgiref.sync import sync_to_async
from django.conf import settings
from django.test import Client

from webapp.accounts.models import User

TCP_ESTABLISHED = 1  # linux/tcp_states.h
ATTEMPTS_BEFORE_POLLING, POLL_SECONDS = 5, 8  # static/js/live
ENDED = {"succeeded", "stopped", "failed", "cancelled"}
_FRAME = re.compile(r'\{"type":"frame","run":\d+,"first_seq":(\d+),"last_seq":(\d+),')


def cookie() -> str:
    """Of a session of the user `bench`."""
    client = Client()
    client.force_login(User.objects.get(username="bench"))
    return str(client.cookies[settings.SESSION_COOKIE_NAME].value)


async def follow(run_id: int, port: int, *, from_seq: int = 0) -> AsyncIterator[dict[str, Any]]:
    """Frames of a run until it has ended. Raises AssertionError when a frame leaves a gap."""
    headers = {"Cookie": f"{settings.SESSION_COOKIE_NAME}={await sync_to_async(cookie)()}"}
    seen = from_seq
    async with _connection(headers, port) as socket:
        await socket.send(json.dumps({"type": "subscribe", "run": run_id, "from_seq": from_seq}))
        async for text in socket:
            message = json.loads(text)
            if message["type"] == "ping":
                await socket.send('{"type":"pong"}')
            elif message["type"] == "frame":
                assert message["first_seq"] == seen + 1, (message["first_seq"], seen)
                seen = message["last_seq"]
                yield message
            if "state" in message and message["state"]["status"] in ENDED:
                return


def _connection(headers: dict[str, str], port: int) -> Any:
    return websockets.connect(
        f"ws://127.0.0.1:{port}/ws/v1",
        additional_headers=headers,
        origin=f"http://127.0.0.1:{port}",  # type: ignore[arg-type]  # a plain string
        max_size=None,
        open_timeout=60,
    )


@dataclass(slots=True)
class Viewer:
    """One that reads all it is sent, and looks only at the numbers: many share two cores with the site.

    `received`: (last seq, when) of each frame. `gaps`, `repeats`: frames that do not follow the one before.
    `errors`: answers of 500 and above to its asking for a connection.
    """

    received: list[tuple[int, float]] = field(default_factory=list)
    gaps: int = 0
    repeats: int = 0
    resyncs: int = 0
    cursor: int | None = None
    is_open: bool = False
    errors: int = 0

    async def stay(self, run_id: int, port: int, session: str, from_seq: int) -> None:
        """Watch, and come back after every loss when a page does (static/js/live/socket.js, session.js)."""
        failures, self.cursor = 0, from_seq
        while True:
            try:
                await self.watch(run_id, port, session, self.cursor)
                return
            except websockets.InvalidStatus as refused:
                self.errors += refused.response.status_code >= 500
            except (OSError, websockets.WebSocketException):
                pass  # the site is away
            failures = 0 if self.is_open else failures + 1
            self.is_open = False
            wait = min(15, 0.5 * 2**failures) * random.uniform(0.5, 1.5)  # noqa: S311
            if failures >= ATTEMPTS_BEFORE_POLLING - 1:  # a poll that is answered hurries the socket
                wait = min(wait, POLL_SECONDS * random.uniform(0.75, 1) + random.random())  # noqa: S311
            await asyncio.sleep(wait)

    async def watch(self, run_id: int, port: int, session: str, from_seq: int) -> None:
        """Until the run has ended."""
        self.cursor = from_seq
        async with _connection({"Cookie": f"{settings.SESSION_COOKIE_NAME}={session}"}, port) as link:
            await link.send(json.dumps({"type": "subscribe", "run": run_id, "from_seq": from_seq}))
            self.is_open = True
            async for text in link:
                now = time.time()
                if found := _FRAME.match(text):
                    first, last = int(found[1]), int(found[2])
                    self.gaps += first > self.cursor + 1
                    self.repeats += first <= self.cursor
                    self.cursor = last
                    self.received.append((last, now))
                elif text.startswith('{"type":"ping"'):
                    await link.send('{"type":"pong"}')
                elif text.startswith('{"type":"resync"'):
                    self.resyncs += 1
                    self.cursor = int(json.loads(text)["last_seq"])
                # The state stands at a frame's end.
                if '"status":"stopped"' in text[-1500:]:
                    return


async def hang(run_id: int, port: int, session: str, *, bytes_per_second: int, until: float) -> int:
    """A viewer that takes nothing (0), or too little, until `until`; dropped, it comes again. How often."""
    times = 0
    while time.monotonic() < until:
        times += 1
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("127.0.0.1", port))
        head = [
            "GET /ws/v1 HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            f"Origin: http://127.0.0.1:{port}",
            f"Cookie: {settings.SESSION_COOKIE_NAME}={session}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        ]
        link.sendall("\r\n".join([*head, "", ""]).encode())
        await asyncio.sleep(0.5)
        link.setblocking(False)
        link.send(_masked({"type": "subscribe", "run": run_id, "from_seq": 0}))
        asked = time.monotonic()
        while time.monotonic() < until and _is_open(link):
            await asyncio.sleep(0.5)
            if not bytes_per_second:
                continue
            try:
                link.recv(bytes_per_second // 2)
                if time.monotonic() - asked > 10:  # it reads too slowly to know when it is asked
                    asked = time.monotonic()
                    link.send(_masked({"type": "pong"}))
            except BlockingIOError:
                continue
            except OSError:
                break
        link.close()
    return times


def _masked(message: dict[str, Any]) -> bytes:
    """A text frame with a mask of zeros."""
    payload = json.dumps(message).encode()
    return bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload


def _is_open(link: socket.socket) -> bool:
    """Whether the other side has not closed it, without reading."""
    return link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_ESTABLISHED
