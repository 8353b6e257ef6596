"""Browser tabs without a browser: log in, follow a run, give back what comes. Django must be set up."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import websockets
from asgiref.sync import sync_to_async
from django.conf import settings
from django.test import Client

from webapp.accounts.models import User

ENDED = {"succeeded", "stopped", "failed", "cancelled"}


def cookie() -> str:
    """Of a session of the user `bench`."""
    client = Client()
    client.force_login(User.objects.get(username="bench"))
    return str(client.cookies[settings.SESSION_COOKIE_NAME].value)


async def follow(run_id: int, port: int, *, from_seq: int = 0) -> AsyncIterator[dict[str, Any]]:
    """Frames of a run until it has ended. Raises AssertionError when a frame leaves a gap."""
    headers = {"Cookie": f"{settings.SESSION_COOKIE_NAME}={await sync_to_async(cookie)()}"}
    address = f"ws://127.0.0.1:{port}/ws/v1"
    origin = f"http://127.0.0.1:{port}"
    seen = from_seq
    async with websockets.connect(
        address,
        additional_headers=headers,
        origin=origin,
        max_size=None,  # type: ignore[arg-type]  # a plain string
    ) as socket:
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
