"""Database reads of sockets: on a few threads of their own, so that they cannot crowd out page requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from django.db import close_old_connections

from webapp.limits import SOCKET_READERS

P = ParamSpec("P")
T = TypeVar("T")

_threads = ThreadPoolExecutor(SOCKET_READERS, thread_name_prefix="live")


def _call(do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    # What Django does around a request: drop what is broken or too old, give back what is shared.
    close_old_connections()
    try:
        return do(*args, **kwargs)
    finally:
        close_old_connections()


async def read(do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`do` on one of the threads. Raises what it raises."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_threads, lambda: _call(do, *args, **kwargs))
