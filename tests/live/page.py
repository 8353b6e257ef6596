"""A browser tab's socket, for tests."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.conf import settings
from django.test import Client

from webapp.accounts.models import User
from webapp.runs.models import Run

ORIGIN = b"http://localhost"
Open = Callable[..., Awaitable["Page"]]


class Page:
    """A browser tab's socket: what it sends and what it gets."""

    def __init__(self, communicator: Any) -> None:
        self.communicator = communicator  # asgiref's has no types

    async def say(self, **message: Any) -> None:
        await self.send(text=json.dumps(message))

    async def send(self, **frame: Any) -> None:
        await self.communicator.send_input({"type": "websocket.receive"} | frame)

    async def hear(self, *kinds: str, seconds: float = 8) -> dict[str, Any]:
        """The next message, or the next of these kinds."""
        async with asyncio.timeout(seconds):
            while True:
                output = await self.communicator.receive_output(seconds)
                assert output["type"] == "websocket.send", output
                message: dict[str, Any] = json.loads(output["text"], parse_constant=_refuse)
                if not kinds or message["type"] in kinds:
                    return message

    async def closed(self, seconds: float = 8) -> int:
        """The code it is closed with; messages before that are passed over."""
        async with asyncio.timeout(seconds):
            while True:
                output = await self.communicator.receive_output(seconds)
                if output["type"] == "websocket.close":
                    return int(output["code"])

    async def watch(self, run: Run, from_seq: int = 0) -> dict[str, Any]:
        await self.say(type="subscribe", run=run.id, from_seq=from_seq)
        return await self.hear("subscribed")

    async def leave(self) -> None:
        await self.communicator.send_input({"type": "websocket.disconnect", "code": 1000})
        await self.communicator.wait(10)


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


def cookie_of(user: User) -> str:
    client = Client()
    client.force_login(user)
    return str(client.cookies[settings.SESSION_COOKIE_NAME].value)


def site() -> Any:
    """The ASGI application. Importing it changes the environment, for web processes; not for our children."""
    before = dict(os.environ)
    from webapp.asgi import application

    os.environ.clear()
    os.environ.update(before)
    return application


async def open_page(user: User | None, *, origin: bytes | None = ORIGIN, cookie: str | None = None) -> Page:
    """A socket against the whole ASGI application, as a browser opens it. Raises PermissionError."""
    headers = [(b"host", b"localhost")]
    if origin is not None:
        headers.append((b"origin", origin))
    if user is not None:
        cookie = await sync_to_async(cookie_of)(user)
    if cookie is not None:
        headers.append((b"cookie", f"{settings.SESSION_COOKIE_NAME}={cookie}".encode()))
    scope = {"type": "websocket", "path": "/ws/v1", "query_string": b"", "headers": headers}
    communicator: Any = ApplicationCommunicator(site(), scope | {"subprotocols": []})
    await communicator.send_input({"type": "websocket.connect"})
    if (await communicator.receive_output(10))["type"] != "websocket.accept":
        raise PermissionError
    return Page(communicator)
