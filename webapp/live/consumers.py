"""One WebSocket: who it is, what it watches, how fast it may be spoken to. It knows no tables.

A plain ASGI application: what a client sends is matched against a short list, and never names a function of
ours. Three tasks: one reads, one writes what the feeds have, one tends (ping, silence, rights).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import DatabaseError

from webapp.limits import (
    SOCKET_ASK_SECONDS,
    SOCKET_BAD_MESSAGES,
    SOCKET_FRAMES_PER_SECOND,
    SOCKET_MESSAGE_BYTES,
    SOCKET_PING_SECONDS,
    SOCKET_RECHECK_SECONDS,
    SOCKET_RESYNC_EVENTS,
    SOCKET_SEND_SECONDS,
    SOCKET_SUBSCRIPTIONS,
)
from webapp.live import access, catch_up
from webapp.live.catch_up import encode
from webapp.live.feeds import Hub, ProjectFeed, RunFeed, frame_text
from webapp.live.reading import UNREACHABLE, read

NOT_LOGGED_IN, POLICY, UNSUPPORTED, TOO_LARGE, TRY_LATER, GONE = 4401, 1008, 1003, 1009, 1013, 1001
MAX_ID, MAX_SEQ = 2**63 - 1, 2**53
_SLUG = re.compile(r"[A-Za-z0-9_-]{1,64}")

logger = logging.getLogger(__name__)

# ASGI's own words; asgiref's types for them are unions that no dictionary literal fits.
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class _CloseError(Exception):
    """End the socket with this code."""

    def __init__(self, code: int) -> None:
        self.code = code


class _GoneError(Exception):
    """The client has left."""


class _RefusedError(Exception):
    """A message that is answered with an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class _WatchedRun:
    feed: RunFeed
    cursor: int
    state_number: int = 0


@dataclass(slots=True)
class _WatchedProject:
    feed: ProjectFeed
    seen: int = 0


async def live(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application of `/ws/v1`. The origin was checked before (`webapp.origin`)."""
    if (await receive())["type"] != "websocket.connect":
        return
    await send({"type": "websocket.accept"})
    # Only the key: whose session it is, is asked when something is to be shown, and again and again.
    await LiveSocket(scope["cookies"].get(settings.SESSION_COOKIE_NAME), receive, send).run()


class LiveSocket:
    """From the handshake to the close."""

    def __init__(self, session_key: str | None, receive: Receive, send: Send) -> None:
        self.session_key = session_key
        self._receive = receive
        self._transmit = send
        self._sending = asyncio.Lock()
        self._woken = asyncio.Event()
        self._runs: dict[int, _WatchedRun] = {}
        self._projects: dict[str, _WatchedProject] = {}
        self._bad_in_a_row = 0
        self._heard = time.monotonic()
        self._frame_at = 0.0
        self._is_obeying = False
        self._told_away = False
        self._hub = Hub.here()

    def wake(self) -> None:
        """A feed has something new."""
        self._woken.set()

    async def run(self) -> None:
        self._hub.enter(self)
        self.wake()
        try:
            await self._check_rights()
            async with asyncio.TaskGroup() as group:
                for part in (self._read(), self._write(), self._tend()):
                    group.create_task(part)
        except* _GoneError:
            pass
        except* _CloseError as closing:
            await self._close(_first(closing).code)
        except* DatabaseError:
            logger.exception("A socket is closed: what it watches cannot be read")
            await self._close(TRY_LATER)
        finally:
            for run_id in list(self._runs):
                self._forget_run(run_id)
            for slug in list(self._projects):
                self._forget_project(slug)
            await self._hub.leave(self)

    # Reading

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                raise _GoneError
            text = message.get("text")
            if text is None:
                raise _CloseError(UNSUPPORTED)
            if len(text) > SOCKET_MESSAGE_BYTES or len(text.encode()) > SOCKET_MESSAGE_BYTES:
                raise _CloseError(TOO_LARGE)
            self._is_obeying = True
            try:
                await self._obey(_parse(text))
                self._bad_in_a_row = 0
            except _RefusedError as refused:
                self._bad_in_a_row += 1
                await self._send(encode({"type": "error", "code": refused.code, "message": str(refused)}))
                if self._bad_in_a_row >= SOCKET_BAD_MESSAGES:
                    raise _CloseError(POLICY) from None
            self._heard, self._is_obeying = time.monotonic(), False

    async def _obey(self, message: dict[str, Any]) -> None:
        kind, keys = message.get("type"), message.keys() - {"type"}
        if kind == "pong" and not keys:
            return
        if kind == "subscribe" and "run" in keys and keys <= {"run", "from_seq"}:
            await self._watch_run(_run_id(message["run"]), _cursor(message.get("from_seq", 0)))
        elif kind == "subscribe" and keys == {"project"}:
            await self._watch_project(_slug(message["project"]))
        elif kind == "unsubscribe" and keys == {"run"}:
            self._forget_run(_run_id(message["run"]))
        elif kind == "unsubscribe" and keys == {"project"}:
            self._forget_project(_slug(message["project"]))
        else:
            raise _RefusedError(
                "bad_message",
                "Expected subscribe or unsubscribe with a run (and from_seq) or a project, or pong.",
            )

    async def _watch_run(self, run_id: int, cursor: int) -> None:
        known = self._runs.get(run_id)
        if known is None:
            self._refuse_too_many()
        seen = await self._visible([run_id], [])
        if seen is None:
            raise _CloseError(NOT_LOGGED_IN)
        if run_id not in seen.runs:
            self._forget_run(run_id)
            raise _RefusedError("not_found", f"There is no run {run_id} in your projects.")
        feed = known.feed if known else self._hub.follow_run(run_id, self)
        try:
            await feed.ready.wait()
        except BaseException:
            if known is None:
                self._hub.unfollow(feed, self)
            raise
        # Until it is entered here, the writer does not speak of it: "subscribed" comes first.
        self._runs.pop(run_id, None)
        await self._send(
            encode({"type": "subscribed", "run": run_id, "last_seq": feed.last_seq, "now": time.time()})
        )
        self._runs[run_id] = _WatchedRun(feed, cursor)
        self.wake()

    async def _watch_project(self, slug: str) -> None:
        if slug not in self._projects:
            self._refuse_too_many()
        seen = await self._visible([], [slug])
        if seen is None:
            raise _CloseError(NOT_LOGGED_IN)
        if slug not in seen.projects:
            self._forget_project(slug)
            raise _RefusedError("not_found", f"There is no project {slug} that you are in.")
        await self._send(encode({"type": "subscribed", "project": slug, "now": time.time()}))
        if slug not in self._projects:
            feed = self._hub.follow_project(seen.projects[slug], slug, self)
            self._projects[slug] = _WatchedProject(feed)
        self._projects[slug].seen = 0
        self.wake()

    def _refuse_too_many(self) -> None:
        if len(self._runs) + len(self._projects) >= SOCKET_SUBSCRIPTIONS:
            raise _RefusedError(
                "too_many",
                f"A socket watches at most {SOCKET_SUBSCRIPTIONS} runs and projects. Leave one first.",
            )

    def _forget_run(self, run_id: int) -> None:
        if watched := self._runs.pop(run_id, None):
            self._hub.unfollow(watched.feed, self)

    def _forget_project(self, slug: str) -> None:
        if watched := self._projects.pop(slug, None):
            self._hub.unfollow(watched.feed, self)

    async def _visible(self, run_ids: list[int], slugs: list[str]) -> access.Visible | None:
        """What of these may be seen now. While the database is away it waits, and so does the page."""
        while True:
            await self._hub.database.wait()
            try:
                return await read(access.visible, self.session_key, run_ids, slugs)
            except UNREACHABLE as error:
                self._hub.database.failed(error)
                await asyncio.sleep(SOCKET_ASK_SECONDS)

    # Writing

    async def _write(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            await self._tell_database()
            for run_id in list(self._runs):
                await self._tell_run(run_id)
            for slug in list(self._projects):
                watched = self._projects.get(slug)
                if watched is not None and watched.feed.number > watched.seen:
                    await self._pace()
                    number, text = watched.feed.number, watched.feed.summary(watched.seen)
                    watched.seen = number
                    await self._send(text)

    async def _tell_database(self) -> None:
        is_away = self._hub.database.is_away
        if is_away != self._told_away:
            self._told_away = is_away
            await self._send(encode({"type": "database", "answers": not is_away}))

    async def _tell_run(self, run_id: int) -> None:
        watched = self._runs.get(run_id)
        if watched is None:
            return
        feed = watched.feed
        if feed.is_gone:
            self._forget_run(run_id)
            await self._send_not_found(run_id)
            return
        has_events = watched.cursor != feed.last_seq
        if not has_events and watched.state_number == feed.state_number:
            return
        await self._pace()
        if self._runs.get(run_id) is not watched or feed.state is None:
            return
        # All of this moment: while the message is on its way the feed may go on.
        last_seq, cursor, state = feed.last_seq, watched.cursor, feed.state
        watched.cursor, watched.state_number = last_seq, feed.state_number
        if cursor == last_seq:
            text = f'{{"type":"state","run":{run_id},"state":{state.text}}}'
        elif cursor > last_seq or last_seq - cursor > SOCKET_RESYNC_EVENTS:
            # Also after a restored backup: the page knows events that are not.
            text = encode({"type": "resync", "run": run_id, "last_seq": last_seq})
        else:
            try:
                text = feed.frame(cursor) or await self._own_frame(watched, cursor)
            except UNREACHABLE as error:
                watched.cursor = cursor
                self._hub.database.failed(error)
                asyncio.get_running_loop().call_later(SOCKET_ASK_SECONDS, self.wake)
                return
        await self._send(text)

    async def _own_frame(self, watched: _WatchedRun, cursor: int) -> str:
        """For a cursor that is older than what the feed keeps."""
        run_id = watched.feed.run_id
        news = await read(catch_up.since, run_id, cursor, SOCKET_RESYNC_EVENTS)
        if news is None or news.is_behind:
            return encode({"type": "resync", "run": run_id, "last_seq": watched.cursor})
        watched.cursor = news.last_seq
        return frame_text(run_id, cursor, news.last_seq, [text for _, text in news.events], news.state)

    async def _pace(self) -> None:
        """Not more than so many frames a second; what comes meanwhile is gathered."""
        wait = self._frame_at + 1 / SOCKET_FRAMES_PER_SECOND - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        self._frame_at = time.monotonic()

    async def _send(self, text: str) -> None:
        try:
            async with asyncio.timeout(SOCKET_SEND_SECONDS), self._sending:
                await self._transmit({"type": "websocket.send", "text": text})
        except TimeoutError:
            raise _CloseError(TRY_LATER) from None
        except (OSError, RuntimeError) as error:
            # The server's way of saying that the connection broke meanwhile.
            raise _GoneError from error

    async def _send_not_found(self, run_id: int) -> None:
        message = f"There is no run {run_id} in your projects any more."
        await self._send(encode({"type": "error", "code": "not_found", "message": message}))

    async def _close(self, code: int) -> None:
        """A reader that takes nothing cannot be told either; then the server drops the connection."""
        try:
            async with asyncio.timeout(1.0):
                await self._transmit({"type": "websocket.close", "code": code})
        except (TimeoutError, OSError, RuntimeError):
            logger.info("A socket was dropped: its reader takes nothing.")

    # Tending

    async def _tend(self) -> None:
        ping_at = check_at = time.monotonic()
        while True:
            await asyncio.sleep(min(SOCKET_PING_SECONDS, SOCKET_RECHECK_SECONDS) / 10)
            now = time.monotonic()
            if self._is_obeying:
                # It may wait for the database, and messages for it, pongs among them.
                self._heard = now
            if now - self._heard > 2 * SOCKET_PING_SECONDS:
                raise _CloseError(GONE)
            if now - ping_at >= SOCKET_PING_SECONDS:
                ping_at = now
                await self._send(encode({"type": "ping", "now": time.time()}))
            if now - check_at >= SOCKET_RECHECK_SECONDS:
                check_at = now
                await self._check_rights()

    async def _check_rights(self) -> None:
        """The session may have ended and the role gone since."""
        runs, slugs = list(self._runs), list(self._projects)
        if self._hub.database.is_away:
            return
        try:
            seen = await read(access.visible, self.session_key, runs, slugs)
        except UNREACHABLE as error:
            # Nothing can be read now, so nothing can be shown to anyone either.
            self._hub.database.failed(error)
            return
        if seen is None:
            raise _CloseError(NOT_LOGGED_IN)
        for run_id in set(runs) - seen.runs.keys():
            if run_id in self._runs:
                self._forget_run(run_id)
                await self._send_not_found(run_id)
        for slug in set(slugs) - seen.projects.keys():
            self._forget_project(slug)


def _parse(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise _RefusedError("bad_message", "A message is one JSON object.")
    return message


def _run_id(value: Any) -> int:
    """`Any`, as in the next two: whatever JSON may hold."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_ID:
        raise _RefusedError("bad_id", "A run is named by its number.")
    return value


def _cursor(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_SEQ:
        raise _RefusedError("bad_cursor", f"from_seq is a whole number from 0 to {MAX_SEQ}.")
    return value


def _slug(value: Any) -> str:
    if not isinstance(value, str) or not _SLUG.fullmatch(value):
        raise _RefusedError("bad_id", "A project is named by its slug: letters, digits, - and _.")
    return value


def _first(group: BaseExceptionGroup[_CloseError]) -> _CloseError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    if not isinstance(found, _CloseError):
        raise found
    return found
