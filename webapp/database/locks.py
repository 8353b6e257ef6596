"""Locks on rows that others wait for, or pass over, must not outlive whoever took them."""

from __future__ import annotations

from django.db import connection

from webapp.limits import DATABASE_LOCK_IDLE_SECONDS


def let_go_when_idle() -> None:
    """The server ends this transaction when nothing is said in it for a while: its process is frozen, or cut
    off without a word. Until then nobody could tell a run's row that is held from one that is worked on.
    """
    with connection.cursor() as cursor:
        milliseconds = int(1000 * DATABASE_LOCK_IDLE_SECONDS)
        cursor.execute(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}")
