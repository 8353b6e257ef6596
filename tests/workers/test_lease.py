from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from django.db import OperationalError, close_old_connections, connection, transaction
from django.db.models.functions import Now

from tests.workers.factories import make_run
from webapp.database import locks
from webapp.limits import LEASE_SECONDS
from webapp.runs.controls import Action, control
from webapp.runs.models import Attempt, Event, Run, RunStatus
from workers import lease
from workers.lease import Lease, LeaseLostError, Wish
from workers.output import Died
from workers.recorder import Recorder

pytestmark = pytest.mark.django_db


def claimed(run: Run) -> Lease:
    found = lease.claim(run.id, "w")
    assert found is not None
    return found


def statuses(run: Run) -> list[str]:
    events = Event.objects.filter(run=run, kind="status").order_by("seq")
    return [event.body["status"] for event in events]


def test_claim_takes_the_run_and_says_so() -> None:
    run = make_run()
    held = claimed(run)
    run.refresh_from_db()
    assert (held.epoch, run.status, run.lease_owner) == (1, "starting", "w")
    assert run.started_at is not None
    assert Attempt.objects.get(run=run).epoch == 1
    assert statuses(run) == ["queued", "starting"]
    assert run.last_seq == 2


def test_lease_lasts_twenty_seconds_of_the_database() -> None:
    run = make_run()
    claimed(run)
    left = Run.objects.annotate(now=Now()).get(id=run.id)
    assert left.lease_until is not None
    assert timedelta(seconds=19) < left.lease_until - left.now <= timedelta(seconds=20)


def test_second_claim_of_the_same_run_is_a_quiet_no() -> None:
    run = make_run()
    claimed(run)
    assert lease.claim(run.id, "other") is None
    run.refresh_from_db()
    assert (run.lease_epoch, run.lease_owner, run.last_seq) == (1, "w", 2)


@pytest.mark.parametrize("status", ["succeeded", "failed", "stopped", "cancelled"])
def test_ended_run_is_not_claimed(status: str) -> None:
    run = make_run(status=status, ended_at=Now())
    assert lease.claim(run.id, "w") is None


def test_run_that_does_not_exist_is_not_claimed() -> None:
    assert lease.claim(10**9, "w") is None


def test_backed_off_run_is_not_claimed_early() -> None:
    run = make_run(status="recovering")
    Run.objects.filter(id=run.id).update(not_before=Now() + timedelta(seconds=30))
    assert lease.claim(run.id, "w") is None
    Run.objects.filter(id=run.id).update(not_before=Now() - timedelta(seconds=1))
    assert claimed(run).epoch == 1


@pytest.mark.django_db(transaction=True)
def test_of_many_claims_at_once_one_wins() -> None:
    run = make_run()
    won: list[Lease] = []
    gate = threading.Barrier(6)

    def contend(number: int) -> None:
        gate.wait()
        try:
            if found := lease.claim(run.id, f"w{number}"):
                won.append(found)
        finally:
            connection.close()

    threads = [threading.Thread(target=contend, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    close_old_connections()
    run.refresh_from_db()
    assert len(won) == 1
    assert (run.lease_epoch, Attempt.objects.filter(run=run).count(), run.last_seq) == (1, 1, 2)


def test_renewal_prolongs_and_carries_progress() -> None:
    run = make_run()
    held = claimed(run)
    Run.objects.filter(id=run.id).update(lease_until=Now() + timedelta(seconds=1))
    assert lease.renew(held, progress_age_seconds=7.0) == Wish()
    fresh = Run.objects.annotate(now=Now()).get(id=run.id)
    assert fresh.lease_until is not None
    assert fresh.progress_at is not None
    assert fresh.lease_until - fresh.now > timedelta(seconds=19)
    age = (fresh.now - fresh.progress_at).total_seconds()
    assert 6.9 < age < 8


def test_wish_to_stop_reaches_the_worker_with_a_name() -> None:
    run = make_run()
    held = claimed(run)
    control(run, run.created_by, Action.STOP)
    wish = lease.renew(held, 0.0)
    assert wish == Wish("stop", run.created_by.username)
    lease.acknowledge(held, wish)
    lease.acknowledge(held, wish)
    run.refresh_from_db()
    assert (run.status, run.wish_seen_at is not None) == ("stopping", True)
    assert statuses(run)[-1] == "stopping"
    assert statuses(run).count("stopping") == 1


def test_old_epoch_can_write_nothing() -> None:
    run = make_run()
    old = claimed(run)
    Run.objects.filter(id=run.id).update(status="recovering", lease_until=None)
    new = lease.claim(run.id, "other")
    assert new is not None
    before = Run.objects.values().get(id=run.id)
    for write in (
        lambda: lease.renew(old, 0.0),
        lambda: lease.acknowledge(old, Wish("stop", "x")),
        lambda: lease.end(old, RunStatus.SUCCEEDED, "x"),
    ):
        with pytest.raises(LeaseLostError, match="epoch 2"):
            write()
    assert Run.objects.values().get(id=run.id) == before


def test_worker_that_was_only_out_of_contact_takes_its_run_back() -> None:
    run = make_run()
    held = claimed(run)
    Run.objects.filter(id=run.id).update(status="recovering", restarts=1, lease_until=None, not_before=Now())
    Attempt.objects.filter(run=run).update(ended_at=Now(), outcome="lost", reason="lost contact")
    lease.renew(held, 0.0)
    run.refresh_from_db()
    attempt = Attempt.objects.get(run=run)
    assert (run.status, run.restarts, run.not_before, run.lease_epoch) == ("running", 0, None, 1)
    assert (attempt.ended_at, attempt.outcome, attempt.reason) == (None, "", "")
    assert statuses(run)[-1] == "running"


def test_run_whose_trainer_died_is_not_taken_back_by_a_late_beat_or_a_record_that_comes_again() -> None:
    """The beat waited for the row that the last record had locked; the record's answer was lost."""
    run = make_run()
    held = claimed(run)
    died = [(1, Died(time=time.time(), step=0, what="Its trainer was ended by signal 9 (SIGKILL)"))]
    assert Recorder(held).record(died).ended
    before = Run.objects.values().get(id=run.id), Attempt.objects.values().get(run=run)
    assert (before[0]["status"], before[1]["outcome"]) == ("recovering", "died")
    for late in (lambda: lease.renew(held, 0.0), lambda: Recorder(held).record(died)):
        with pytest.raises(LeaseLostError, match="died"):
            late()
    assert (Run.objects.values().get(id=run.id), Attempt.objects.values().get(run=run)) == before
    assert before[0]["reason"].startswith(
        "Its trainer was ended by signal 9 (SIGKILL) before its first step;"
    )


@pytest.mark.parametrize("status", ["failed", "succeeded", "cancelled"])
def test_run_that_ended_meanwhile_is_lost(status: str) -> None:
    run = make_run()
    held = claimed(run)
    Run.objects.filter(id=run.id).update(status=status, ended_at=Now())
    with pytest.raises(LeaseLostError, match=status):
        lease.renew(held, 0.0)


def test_deleted_run_is_lost() -> None:
    run = make_run()
    held = claimed(run)
    run.delete()
    with pytest.raises(LeaseLostError, match="deleted"):
        lease.renew(held, 0.0)


def test_end_gives_the_lease_back() -> None:
    run = make_run()
    held = claimed(run)
    lease.end(held, RunStatus.FAILED, "the reason \x00")
    run.refresh_from_db()
    attempt = Attempt.objects.get(run=run)
    assert (run.status, run.reason, run.lease_until, run.lease_owner) == (
        "failed",
        "the reason \u2400",
        None,
        "",
    )
    assert run.ended_at is not None
    assert (attempt.outcome, attempt.reason) == ("failed", "the reason \u2400")
    assert statuses(run)[-1] == "failed"


def test_preempted_run_keeps_its_place_in_the_queue() -> None:
    run = make_run()
    queued_at = run.queued_at - timedelta(hours=1)
    Run.objects.filter(id=run.id).update(queued_at=queued_at)
    lease.end(claimed(run), RunStatus.QUEUED, "The worker was told to stop.")
    run.refresh_from_db()
    assert (run.status, run.queued_at) == ("queued", queued_at)


def test_preempted_run_waits_again() -> None:
    run = make_run()
    held = claimed(run)
    lease.end(held, RunStatus.QUEUED, "The worker was told to stop.")
    run.refresh_from_db()
    assert (run.status, run.ended_at, run.lease_until) == ("queued", None, None)
    assert Attempt.objects.get(run=run).outcome == "preempted"
    assert claimed(run).epoch == 2


def test_preemption_of_a_run_that_should_stop_ends_it() -> None:
    run = make_run()
    held = claimed(run)
    control(run, run.created_by, Action.STOP)
    lease.end(held, RunStatus.QUEUED, "The worker was told to stop.")
    run.refresh_from_db()
    assert run.status == "stopped"
    assert run.ended_at is not None


@pytest.mark.django_db(transaction=True)
def test_a_worker_that_falls_silent_in_a_transaction_holds_the_row_no_longer_than_a_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is frozen, or cut off without a word, just where it records something."""
    assert locks.DATABASE_LOCK_IDLE_SECONDS < LEASE_SECONDS
    monkeypatch.setattr(locks, "DATABASE_LOCK_IDLE_SECONDS", 0.5)
    run = make_run()
    held = claimed(run)

    def silent() -> None:
        with transaction.atomic():
            lease.lock(held)
            time.sleep(1)
            Run.objects.filter(id=run.id).update(step=7)

    with pytest.raises(OperationalError):  # which is tried again, as after any cut
        silent()
    connection.close()
    with transaction.atomic():
        assert Run.objects.select_for_update(skip_locked=True).filter(id=run.id, step=0).exists()
    monkeypatch.undo()
    with transaction.atomic():
        assert lease.lock(held).status == "starting"
