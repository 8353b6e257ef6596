from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now

from tests.workers.factories import make_project, make_run
from webapp import broker, limits
from webapp.runs import sweeper
from webapp.runs.controls import Action, control
from webapp.runs.models import Attempt, Event, Run, Worker
from webapp.runs.sweeper import sweep
from workers import lease

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def database_runs_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "LEASE_SECONDS", 0)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """The queue, replaced: what was sent. Nobody takes anything from it."""
    messages: list[tuple[int, str]] = []

    def send(run_id: int, queue: str) -> bool:
        messages.append((run_id, queue))
        return True

    monkeypatch.setattr(broker, "send_train_run", send)
    monkeypatch.setattr(broker, "waiting", lambda queue: sum(q == queue for _, q in messages))
    return messages


def lost_run(**changes: Any) -> Run:
    """A run whose lease ran out a second ago."""
    run = make_run()
    assert lease.claim(run.id, "dead@host") is not None
    Run.objects.filter(id=run.id).update(
        status="running", lease_until=Now() - timedelta(seconds=1), step=7, **changes
    )
    return run


def test_lost_run_waits_for_another_worker(sent: list[Any]) -> None:
    run = lost_run()
    assert sweep().lost == 1
    run.refresh_from_db()
    assert (run.status, run.restarts, run.lease_until, run.lease_owner) == ("recovering", 1, None, "")
    assert run.reason == (
        "Contact with its worker was lost after step 7; a free worker goes on with it after 10 s."
    )
    attempt = Attempt.objects.get(run=run)
    assert (attempt.outcome, attempt.reason) == ("lost", "Contact with dead@host was lost after step 7.")
    assert Event.objects.filter(run=run).latest("seq").body["status"] == "recovering"
    assert run.last_seq == 3
    assert sent == []
    assert sweep().lost == 0


@pytest.mark.parametrize(("restarts", "seconds"), [(0, 10), (1, 30), (2, 90)])
def test_back_off_grows(sent: list[Any], restarts: int, seconds: int) -> None:
    run = lost_run(restarts=restarts)
    sweep()
    fresh = Run.objects.annotate(now=Now()).get(id=run.id)
    assert fresh.not_before is not None
    assert seconds - 2 < (fresh.not_before - fresh.now).total_seconds() <= seconds
    assert lease.claim(run.id, "early") is None


def test_crash_loop_ends(sent: list[Any]) -> None:
    assert limits.MAX_RESTARTS == 3
    run = lost_run(restarts=3)
    sweep()
    run.refresh_from_db()
    assert run.status == "failed"
    assert run.ended_at is not None
    assert run.reason == (
        "Contact with its worker was lost 4 times, the last time after step 7. Last complete step: 7; no "
        "checkpoint. Look at the worker's machine (memory, disk, log), then retry the run."
    )


def test_second_death_at_one_step_ends_the_run(sent: list[Any]) -> None:
    run = lost_run()
    sweep()
    Run.objects.update(not_before=None)
    assert lease.claim(run.id, "next@host") is not None
    Run.objects.update(status="running", lease_until=Now() - timedelta(seconds=1), step=8)
    sweep()
    run.refresh_from_db()
    assert run.status == "recovering"  # it had got on by a step
    Run.objects.update(not_before=None)
    assert lease.claim(run.id, "third@host") is not None
    Run.objects.update(status="running", lease_until=Now() - timedelta(seconds=1))
    sweep()
    run.refresh_from_db()
    assert run.status == "failed"
    assert run.reason.startswith("Contact with its worker was lost 2 times at the same place, after step 8.")
    # Whoever retries it knows that: what was before counts no more.
    control(run, run.created_by, Action.RETRY)
    assert lease.claim(run.id, "fourth@host") is not None
    Run.objects.update(status="running", lease_until=Now() - timedelta(seconds=1))
    sweep()
    run.refresh_from_db()
    assert (run.status, run.restarts) == ("recovering", 1)


def test_lost_run_that_should_pause_is_paused(sent: list[Any]) -> None:
    run = lost_run()
    control(run, run.created_by, Action.PAUSE)
    sweep()
    run.refresh_from_db()
    assert (run.status, run.ended_at, run.wish) == ("paused", None, "")
    assert sent == []


def test_worker_that_beats_but_does_not_stop_at_once_loses_the_run(
    sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    held = lease.claim(run.id, "stuck@host")
    assert held is not None
    for action in (Action.STOP, Action.STOP_NOW):
        control(run, run.created_by, action)
        Run.objects.update(wish_at=Now() - timedelta(seconds=16))
        if action == Action.STOP:
            assert sweep().lost == 0  # it may still be saving
    assert sweep().lost == 1
    run.refresh_from_db()
    assert run.status == "stopped"
    with pytest.raises(lease.LeaseLostError):
        lease.renew(held, 0.0)


def test_run_without_progress_is_stalled_until_it_gets_on(sent: list[Any]) -> None:
    run = make_run()
    held = lease.claim(run.id, "w@host")
    assert held is not None
    Run.objects.update(status="running")
    lease.renew(held, progress_age_seconds=599)
    sweep()
    run.refresh_from_db()
    assert run.stalled_at is None
    lease.renew(held, progress_age_seconds=601)
    sweep()
    sweep()
    run.refresh_from_db()
    assert (run.status, run.stalled_at is None) == ("running", False)
    told = [event.body["reason"] for event in Event.objects.filter(run=run).order_by("seq")][2:]
    assert [text.partition(":")[0] for text in told] == ["Stalled"]
    control(run, run.created_by, Action.STOP)  # a wish still works
    lease.renew(held, progress_age_seconds=-1)
    sweep()
    run.refresh_from_db()
    assert run.stalled_at is None
    assert Event.objects.filter(run=run).latest("seq").body["reason"] == "It makes progress again."


def test_lost_run_that_should_stop_stops(sent: list[Any]) -> None:
    run = lost_run()
    control(run, run.created_by, Action.STOP)
    sweep()
    run.refresh_from_db()
    name = run.created_by.username
    assert (run.status, run.reason) == (
        "stopped",
        f"Stopped by {name}; contact with its worker was lost after step 7.",
    )


@pytest.mark.parametrize("status", ["starting", "running", "stopping"])
def test_held_lease_is_left_alone(sent: list[Any], status: str) -> None:
    run = make_run()
    lease.claim(run.id, "w")
    Run.objects.filter(id=run.id).update(status=status)
    assert sweep() == sweeper.Swept(0, 0)
    run.refresh_from_db()
    assert run.status == status


def test_nobody_is_declared_dead_just_after_a_database_start(
    sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test server has certainly not run for ten years.
    monkeypatch.setattr(sweeper, "LEASE_SECONDS", 315_360_000)
    lost_run()
    assert sweep().lost == 0


def test_forgotten_run_is_sent_again_but_not_piled_up(sent: list[tuple[int, str]]) -> None:
    project = make_project()
    fresh, old, older = make_run(project), make_run(project), make_run(project)
    Run.objects.filter(id=fresh.id).update(queued_at=Now() - timedelta(seconds=14))
    Run.objects.filter(id=old.id).update(queued_at=Now() - timedelta(seconds=16))
    Run.objects.filter(id=older.id).update(queued_at=Now() - timedelta(seconds=100))
    gpu = make_run(queue="gpu")
    Run.objects.filter(id=gpu.id).update(queued_at=Now() - timedelta(seconds=20))
    assert sweep().sent == 3
    assert sent == [(older.id, "cpu"), (old.id, "cpu"), (gpu.id, "gpu")]
    # Nobody took them, so nobody is free.
    assert sweep().sent == 0


def test_recovering_run_is_sent_when_it_is_due(sent: list[tuple[int, str]]) -> None:
    run = make_run(status="recovering")
    Run.objects.filter(id=run.id).update(not_before=Now() + timedelta(seconds=5))
    assert sweep().sent == 0
    Run.objects.filter(id=run.id).update(not_before=Now() - timedelta(seconds=1))
    assert sweep().sent == 1
    assert sent == [(run.id, "cpu")]


def test_dead_broker_stops_the_sending_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "waiting", lambda _queue: None)
    run = lost_run()
    Run.objects.filter(id=make_run().id).update(queued_at=Now() - timedelta(seconds=60))
    assert sweep() == sweeper.Swept(1, 0)
    run.refresh_from_db()
    assert run.status == "recovering"


def test_workers_that_were_not_seen_for_long_are_forgotten(sent: list[Any]) -> None:
    Worker.objects.create(name="old", queues="cpu")
    Worker.objects.create(name="new", queues="cpu")
    Worker.objects.filter(name="old").update(heartbeat_at=Now() - timedelta(hours=2))
    sweep()
    assert list(Worker.objects.values_list("name", flat=True)) == ["new"]


@pytest.mark.django_db(transaction=True)
def test_only_one_sweeps_at_a_time(sent: list[Any]) -> None:
    lost_run()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [sweeper.LOCK])
        results = []

        def other() -> None:
            results.append(sweep())
            connection.close()

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        cursor.execute("SELECT pg_advisory_unlock(%s)", [sweeper.LOCK])
    assert results == [sweeper.Swept(0, 0)]
    assert sweep().lost == 1


@pytest.mark.django_db(transaction=True)
def test_sweeping_goes_on_over_a_lost_database(sent: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lost_run()
    rounds = []

    def cut_then_stop(seconds: float) -> bool:
        rounds.append(seconds)
        if len(rounds) == 1:
            Run.objects.update(status="running", lease_until=Now() - timedelta(seconds=1))
            connection.connection.close()
        return len(rounds) == 3

    sweeper.sweep_until(cut_then_stop)
    assert rounds == [limits.SWEEP_SECONDS, sweeper.AWAY_SECONDS, limits.SWEEP_SECONDS]
    assert Run.objects.get().restarts == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("outage_seconds", "lost"), [(14, 1), (16, 0)])
def test_after_an_outage_in_which_nobody_could_renew_nobody_is_lost_for_a_lease(
    outage_seconds: int, lost: int, sent: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen database has not started anew: `pg_postmaster_start_time` knows nothing of it."""
    now = 1000.0
    monkeypatch.setattr(sweeper.time, "monotonic", lambda: now)
    monkeypatch.setattr(sweeper, "LEASE_SECONDS", 1)  # so long ago the server has started
    run = lost_run()
    rounds = 0

    def frozen_once(_seconds: float) -> bool:
        nonlocal now, rounds
        rounds += 1
        if rounds == 1:
            Run.objects.filter(id=run.id).update(status="running", lease_until=Now() - timedelta(seconds=1))
            connection.connection.close()
        elif rounds == 2:
            now += outage_seconds
        return rounds == 3

    sweeper.sweep_until(frozen_once)
    assert Run.objects.get().restarts == 1 + lost
