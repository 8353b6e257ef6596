"""A server that is frozen says nothing and refuses nothing: nobody may wait for it for ever."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from django.conf import settings
from django.db import OperationalError, connection
from django.test import Client

from webapp.database import connections, silence
from webapp.database.connections import HastyConnection, PatientConnection
from webapp.database.silence import Address, answers, known
from webapp.outages import AWAY, outage_of


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(connections, "DATABASE_SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(connections, "DATABASE_ASK_SECONDS", 0.1)
    monkeypatch.setattr(silence, "DATABASE_ASK_SECONDS", 0.1)
    yield
    known.__init__()  # type: ignore[misc]  # whatever a failed test left


def parameters() -> dict[str, str]:
    found = connection.get_connection_params()
    return {name: str(found[name]) for name in ("host", "port", "user", "dbname") if found.get(name)}


def address() -> Address:
    found = parameters()
    return Address(found["host"], int(found.get("port", 5432)))


def server() -> list[int]:
    """The suite's own PostgreSQL's processes, the first of them first."""
    note = settings.FOLDER.postgres / "postmaster.pid"
    if not note.exists():
        pytest.skip("only the suite's own server may be frozen")
    first = int(note.read_text().split()[0])
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    return [first, *map(int, children)]


def tell(pids: list[int], what: signal.Signals) -> None:
    """A signal to each; one whose connection was just closed may end, and be gone, at any moment."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, what)


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    tell(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        tell(pids, signal.SIGCONT)


@pytest.mark.django_db(transaction=True)
def test_who_waits_for_a_frozen_server_is_told_and_who_comes_next_need_not_wait() -> None:
    link = HastyConnection.connect(**parameters())  # type: ignore[arg-type]
    connection.close()
    with frozen(server()):
        with pytest.raises(psycopg.OperationalError, match="no sign of life"):
            link.execute("SELECT 1")
        assert link.closed
        assert known.is_away
        began = time.monotonic()
        with pytest.raises(OperationalError, match="no sign of life") as caught:
            connection.ensure_connection()
        assert outage_of(caught.value) is AWAY
        answer = Client().get("/healthz")
        assert (answer.status_code, answer["Retry-After"]) == (503, "5")
        # One question may be due meanwhile, and nobody waits for a connection (5 s).
        assert time.monotonic() - began < 2 * silence.DATABASE_ANSWER_SECONDS
    deadline = time.monotonic() + 20
    while not known.is_back() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert Client().get("/healthz").status_code == 200


@pytest.mark.django_db(transaction=True)
def test_a_worker_outlives_a_short_freeze_with_its_connection() -> None:
    link = PatientConnection.connect(**parameters())  # type: ignore[arg-type]
    pids = server()
    with frozen(pids):
        assert not answers(address(), 0.2)
        # Thawed while the second of three questions is asked.
        thaw = threading.Timer(1.5, tell, (pids, signal.SIGCONT))
        thaw.start()
        assert link.execute("SELECT 7").fetchone() == (7,)
        thaw.join()
    assert not known.is_away
    link.close()


@pytest.mark.django_db(transaction=True)
def test_a_long_statement_of_a_server_that_lives_is_waited_for() -> None:
    with HastyConnection.connect(**parameters()) as link:  # type: ignore[arg-type]
        assert link.execute("SELECT 7 FROM pg_sleep(1.5)").fetchone() == (7,)
        rows = link.execute("SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n").fetchall()
    assert len(rows) == 20_000
    assert not known.is_away


def test_a_server_that_is_not_there_does_not_answer(tmp_path: Path) -> None:
    assert not answers(Address(str(tmp_path), 5432))
    assert not Address("", 5432).is_one()
    assert not Address("one,two", 5432).is_one()


@pytest.mark.django_db(transaction=True)
def test_a_large_statement_that_takes_long_to_be_sent_is_sent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "DATABASE_SILENCE_SECONDS", 0.001)
    large = b"x" * (32 * 2**20)  # far more than a socket takes at once
    with PatientConnection.connect(**parameters()) as opened:  # type: ignore[arg-type]
        assert opened.execute("SELECT octet_length(%b)", [large]).fetchone() == (len(large),)
