"""Connections that wait as long as a statement takes, and not for ever for a server that is gone
(`silence`).
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import errors
from psycopg.abc import PQGen
from psycopg.waiting import Ready

from webapp.database.silence import Address, answers, known
from webapp.limits import DATABASE_ASK_SECONDS, DATABASE_SILENCE_MAX_SECONDS, DATABASE_SILENCE_SECONDS

INTERVAL = 0.1  # psycopg's own: how often it looks for Ctrl-C


def gone() -> psycopg.OperationalError:
    return psycopg.OperationalError("the database server gives no sign of life")


def _resumable(gen: PQGen[Any]) -> PQGen[Any]:
    """As `gen`, for a wait that was given up and begins anew: it begins with `next`, which tells a generator
    None, while one that is sending a large statement must be told that nothing is ready.
    """
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            wanted = gen.send(ready or Ready.NONE)
    except StopIteration as done:
        return done.value


class PatientConnection(psycopg.Connection[Any]):
    """Waits as long as a statement takes and its server lives. `Any`: rows."""

    questions = 3  # unanswered in a row, then the server is away

    def wait(self, gen: PQGen[Any], interval: float = INTERVAL, timeout: float | None = None) -> Any:
        """What psycopg waits with for everything but connecting. Raises OperationalError, and closes."""
        try:
            return self._wait(gen, interval, timeout)
        except errors.IdleInTransactionSessionTimeout as error:
            # Of psycopg's kinds this is an internal error. It is a lost connection: do it again.
            raise psycopg.OperationalError(str(error)) from error

    def _wait(self, gen: PQGen[Any], interval: float, timeout: float | None) -> Any:
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        silence, unanswered = DATABASE_SILENCE_SECONDS, 0
        going = _resumable(gen)
        while True:
            try:
                return super().wait(going, interval, silence)
            except errors._WaitTimeout:
                address = Address(self.info.hostaddr or self.info.host, self.info.port)
                if answers(address):
                    unanswered = 0
                    silence = min(2 * silence, DATABASE_SILENCE_MAX_SECONDS)
                    continue
                unanswered += 1
                if unanswered >= self.questions:
                    known.note_away(address)
                    self.pgconn.finish()
                    raise gone() from None
                silence = DATABASE_ASK_SECONDS


class HastyConnection(PatientConnection):
    """Of a web process, where people wait."""

    questions = 1
