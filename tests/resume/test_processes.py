"""Whatever process of a run dies or freezes, nothing of it is left, and there is one history."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db.models.functions import Now

from tests.resume.test_kill_points import REPOSITORY, give_up_and_queue, trainers
from tests.workers.factories import make_run
from webapp.embedded import processes
from webapp.runs import sweeper
from webapp.runs.leftovers import end_leftovers
from webapp.runs.models import Attempt, Event, Point, Run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.process]


@pytest.fixture
def start(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a worker's process that takes the run, with a fake trainer."""
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path)
    monkeypatch.setattr(sweeper, "LEASE_SECONDS", 0)
    started: list[subprocess.Popen[bytes]] = []

    def begin(run: Run, scenario: str) -> subprocess.Popen[bytes]:
        one = subprocess.Popen(
            [sys.executable, "-m", "tests.resume.mortal_worker", str(run.id), "", scenario],
            cwd=REPOSITORY,
            env={**os.environ, "ARBORIST_DATABASE_URL": database_url, "ARBORIST_DATA_DIR": str(tmp_path)},
        )
        started.append(one)
        return one

    yield begin
    for one in started:
        one.kill()
        one.wait()


def until(condition: Any, seconds: float = 30) -> None:
    assert processes.wait_until(condition, seconds), "it did not happen in time"


def step(run: Run) -> int:
    return Run.objects.values_list("step", flat=True).get(id=run.id)


def is_whole(run: Run) -> bool:
    seqs = list(Event.objects.filter(run=run).order_by("seq").values_list("seq", flat=True))
    return seqs == list(range(1, Run.objects.values_list("last_seq", flat=True).get(id=run.id) + 1))


def test_thawed_worker_writes_nothing_and_ends_itself(start: Any) -> None:
    run = make_run()
    one = start(run, "polite")
    until(lambda: step(run) >= 3)
    (first,) = trainers(run)
    one.send_signal(signal.SIGSTOP)
    give_up_and_queue(run)
    two = start(run, "three steps")
    assert two.wait(60) == 0
    run.refresh_from_db()
    assert run.status == "succeeded"
    # The second one, on the same machine, has ended the first one's trainer before it began.
    assert not first.is_alive()
    before = run.last_seq, Point.objects.filter(run_id=run.id).count()
    one.send_signal(signal.SIGCONT)
    assert one.wait(30) == 0
    run.refresh_from_db()
    assert (run.last_seq, Point.objects.filter(run_id=run.id).count()) == before
    assert is_whole(run)
    shown = Point.objects.filter(run_id=run.id, superseded=False).order_by("seq")
    assert list(shown.values_list("step", flat=True)) == [1, 2, 3]
    assert [a.outcome for a in Attempt.objects.filter(run=run).order_by("epoch")] == ["lost", "succeeded"]
    assert trainers(run) == []


def test_sweeper_ends_the_trainer_of_a_worker_that_is_frozen_for_ever(start: Any) -> None:
    """Nobody else is on the machine, and the run has ended for all others."""
    run = make_run()
    one = start(run, "polite")
    until(lambda: step(run) >= 1)
    (trainer,) = trainers(run)
    one.send_signal(signal.SIGSTOP)
    assert end_leftovers() == 0  # it may only be out of contact
    assert trainer.is_alive()
    Run.objects.filter(id=run.id).update(status="failed", ended_at=Now(), lease_until=None)
    assert end_leftovers() == 1
    until(lambda: trainers(run) == [], 10)
    one.send_signal(signal.SIGCONT)
    assert one.wait(30) == 0


@pytest.mark.parametrize("victims", ["worker", "trainer worker", "worker trainer"])
def test_nothing_is_left_of_what_was_killed(victims: str, start: Any) -> None:
    """A trainer with a process of its own in another session, as an inference engine has."""
    run = make_run()
    one = start(run, "works with a child")
    until(lambda: step(run) >= 1)
    until(lambda: len(trainers(run)) == 2)
    leader = next(t for t in trainers(run) if os.getpgid(t.pid) == t.pid and os.getsid(t.pid) == t.pid)
    for victim in victims.split():
        if victim == "worker":
            one.kill()
            one.wait()
        elif leader.is_alive():
            os.kill(leader.pid, signal.SIGKILL)
    # Whoever looks next: the sweeper, a worker's upkeep, a worker that starts.
    until(lambda: end_leftovers() >= 0 and trainers(run) == [], 10)
    assert list((settings.DATA_DIR / "workers" / "trainers").glob("*.json")) == []
