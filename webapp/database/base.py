"""Django's PostgreSQL backend, with connections that do not wait for ever for a server that is frozen or cut
off (`connections`). Django finds it by the module's name: `ENGINE` in the settings is this package.
"""

from __future__ import annotations

from typing import Any

import psycopg
from django.db.backends.postgresql import base as postgresql
from psycopg_pool import ConnectionPool, PoolTimeout

from webapp.database.connections import HastyConnection, PatientConnection, gone
from webapp.database.silence import Address, answers, known
from webapp.limits import DATABASE_ASK_SECONDS, DATABASE_POOL_WAIT_SECONDS


class DatabaseWrapper(postgresql.DatabaseWrapper):
    """Fails at once while the server is known to be away. `Any`: what Django's own is untyped with."""

    @property
    def pool(self) -> Any:
        if options := self.settings_dict["OPTIONS"].get("pool"):
            options.setdefault("connection_class", HastyConnection)
        return super().pool

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """As Django's, which also knows isolation levels; ours is the server's default."""
        was_away = known.is_away
        if not known.is_back():
            raise gone()
        self.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        pool = self.pool
        if pool is None:
            return PatientConnection.connect(**conn_params)
        pool.open()
        if was_away:
            pool.check()  # what the outage broke is dropped at once, not one by one as requests meet it
        return self._from_pool(pool, conn_params)

    def _from_pool(self, pool: ConnectionPool[Any], conn_params: dict[str, Any]) -> Any:
        """One that has none to give may lack a server: that need not be waited for."""
        try:
            return pool.getconn(DATABASE_ASK_SECONDS)
        except PoolTimeout:
            if known.is_away:
                raise gone() from None
            address = Address(str(conn_params.get("host") or ""), int(conn_params.get("port") or 5432))
            if address.is_one() and not answers(address):
                known.note_away(address)
                raise gone() from None
        return pool.getconn(DATABASE_POOL_WAIT_SECONDS - DATABASE_ASK_SECONDS)
