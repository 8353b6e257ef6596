"""The one LISTEN connection of a web process: pokes in, calls out. It comes back by itself."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import psycopg
from django.db import connection
from psycopg import sql

from webapp.limits import SOCKET_POLL_SECONDS
from webapp.live.poke import CHANNEL, Poke, parse

QUIET_SECONDS = 20.0  # then it is asked whether it still lives
RETRY_SECONDS = (0.5, 1.0, 2.0)

logger = logging.getLogger(__name__)


class Listener:
    """`on_poke` is called for each poke, `on_gap` after each (re)connection: pokes may have been missed.
    `on_failure` is called when no connection can be had.
    """

    def __init__(
        self,
        on_poke: Callable[[Poke], None],
        on_gap: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.on_poke = on_poke
        self.on_gap = on_gap
        self.on_failure = on_failure
        self.is_listening = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name="listener")

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                async with await _connect() as link:
                    await link.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
                    if failures:
                        logger.info("Pokes are heard again.")
                    failures, self.is_listening = 0, True
                    self.on_gap()
                    await self._listen(link)
            except (psycopg.Error, OSError) as error:
                self.is_listening = False
                if failures == 0:
                    logger.warning(
                        "No pokes are heard; sockets look every %s s: %s", SOCKET_POLL_SECONDS, error
                    )
                else:  # one cut is soon mended; two in a row are an outage
                    self.on_failure(error)
                wait = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                failures += 1
                await asyncio.sleep(wait * (0.5 + random.random()))  # noqa: S311 (jitter)

    async def _listen(self, link: psycopg.AsyncConnection[object]) -> None:
        while True:
            async for note in link.notifies(timeout=QUIET_SECONDS):
                if found := parse(note.payload):
                    self.on_poke(found)
            # Quiet may mean cut off.
            async with asyncio.timeout(QUIET_SECONDS):
                await link.execute("SELECT 1")


async def _connect() -> psycopg.AsyncConnection[object]:
    parameters = connection.get_connection_params()
    return await psycopg.AsyncConnection.connect(
        autocommit=True,
        host=parameters.get("host"),
        port=parameters.get("port"),
        user=parameters.get("user"),
        password=parameters.get("password"),
        dbname=parameters.get("dbname"),
        connect_timeout=5,
        application_name="arborist-live",
        keepalives_idle=30,
    )
