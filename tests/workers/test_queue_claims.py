"""Which run a worker takes: the order, the limits of projects, drained workers."""

from __future__ import annotations

import random
import tempfile
import threading
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now

from tests.campaign.proxy import Loop, Proxy
from tests.workers.factories import make_project, make_run, make_user
from webapp.projects.models import Project
from webapp.queue.models import ProjectLimit, ProjectTurn
from webapp.queue.querysets import queue_of
from webapp.runs.models import Attempt, Run, Worker
from webapp.runs.sweeper import sweep
from workers import lease, tasks, upkeep
from workers.lease import Lease

pytestmark = pytest.mark.django_db


def waiting(project: Project | None = None, seconds: float = 0, **changes: Any) -> Run:
    """A run that has waited for so many seconds."""
    run = make_run(project, **changes)
    Run.objects.filter(id=run.id).update(queued_at=Now() - timedelta(seconds=seconds))
    return run


def taken(queue: str = "cpu", worker: str = "w") -> int | None:
    held = lease.claim_next(queue, worker)
    return None if held is None else held.run_id


def working(project: Project, **changes: Any) -> Run:
    return make_run(
        project,
        **({"status": "running", "lease_until": Now() + timedelta(hours=1), "lease_epoch": 1} | changes),
    )


# ------------------------------------------------------------------------------------------------ order


def test_highest_priority_first_then_the_one_that_waits_longest() -> None:
    ours = make_project()
    young, old = waiting(ours, seconds=1), waiting(ours, seconds=9)
    low, high = waiting(ours, seconds=99, priority=-1), waiting(ours, priority=5)
    elsewhere = waiting(ours, priority=9, queue="gpu")
    assert [taken() for _ in range(5)] == [high.id, old.id, young.id, low.id, None]
    assert taken("gpu") == elsewhere.id


def test_a_project_cannot_starve_another_with_priorities_or_numbers() -> None:
    """One worker, which ends each run before it takes the next: the projects take turns."""
    loud, quiet = make_project(), make_project()
    for _ in range(4):
        waiting(loud, seconds=99, priority=100)
    mine = [waiting(quiet, seconds=1, priority=-100).id for _ in range(2)]
    order = []
    for _ in range(6):
        order.append(taken())
        Run.objects.filter(id=order[-1]).update(status="failed", lease_until=None, ended_at=Now())
    assert [run in mine for run in order] == [False, True, False, True, False, False]


def test_the_project_with_the_fewest_runs_at_work_is_next() -> None:
    big, small = make_project(), make_project()
    for _ in range(2):
        working(big)
    working(big, queue="gpu")
    waiting(big, seconds=99, priority=9)
    mine = [waiting(small).id for _ in range(3)]
    assert [taken() in mine for _ in range(4)] == [True, True, False, True]


def test_a_run_that_lost_its_worker_goes_on_first_and_takes_no_turn() -> None:
    ours, theirs = make_project(), make_project()
    due = {"lease_epoch": 1, "not_before": Now() - timedelta(seconds=1)}
    lost = waiting(ours, status="recovering", priority=-9, **due)
    given_back = waiting(ours, seconds=5, lease_epoch=1)
    resumed = waiting(ours, seconds=50, lease_epoch=1, settled_epoch=1)
    other = waiting(theirs)
    assert [taken() for _ in range(4)] == [given_back.id, lost.id, other.id, resumed.id]


@pytest.mark.parametrize("seed", range(4))
def test_the_queue_is_shown_in_the_order_in_which_it_is_taken(seed: int) -> None:
    """The page foresees in Python what claims decide in SQL."""
    chance = random.Random(seed)
    projects = [make_project() for _ in range(3)]
    for _ in range(14):
        epoch = chance.choice([0, 0, 0, 1])
        waiting(
            chance.choice(projects), chance.random() * 99, priority=chance.randint(-1, 1), lease_epoch=epoch
        )
    for _ in range(chance.randint(0, 4)):
        working(chance.choice(projects))
    for project in projects[: chance.randint(0, 3)]:
        ProjectTurn.objects.create(project=project, queue="cpu", at=Now() - timedelta(hours=chance.random()))
    shown = next(one["waiting"] for one in queue_of(make_user(project=projects[0])) if one["queue"] == "cpu")
    claimed = [taken() for _ in range(14)]
    mine = set(Run.objects.filter(project=projects[0]).values_list("id", flat=True))
    assert [row["run"] for row in shown] == [run if run in mine else None for run in claimed]


def test_a_run_in_its_back_off_is_passed_over() -> None:
    waiting(seconds=9, priority=9, status="recovering", not_before=Now() + timedelta(minutes=1))
    due = waiting(seconds=1, status="recovering", not_before=Now() - timedelta(seconds=1))
    assert (taken(), taken()) == (due.id, None)


def test_a_paused_or_ended_run_is_not_taken() -> None:
    waiting(status="paused")
    waiting(status="failed", ended_at=Now())
    assert taken() is None


# ------------------------------------------------------------------------------------------------ limits


def test_a_project_at_its_limit_waits_and_others_do_not() -> None:
    ours = make_project()
    ProjectLimit.objects.create(project=ours, most=2)
    working(ours)
    first, second = waiting(ours, 9), waiting(ours, 8)
    other = waiting(seconds=1)
    assert [taken() for _ in range(3)] == [other.id, first.id, None]
    Run.objects.filter(id=first.id).update(status="failed", lease_until=None, ended_at=Now())
    assert taken() == second.id


def test_a_limit_of_one_class_leaves_the_others_alone() -> None:
    ours = make_project()
    ProjectLimit.objects.create(project=ours, queue="gpu", most=1)
    working(ours, queue="gpu")
    waiting(ours, 9, queue="gpu")
    on_cpu = waiting(ours, 9)
    assert (taken("gpu"), taken("cpu")) == (None, on_cpu.id)


def test_a_lost_run_keeps_its_place_and_takes_it_again() -> None:
    ours = make_project()
    ProjectLimit.objects.create(project=ours, most=1)
    lost = waiting(ours, 1, status="recovering", not_before=Now() + timedelta(minutes=1))
    waiting(ours, 9)
    assert taken() is None
    Run.objects.filter(id=lost.id).update(not_before=None)
    assert taken() == lost.id


@pytest.mark.django_db(transaction=True)
def test_many_workers_at_once_admit_no_more_than_the_limit() -> None:
    """Twelve claims at the same moment, three projects: one of at most 3, one of at most 1, one without."""
    projects = [make_project() for _ in range(3)]
    ProjectLimit.objects.create(project=projects[0], most=3)
    ProjectLimit.objects.create(project=projects[1], queue="cpu", most=1)
    for project in projects:
        for _ in range(6):
            make_run(project)
    together = threading.Barrier(12)

    def claim(number: int) -> None:
        together.wait()
        try:
            for _ in range(2):
                lease.claim_next("cpu", f"w{number}")
        finally:
            connection.close()

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    admitted = [Run.objects.filter(project=project, status="starting").count() for project in projects]
    assert admitted == [3, 1, 6]
    assert Attempt.objects.count() == 10


def test_the_sweeper_tells_of_no_run_that_may_not_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr("webapp.broker.waiting", lambda _queue: 0)
    monkeypatch.setattr("webapp.broker.send_train_run", lambda run_id, _queue: sent.append(run_id) or True)
    ours = make_project()
    ProjectLimit.objects.create(project=ours, most=1)
    working(ours)
    waiting(ours, 60)
    other = waiting(seconds=60)
    sweep()
    assert sent == [other.id]


# ------------------------------------------------------------------------------------------------ drain


class Taps:
    """What the upkeep did with the worker's queues."""

    def __init__(self) -> None:
        self.turned: list[tuple[bool, bool]] = []

    def turn(self, *, shut: bool, give_back: bool) -> None:
        self.turned.append((shut, give_back))


def seen(worker: str, taps: Taps) -> Worker:
    """After one round of that worker's upkeep."""
    from pathlib import Path

    keeper = upkeep._Upkeep(worker, ["cpu"], 1, Path("/nonexistent"), taps.turn)
    keeper._be_seen(is_first=False)
    keeper._obey()
    return Worker.objects.get(name=worker)


def test_a_drained_worker_takes_nothing_until_it_is_let_in_again() -> None:
    run = waiting()
    Worker.objects.create(name="w", queues="cpu", drain_at=Now())
    assert (taken(worker="w"), taken(worker="other")) == (None, run.id)
    second = waiting()
    Worker.objects.update(drain_at=None)
    assert taken(worker="w") == second.id


def test_a_drain_is_acknowledged_and_done_when_nothing_is_held() -> None:
    run, taps = waiting(), Taps()
    assert taken(worker="w") == run.id
    assert seen("w", taps).drain_seen_at is None
    Worker.objects.update(drain_at=Now())
    row = seen("w", taps)
    assert (row.drain_seen_at is not None, row.drained_at) == (True, None)
    Run.objects.filter(id=run.id).update(status="stopped", lease_until=None, lease_owner="", ended_at=Now())
    assert seen("w", taps).drained_at is not None
    Worker.objects.update(drain_at=None, drain_seen_at=None, drained_at=None)
    seen("w", taps)
    assert taps.turned == [(False, False), (True, False), (True, False), (False, False)]


def test_drain_now_asks_for_what_is_held() -> None:
    taps = Taps()
    Worker.objects.create(name="w", queues="cpu", drain_at=Now(), drain_now=True)
    seen("w", taps)
    assert taps.turned == [(True, True)]


# ----------------------------------------------------------------------------- an answer that never came


@pytest.fixture
def way_to_the_database() -> Iterator[Proxy]:
    """This thread's way to it, which can be cut."""
    settings_dict, loop = connection.settings_dict, Loop()
    there = Path(settings_dict["HOST"]) / f".s.PGSQL.{settings_dict['PORT'] or 5432}"
    with tempfile.TemporaryDirectory() as folder:  # a socket's path is short
        proxy = Proxy(loop, Path(folder) / there.name, there)
        connection.close()
        connection.settings_dict = settings_dict | {"HOST": folder}
        try:
            yield proxy
        finally:
            connection.close()
            connection.settings_dict = settings_dict
            loop.do(proxy.close())
            loop.end()


@pytest.mark.django_db(transaction=True)
def test_a_claim_whose_answer_was_lost_is_found_and_worked_on(way_to_the_database: Proxy) -> None:
    run = waiting()
    connection.ensure_connection()
    way_to_the_database.cut_after = b"COMMIT"
    mend = threading.Timer(1.0, way_to_the_database.mend)
    mend.start()
    queue, held = tasks._take_next(run.id, "w@here")
    mend.join()
    assert way_to_the_database.cuts >= 1  # else nothing was lost
    assert (queue, held) == ("cpu", Lease(run.id, 1, "w@here"))
    run.refresh_from_db()
    assert (run.status, run.lease_epoch, Attempt.objects.filter(run=run).count()) == ("starting", 1, 1)


@pytest.mark.django_db(transaction=True)
def test_a_claim_that_never_arrived_is_not_waited_for(way_to_the_database: Proxy) -> None:
    run = waiting()
    way_to_the_database.cut()
    mend = threading.Timer(1.0, way_to_the_database.mend)
    mend.start()
    connection.close()
    assert tasks._take_next(run.id, "w@here") == ("", None)
    mend.join()
    assert lease.claim_next("cpu", "w@here") == Lease(run.id, 1, "w@here")


def test_a_claim_is_found_by_its_own_mark_while_it_holds_the_run() -> None:
    run, (mine, other) = waiting(), (uuid.uuid4(), uuid.uuid4())
    held = lease.claim_next("cpu", "w@here", mine)
    assert held is not None
    assert (lease.claimed(mine), lease.claimed(other)) == (held, None)
    Run.objects.filter(id=run.id).update(status="recovering", lease_until=None)
    assert lease.claim(run.id, "next@here", other) == Lease(run.id, 2, "next@here")
    assert lease.claimed(mine) is None
