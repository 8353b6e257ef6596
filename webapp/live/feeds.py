"""What a web process knows of the runs and projects that its sockets watch: read once, shown to all of them.

A feed reads when it is poked and every five seconds, keeps the newest events encoded, and wakes its
followers. A follower keeps only a cursor, so a slow one costs nothing and twenty cost little more than one.
Everything here lives on one event loop; no locks.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from django.db import DatabaseError

from webapp.limits import (
    SOCKET_ASK_PATIENCE_SECONDS,
    SOCKET_ASK_SECONDS,
    SOCKET_FRAMES_PER_SECOND,
    SOCKET_POLL_SECONDS,
    SOCKET_RESYNC_EVENTS,
    SOCKET_SUMMARIES_PER_SECOND,
    SOCKET_TAIL_BYTES,
)
from webapp.live import catch_up
from webapp.live.catch_up import State, encode
from webapp.live.listener import Listener
from webapp.live.poke import Poke
from webapp.live.reading import UNREACHABLE, ping, read

FIRST_SUMMARY_RUNS = 50

logger = logging.getLogger(__name__)


class Follower(Protocol):
    """A socket, as a feed sees it."""

    def wake(self) -> None:
        """There is something new to look at. Must return at once."""


class Database:
    """Whether the database answers, as this process sees it. When it is in doubt, one task asks for all."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._answers = asyncio.Event()
        self._answers.set()
        self._asking: asyncio.Task[None] | None = None

    @property
    def is_away(self) -> bool:
        return not self._answers.is_set()

    async def wait(self) -> None:
        """Returns at once while it answers."""
        await self._answers.wait()

    def failed(self, error: BaseException) -> None:
        """One read failed: it may have been that one alone."""
        logger.info("A read for sockets failed: %s", error)
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask(), name="asks the database")

    def lost(self, error: BaseException) -> None:
        """No connection can be had: everything waits until one can."""
        if not self.is_away:
            logger.warning("The database does not answer: %s", error)
            self._answers.clear()
            self._tell()
        self.failed(error)

    def end(self) -> None:
        """Nobody is left to tell."""
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        self._answers.set()

    async def _ask(self) -> None:
        while True:
            try:
                async with asyncio.timeout(SOCKET_ASK_PATIENCE_SECONDS):
                    await read(ping)
                break
            except UNREACHABLE as error:
                self.lost(error)
            except DatabaseError:  # it answers, though oddly: tables are being changed, or a defect of ours
                logger.exception("The database answers with an error")
                break
            await asyncio.sleep(SOCKET_ASK_SECONDS * (0.5 + random.random()))  # noqa: S311 (jitter)
        self._asking = None
        if self.is_away:
            logger.info("The database answers again.")
            self._answers.set()
            self._tell()


class Feed:
    """Reads again and again while somebody follows."""

    min_seconds: float

    def __init__(self, name: str, database: Database) -> None:
        self.name = name
        self.database = database
        self.followers: set[Follower] = set()
        self.ready = asyncio.Event()
        self._poked = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=name)

    def poke(self) -> None:
        self._poked.set()

    def end(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            await self.database.wait()
            started = time.monotonic()
            try:
                changed = await self._read()
                self.ready.set()
            except UNREACHABLE as error:
                self.database.failed(error)
                await asyncio.sleep(SOCKET_ASK_SECONDS)
                continue
            except DatabaseError:  # a defect of ours; others may still read
                changed = False
                logger.exception("%s cannot be read", self.name)
            if changed:
                for follower in self.followers:
                    follower.wake()
            # Gather what comes meanwhile.
            await asyncio.sleep(max(0.0, self.min_seconds - (time.monotonic() - started)))
            try:
                async with asyncio.timeout(SOCKET_POLL_SECONDS):
                    await self._poked.wait()
            except TimeoutError:
                self._looks_by_itself()
            self._poked.clear()

    async def _read(self) -> bool:
        """Read what is new. Returns whether the followers should know."""
        raise NotImplementedError

    def _looks_by_itself(self) -> None:
        """The next read follows no poke."""


class RunFeed(Feed):
    """One run: events with `start < seq <= last_seq` are here, what is older a follower reads itself."""

    min_seconds = 1 / SOCKET_FRAMES_PER_SECOND

    def __init__(self, run_id: int, database: Database) -> None:
        self.run_id = run_id
        self.start = self.last_seq = 0
        self.state: State | None = None
        self.state_number = 0  # grows with every state worth sending
        self.is_gone = False
        self._tail: deque[tuple[int, str]] = deque()
        self._tail_letters = 0
        self._frames: dict[int, str] = {}
        self._state_at = 0.0
        super().__init__(f"run {run_id}", database)

    async def _read(self) -> bool:
        cursor = self.last_seq if self.state is not None else None
        news = await read(catch_up.since, self.run_id, cursor, SOCKET_RESYNC_EVENTS)
        if news is None:
            was_gone, self.is_gone = self.is_gone, True
            return not was_gone
        if cursor is None or news.is_behind or news.last_seq < self.last_seq:
            # Just begun, far behind, or the database was restored from a backup: the tail begins anew.
            self._tail.clear()
            self._tail_letters = 0
            self.start = news.last_seq
            has_events = cursor is not None
        else:
            self._keep(news.events)
            has_events = bool(news.events)
        self.last_seq = news.last_seq
        is_new_state = self._show(news.state)
        if has_events or is_new_state:
            self._frames.clear()
        return has_events or is_new_state

    def _keep(self, events: Sequence[tuple[int, str]]) -> None:
        self._tail.extend(events)
        self._tail_letters += sum(len(text) for _, text in events)
        while len(self._tail) > SOCKET_RESYNC_EVENTS or (
            self._tail_letters > SOCKET_TAIL_BYTES and len(self._tail) > 1
        ):
            seq, text = self._tail.popleft()
            self._tail_letters -= len(text)
            self.start = seq

    def _show(self, state: State) -> bool:
        """Whether the state is worth telling: changed, or held by a worker whose heartbeat people watch."""
        before, self.state = self.state, state
        now = time.monotonic()
        due = state.is_leased and now - self._state_at >= SOCKET_POLL_SECONDS
        if before is not None and before.core == state.core and not due:
            return False
        self._state_at = now
        self.state_number += 1
        return True

    def frame(self, cursor: int) -> str | None:
        """The events after `cursor` with the state, as one message. None: they are not all here."""
        if self.state is None or not self.start <= cursor < self.last_seq:
            return None
        if cursor not in self._frames:
            texts = [text for seq, text in self._tail if seq > cursor]
            self._frames[cursor] = frame_text(self.run_id, cursor, self.last_seq, texts, self.state)
        return self._frames[cursor]


def frame_text(run_id: int, cursor: int, last_seq: int, texts: Sequence[str], state: State) -> str:
    return (
        f'{{"type":"frame","run":{run_id},"first_seq":{cursor + 1},"last_seq":{last_seq},'
        f'"events":[{",".join(texts)}],"state":{state.text}}}'
    )


class ProjectFeed(Feed):
    """The states of a project's runs that are on screen somewhere; each change has a number."""

    min_seconds = 1 / SOCKET_SUMMARIES_PER_SECOND

    def __init__(self, project_id: int, slug: str, database: Database) -> None:
        self.project_id = project_id
        self.slug = slug
        self.number = 0
        self.dirty: set[int] = set()
        self._states: dict[int, tuple[int, State]] = {}
        self._with_active = True
        super().__init__(f"project {slug}", database)

    def _looks_by_itself(self) -> None:
        self._with_active = True

    async def _read(self) -> bool:
        if not self.ready.is_set():
            self.dirty.update(await read(catch_up.newest_runs, self.project_id, FIRST_SUMMARY_RUNS))
        with_active, self._with_active = self._with_active, False
        wanted, self.dirty = self.dirty, set()
        if with_active:
            # Those that were active and may have ended unseen.
            wanted |= {run_id for run_id, (_, state) in self._states.items() if state.is_active}
        try:
            found = await read(catch_up.project_states, self.project_id, wanted, with_active=with_active)
        except BaseException:
            self.dirty |= wanted
            self._with_active = self._with_active or with_active
            raise
        changed = [s for s in found if s.run not in self._states or self._states[s.run][1].core != s.core]
        if changed:
            self.number += 1
            self._states.update({state.run: (self.number, state) for state in changed})
        return bool(changed)

    def summary(self, seen: int) -> str:
        """The states that changed after number `seen`, as one message."""
        texts = [state.text for number, state in self._states.values() if number > seen]
        return f'{{"type":"summary","project":{encode(self.slug)},"runs":[{",".join(texts)}]}}'


class Hub:
    """The feeds of one event loop, and its LISTEN connection while any socket is open."""

    _of_loop: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub]] = (
        weakref.WeakKeyDictionary()
    )

    def __init__(self) -> None:
        self.runs: dict[int, RunFeed] = {}
        self.projects: dict[int, ProjectFeed] = {}
        self.database = Database(self._tell_database)
        self._sockets: set[Follower] = set()
        self._listener: Listener | None = None

    @classmethod
    def here(cls) -> Hub:
        loop = asyncio.get_running_loop()
        if loop not in cls._of_loop:
            cls._of_loop[loop] = cls()
        return cls._of_loop[loop]

    @property
    def is_listening(self) -> bool:
        return self._listener is not None and self._listener.is_listening

    def enter(self, socket: Follower) -> None:
        """A socket opened."""
        self._sockets.add(socket)
        if self._listener is None:
            self._listener = Listener(self._on_poke, self._on_gap, self.database.lost)

    async def leave(self, socket: Follower) -> None:
        """A socket closed; with the last one the listener goes."""
        self._sockets.discard(socket)
        if not self._sockets and self._listener is not None:
            listener, self._listener = self._listener, None
            self.database.end()
            await listener.end()

    def _tell_database(self) -> None:
        if not self.database.is_away:
            self._on_gap()
        for socket in self._sockets:
            socket.wake()

    def follow_run(self, run_id: int, follower: Follower) -> RunFeed:
        feed = self.runs.get(run_id)
        if feed is None:
            feed = self.runs[run_id] = RunFeed(run_id, self.database)
        feed.followers.add(follower)
        return feed

    def follow_project(self, project_id: int, slug: str, follower: Follower) -> ProjectFeed:
        feed = self.projects.get(project_id)
        if feed is None:
            feed = self.projects[project_id] = ProjectFeed(project_id, slug, self.database)
        feed.followers.add(follower)
        return feed

    def unfollow(self, feed: RunFeed | ProjectFeed, follower: Follower) -> None:
        feed.followers.discard(follower)
        if feed.followers:
            return
        feed.end()
        if isinstance(feed, RunFeed):
            self.runs.pop(feed.run_id, None)
        else:
            self.projects.pop(feed.project_id, None)

    def _on_poke(self, poke: Poke) -> None:
        if run := self.runs.get(poke.run):
            run.poke()
        if project := self.projects.get(poke.project):
            project.dirty.add(poke.run)
            project.poke()

    def _on_gap(self) -> None:
        for feed in (*self.runs.values(), *self.projects.values()):
            feed._looks_by_itself()
            feed.poke()
