"""Database reads of sockets: on a few threads of their own, so that they cannot crowd out page requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import psycopg
from django.db import InterfaceError, OperationalError, close_old_connections, connection

from webapp.limits import SOCKET_READ_SECONDS, SOCKET_READERS
from webapp.outages import mend_pool

P = ParamSpec("P")
T = TypeVar("T")

# What passes: a database that is away, or does not answer in time.
UNREACHABLE = (
    OperationalError,
    InterfaceError,
    psycopg.OperationalError,
    psycopg.InterfaceError,
    TimeoutError,
)

_threads = ThreadPoolExecutor(SOCKET_READERS, thread_name_prefix="live")


def _call(do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    # What Django does around a request: drop what is broken or too old, give back what is shared.
    close_old_connections()
    try:
        return do(*args, **kwargs)
    finally:
        close_old_connections()


async def read(do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`do` on one of the threads. Raises what it raises, and TimeoutError when nothing at all comes back."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(SOCKET_READ_SECONDS):
        return await loop.run_in_executor(_threads, lambda: _call(do, *args, **kwargs))


def ping() -> None:
    """Raises the database's error while it does not answer."""
    mend_pool()
    with connection.cursor() as cursor:
        # The tables that sockets read: somebody may hold a lock on one of them.
        cursor.execute(
            "SELECT (SELECT 1 FROM arborist_run LIMIT 1), (SELECT 1 FROM arborist_event LIMIT 1),"
            " (SELECT 1 FROM arborist_series LIMIT 1), (SELECT 1 FROM django_session LIMIT 1)"
        )
