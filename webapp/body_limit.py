"""Refuses large and slow request bodies before Django sees them, by counting bytes: a client may lie about
the length.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from webapp.errors import error_response
from webapp.limits import (
    BODY_SECONDS,
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    MAX_UPLOAD_BYTES,
    UPLOAD_SECONDS,
    UPLOADS_AT_ONCE,
)
from webapp.live.reading import UNREACHABLE

# Where files are uploaded: the only bodies that are larger than others, handed on as they come.
UPLOADS = re.compile(r"/p/[-\w]+/import|/api/v1/projects/[-\w]+/imports")
FORM_BYTES = 10_000  # of an upload, beside the file

Sender = Callable[[dict[str, Any]], Awaitable[int | None]]  # from an ASGI scope to the user's id


class BodyLimit:
    """ASGI middleware. A body has at most 1 MB, so it is gathered here and handed on whole; a file that is
    uploaded may be larger (`MAX_UPLOAD_BYTES`), and must say so before.

    413 as soon as one byte too many was announced or came, 408 when it takes too long. Uploads are taken from
    known users alone (`sender`), one of each at a time and `UPLOADS_AT_ONCE` in all.
    """

    def __init__(
        self, application: Any, sender: Sender
    ) -> None:  # ASGI applications: asgiref's types are too narrow for middleware
        self.application = application
        self._sender = sender
        self._uploading: set[int] = set()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            await _refuse(send, 431, f"The headers are larger than {MAX_HEADER_BYTES:,} bytes.")
            return
        if scope.get("method") == "POST" and UPLOADS.fullmatch(scope.get("path", "")):
            await self._upload(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not announced.isdigit() or len(announced) > 12 or int(announced) > MAX_BODY_BYTES:
            await _refuse(send, 413, f"The body is larger than {MAX_BODY_BYTES:,} bytes.")
            return
        messages: list[dict[str, Any]] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    size += len(message.get("body", b""))
                    if size > MAX_BODY_BYTES:
                        await _refuse(send, 413, f"The body is larger than {MAX_BODY_BYTES:,} bytes.")
                        return
                    messages.append(message)
                    more = message.get("more_body", False)
        except TimeoutError:
            await _refuse(send, 408, f"The body did not arrive within {BODY_SECONDS} seconds.")
            return
        messages.reverse()

        async def replay() -> dict[str, Any]:
            message: dict[str, Any] = messages.pop() if messages else await receive()
            return message

        await self.application(scope, replay, send)

    async def _upload(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Count what comes, and hand it on: Django keeps a large body in a file."""
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if not announced.isdigit():
            await _refuse(send, 411, "An upload must say its length.")
            return
        if len(announced) > 12 or int(announced) > MAX_UPLOAD_BYTES + FORM_BYTES:
            await _refuse(
                send,
                413,
                f"The file is larger than {MAX_UPLOAD_BYTES:,} bytes. Ask an administrator to import it on "
                "the server: manage.py import_trees FILE.",
            )
            return
        try:
            user = await self._sender(scope)
        except UNREACHABLE:
            await _refuse(send, 503, "Who sends this cannot be known now. Try again in a minute.")
            return
        if user is None:
            await _refuse(send, 401, "Log in, or send a token in the header `Authorization: Bearer …`.")
            return
        if user in self._uploading or len(self._uploading) >= UPLOADS_AT_ONCE:
            whose = "Another file of yours is" if user in self._uploading else "Other files are"
            await _refuse(send, 503, f"{whose} being uploaded just now. Try again in a minute.")
            return
        left, until = int(announced), asyncio.get_running_loop().time() + UPLOAD_SECONDS

        async def counted() -> dict[str, Any]:
            nonlocal left
            gone = {"type": "http.disconnect"}
            try:
                async with asyncio.timeout_at(until if left > 0 else None):
                    message: dict[str, Any] = await receive()
            except TimeoutError:
                return gone
            left -= len(message.get("body", b""))
            return message if left >= 0 else gone

        self._uploading.add(user)
        try:
            await self.application(scope, counted, send)
        finally:
            self._uploading.discard(user)


async def _refuse(send: Any, status: int, detail: str) -> None:
    response = error_response(status, detail)
    headers = [(b"content-type", b"application/problem+json"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(response.content)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": response.content})
