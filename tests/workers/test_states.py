"""A run's rows against a model of where it may go, whatever people, workers and the sweeper do, in any order
and at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.workers.factories import finished, make_run, metrics, numbered, started
from webapp import broker
from webapp.errors import RequestError
from webapp.runs import sweeper
from webapp.runs.controls import Action, control
from webapp.runs.models import Attempt, Event, Run, RunStatus
from webapp.runs.states import MOVES, may_move, move
from webapp.runs.sweeper import sweep
from workers import lease
from workers.lease import Lease, LeaseLostError, Wish
from workers.output import Preempted
from workers.recorder import Recorder

pytestmark = pytest.mark.django_db

# Written down here once more, by hand.
GRAPH = {
    "queued": "starting paused cancelled",
    "starting": "running stopping queued recovering paused succeeded stopped failed",
    "running": "stopping queued recovering paused succeeded stopped failed",
    "stopping": "paused succeeded stopped failed",
    "recovering": "starting running paused cancelled",
    "paused": "queued stopped cancelled",
    "stopped": "queued",
    "failed": "queued",
    "cancelled": "queued",
    "succeeded": "",
}
LEASED = ("starting", "running", "stopping")
ENDED = ("succeeded", "stopped", "failed", "cancelled")
STRENGTH = {"": 0, "pause": 1, "stop": 2, "kill": 3}
WISHES = {Action.PAUSE: "pause", Action.STOP: "stop", Action.STOP_NOW: "kill"}


@pytest.fixture(autouse=True)
def _database_runs_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "LEASE_SECONDS", 0)
    monkeypatch.setattr(broker, "waiting", lambda _queue: None)
    monkeypatch.setattr(broker, "send_train_run", lambda *_: True)


def path_of(run: Run) -> list[str]:
    """The statuses of the run's events, without repetitions; their numbers have no gap."""
    events = list(Event.objects.filter(run=run).order_by("seq"))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert run.last_seq == len(events)
    told = [event.body["status"] for event in events if event.kind == "status"]
    return [word for place, word in enumerate(told) if place == 0 or told[place - 1] != word]


def assert_legal(run: Run) -> None:
    run.refresh_from_db()
    path = path_of(run)
    assert path[0] == "queued"
    assert path[-1] == run.status
    for before, after in pairwise(path):
        assert after in GRAPH[before].split(), f"{before} -> {after} in {path}"
    assert (run.ended_at is not None) == (run.status in ENDED)
    assert (run.lease_until is not None) == (run.status in LEASED)
    assert run.wish == "" or run.status in LEASED


def test_table_of_moves_is_the_graph() -> None:
    assert {str(before): " ".join(sorted(after)) for before, after in MOVES.items()} == {
        before: " ".join(sorted(after.split())) for before, after in GRAPH.items()
    }


@pytest.mark.parametrize("status", GRAPH)
def test_any_other_move_is_refused_and_writes_nothing(status: str) -> None:
    run = make_run(
        status=status,
        ended_at=Now() if status in ENDED else None,
        lease_until=Now() if status in LEASED else None,
    )
    before = Run.objects.values().get(id=run.id)
    for to in set(GRAPH) - set(GRAPH[status].split()):
        assert not may_move(status, to)
        with pytest.raises(RequestError) as refused:
            move(run, RunStatus(to), "x", actor="x")
        assert refused.value.status == 409
    assert Run.objects.values().get(id=run.id) == before


def test_move_from_what_is_not_so_any_more_does_nothing() -> None:
    run, seen = make_run(), None
    seen = Run.objects.get(id=run.id)
    assert lease.claim(run.id, "w") is not None
    assert move(seen, RunStatus.PAUSED, "x", actor="x") is None
    seen.refresh_from_db()
    Run.objects.filter(id=run.id).update(lease_epoch=7)  # the same status, another attempt
    assert move(seen, RunStatus.FAILED, "x", actor="x") is None
    assert path_of(Run.objects.get(id=run.id)) == ["queued", "starting"]


class RunLife(RuleBasedStateMachine):
    """People, one worker after another, and the sweeper; `status`, `wish` and `deaths` are the model."""

    def __init__(self) -> None:
        super().__init__()
        # The sweeper sees every run: each life has the database for itself.
        self.all_or_nothing = transaction.atomic()
        self.all_or_nothing.__enter__()
        self.run = make_run()
        self.status, self.wish, self.step, self.restarts = "queued", "", 0, 0
        self.seen = False
        self.deaths: dict[int, int] = {}  # attempt -> the step it was lost at, since somebody took the run up
        self.lease: Lease | None = None
        self.stale: list[Lease] = []
        self.recorder: Recorder | None = None
        self.n = 0

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.all_or_nothing.__exit__(None, None, None)

    def become(self, status: str) -> None:
        self.status = status
        if status not in LEASED:
            self.wish, self.seen = "", False

    # ---- people

    @rule(action=st.sampled_from(Action))
    def ask(self, action: Action) -> None:
        expected, run = self.asked(action), Run.objects.get(id=self.run.id)
        if expected is None:
            with pytest.raises(RequestError, match=self.run.name):
                control(run, self.run.created_by, action)
            return
        control(run, self.run.created_by, action)
        if expected in STRENGTH and expected:
            if expected != self.wish:
                self.wish, self.seen = expected, False
        else:
            self.become(expected)
            if action in (Action.RESUME, Action.RETRY):
                self.deaths = {}
            if action == Action.RETRY:
                self.restarts = 0

    def asked(self, action: Action) -> str | None:
        """The wish or the status that follows; None: it is refused."""
        if action == Action.RESUME:
            return "queued" if self.status == "paused" else None
        if action == Action.RETRY:
            return "queued" if self.status in ("failed", "stopped", "cancelled") else None
        wish = WISHES[action]
        if self.status in ENDED:
            return None
        if self.status in LEASED:
            if wish == "pause" and STRENGTH[self.wish] > 1:
                return None
            return max(wish, self.wish, key=STRENGTH.__getitem__)
        if wish == "pause":
            return "paused"
        return "stopped" if self.status == "paused" and self.step else "cancelled"

    # ---- workers

    @rule()
    def claim(self) -> None:
        Run.objects.filter(id=self.run.id).update(not_before=None)
        got = lease.claim(self.run.id, "worker@host")
        assert (got is not None) == (self.status in ("queued", "recovering"))
        if got is not None:
            if self.lease is not None:
                self.stale.append(self.lease)
            self.lease, self.recorder, self.n = got, Recorder(got), 0
            self.become("starting")

    def holds(self) -> bool:
        """Whether the last worker may write: it holds the run, or nobody has taken it since it was lost."""
        return self.status in (*LEASED, "recovering")

    def back(self) -> None:
        if self.status == "recovering" and self.lease is not None:
            self.status = "running"
            self.restarts = max(self.restarts - 1, 0)
            self.deaths.pop(self.lease.epoch, None)

    def say(self, *events: Any) -> None:
        assert self.recorder is not None
        try:
            self.recorder.record(numbered(list(events), self.n + 1))
        except LeaseLostError:
            assert not self.holds()
            return
        assert self.holds()
        self.back()
        self.n += len(events)
        for event in events:
            if event.kind == "started":
                self.status = "running" if self.status == "starting" else self.status
            if event.kind in ("started", "metrics"):
                self.step = event.step
        last = events[-1]
        if last.kind == "preempted":
            self.become({"": "queued", "pause": "paused"}.get(self.wish, "stopped"))
        elif last.kind == "finished":
            words = {
                ("stopped", "pause"): "paused",
                ("paused", "stop"): "stopped",
                ("paused", "kill"): "stopped",
            }
            self.become(words.get((last.outcome, self.wish), last.outcome))

    @precondition(lambda self: self.recorder is not None)
    @rule(outcome=st.sampled_from(["", "", "succeeded", "stopped", "failed", "paused", "preempted"]))
    def train(self, outcome: str) -> None:
        events: list[Any] = (
            [started(self.step)] if self.n == 0 else [metrics(self.step + 1, reward__mean=0.5)]
        )
        if outcome == "preempted":
            events.append(Preempted(time=1.0, step=self.step, reason="Its worker was told to stop."))
        elif outcome:
            events.append(finished(outcome, step=self.step))
        self.say(*events)

    @precondition(lambda self: self.lease is not None)
    @rule()
    def beat(self) -> None:
        assert self.lease is not None
        try:
            wish = lease.renew(self.lease, 0.0)
        except LeaseLostError:
            assert not self.holds()
            return
        assert self.holds()
        self.back()
        assert wish == (Wish(self.wish, self.run.created_by.username) if self.wish else Wish())
        if self.wish:
            lease.acknowledge(self.lease, wish)
            self.status, self.seen = "stopping", True

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def thaw(self, data: st.DataObject) -> None:
        """A worker of an earlier attempt comes back: it writes nothing."""
        old = data.draw(st.sampled_from(self.stale))
        before = Run.objects.values().get(id=self.run.id)
        for write in (
            lambda: lease.renew(old, 0.0),
            lambda: lease.end(old, RunStatus.SUCCEEDED, "x"),
            lambda: Recorder(old).record(numbered([finished()])),
        ):
            with pytest.raises(LeaseLostError):
                write()
        assert Run.objects.values().get(id=self.run.id) == before

    # ---- the sweeper

    @precondition(lambda self: self.status in LEASED)
    @rule()
    def lose(self) -> None:
        assert self.lease is not None
        Run.objects.filter(id=self.run.id).update(lease_until=Now() - timedelta(seconds=1))
        assert sweep().lost == 1
        self.restarts += 1
        at_this_step = 1 + sum(
            step == self.step for epoch, step in self.deaths.items() if epoch != self.lease.epoch
        )
        self.deaths[self.lease.epoch] = self.step
        if self.wish:
            self.become("paused" if self.wish == "pause" else "stopped")
        else:
            self.become("failed" if at_this_step >= 2 or self.restarts > 3 else "recovering")

    @rule()
    def wait(self) -> None:
        """Time passes: a worker that was to stop at once and has not is waited for no longer."""
        Run.objects.filter(id=self.run.id, wish_at__isnull=False).update(wish_at=Now() - timedelta(hours=1))
        lost = sweep().lost
        assert lost == (self.wish == "kill")
        if lost:
            assert self.lease is not None
            self.deaths[self.lease.epoch] = self.step
            self.become("stopped")

    @invariant()
    def rows_agree(self) -> None:
        assert_legal(self.run)
        row = self.run
        assert (row.status, row.wish, row.step, row.restarts) == (
            *(self.status, self.wish, self.step, self.restarts),
        )
        assert (row.wish_seen_at is not None) == self.seen
        open_attempts = Attempt.objects.filter(run=row, ended_at__isnull=True).count()
        assert open_attempts == (self.status in LEASED)


def test_rows_follow_the_model() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # Hypothesis does not type it
        RunLife,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


# ---- at once


def at_once(*deeds: Callable[[], object]) -> None:
    """All of them in threads that start together; a refusal is an answer, anything else fails the test."""
    gate = threading.Barrier(len(deeds))

    def body(deed: Callable[[], object]) -> None:
        gate.wait()
        try:
            with contextlib.suppress(RequestError, LeaseLostError):
                deed()
        finally:
            connection.close()

    with ThreadPoolExecutor(len(deeds)) as pool:
        list(pool.map(body, deeds))


@pytest.mark.django_db(transaction=True)
def test_controls_sweeper_and_the_workers_end_at_once_leave_one_truth() -> None:
    for _ in range(6):
        # Two controls on a run that waits.
        waiting = make_run()
        user = waiting.created_by

        def ask(run: Run, action: Action, who: Any = user) -> Callable[[], object]:
            return lambda: control(Run.objects.get(id=run.id), who, action)

        at_once(*[ask(waiting, action) for action in (Action.PAUSE, Action.STOP, Action.PAUSE, Action.STOP)])
        assert_legal(waiting)
        assert waiting.status == "cancelled"

        # A control against the sweeper: the run is lost just when somebody pauses it.
        lost = make_run()
        assert lease.claim(lost.id, "w") is not None
        Run.objects.filter(id=lost.id).update(lease_until=Now() - timedelta(seconds=1))
        at_once(ask(lost, Action.PAUSE), sweep, sweep, ask(lost, Action.PAUSE))
        sweep()
        assert_legal(lost)
        assert lost.status == "paused"

        # A control against the worker's end: what is done stays done, and a pause is never forgotten.
        ending, leaving = make_run(), make_run()
        held = [lease.claim(run.id, "w") for run in (ending, leaving)]
        recorders = [Recorder(one) for one in held if one is not None]
        told = Preempted(time=1.0, step=0, reason="Its worker was told to stop.")
        at_once(
            lambda r=recorders[0]: r.record(numbered([started(), finished(step=0)])),  # type: ignore[misc]
            ask(ending, Action.STOP),
            lambda r=recorders[1], told=told: r.record(numbered([started(), told])),  # type: ignore[misc]
            ask(leaving, Action.PAUSE),
        )
        assert_legal(ending)
        assert_legal(leaving)
        assert (ending.status, leaving.status) == ("succeeded", "paused")
