from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

from tests.webapp.material import People, start
from trainer.config import RunConfig
from webapp.accounts.models import User
from webapp.errors import RequestError
from webapp.projects.models import ModelSource, Project
from webapp.runs import services
from webapp.runs.controls import Action, control
from webapp.runs.models import Attempt, Event, Run, RunStatus
from webapp.runs.states import append_status_event


@pytest.fixture
def queued(project: Project, people: People, config: RunConfig) -> Run:
    return services.create_run(project, people.editor, config, "waits")


def stop(people: People, run: Run) -> Any:
    return people.client("editor").post(f"/api/v1/runs/{run.id}/stop", "{}", content_type="application/json")


def test_a_waiting_run_is_cancelled_at_once(people: People, queued: Run) -> None:
    response = stop(people, queued)
    assert response.status_code == 200
    assert (response.json()["status"], response.json()["reason"]) == (
        "cancelled",
        "Cancelled by editor before it started.",
    )
    queued.refresh_from_db()
    assert queued.ended_at is not None
    assert (queued.wish, queued.wish_at, queued.wish_by) == ("", None, None)
    last = Event.objects.filter(run=queued).latest("seq")
    assert (last.seq, queued.last_seq, last.kind, last.body["status"]) == (2, 2, "status", "cancelled")
    assert last.body["actor"] == "editor"


def test_a_working_run_is_asked_and_keeps_working(people: People, run: Run) -> None:
    before = run.last_seq
    response = stop(people, run)
    wish = response.json()["wish"]
    assert (response.json()["status"], wish["kind"], wish["by"], wish["is_seen"]) == (
        *("running", "stop", "editor", False),
    )
    run.refresh_from_db()
    assert (run.status, run.wish, run.wish_by, run.ended_at) == ("running", "stop", people.editor, None)
    last = Event.objects.filter(run=run).latest("seq")
    assert (last.seq, last.body["status"], last.body["reason"]) == (
        before + 1,
        "running",
        "Stop requested by editor.",
    )


def test_asking_twice_changes_nothing(people: People, run: Run) -> None:
    stop(people, run)
    run.refresh_from_db()
    first, events = run.wish_at, run.last_seq
    assert stop(people, run).status_code == 200
    run.refresh_from_db()
    assert (run.wish_at, run.last_seq) == (first, events)


@pytest.mark.parametrize("status", ["succeeded", "stopped", "failed", "cancelled"])
def test_an_ended_run_cannot_be_stopped(people: People, run: Run, status: str) -> None:
    Run.objects.filter(id=run.id).update(status=status, ended_at=Now())
    response = stop(people, run)
    assert response.status_code == 409
    assert response.json()["detail"] == f"first has already ended ({status}); there is nothing to stop."
    run.refresh_from_db()
    assert run.wish == ""


def test_attempts_that_have_ended_are_told_by_the_api(people: People, run: Run) -> None:
    Attempt.objects.create(run=run, epoch=1, owner="w", ended_at=Now(), outcome="stopped", last_step=3)
    (attempt,) = people.client("viewer").get(f"/api/v1/runs/{run.id}").json()["attempts"]
    assert (attempt["outcome"], attempt["last_step"], attempt["lasted_s"] < 60) == ("stopped", 3, True)
    body = {"device": "cuda:0", "processes": 4}
    Event.objects.create(run=run, seq=run.last_seq + 1, epoch=1, kind="started", at=Now(), body=body)
    page = people.client("viewer").get(f"/r/{run.id}/attempts").content.decode()
    assert "stopped" in page
    assert "4 processes on cuda:0 to cuda:3" in page
    system = people.client("viewer").get(f"/r/{run.id}/system").content.decode()
    assert "4 processes on cuda:0 to cuda:3; the figures are of the first one" in system
    alone = {"device": "cuda:0", "engine": "vllm", "parameters": 7, "engine_processes": 3}
    Event.objects.filter(run=run, kind="started").update(body=alone)
    system = people.client("viewer").get(f"/r/{run.id}/system").content.decode()
    assert "Trained on: cuda:0, sampled in 3 engine processes." in system
    events = people.client("viewer").get(f"/r/{run.id}/events").content.decode()
    assert "on cuda:0 with vllm in 3 engine processes, 7 parameters" in events


def test_a_recovering_run_is_cancelled(people: People, run: Run) -> None:
    Run.objects.filter(id=run.id).update(status=RunStatus.RECOVERING, lease_until=None)
    assert stop(people, run).json()["reason"] == "Cancelled by editor while it waited."


def test_the_page_stops_and_says_so(people: People, run: Run) -> None:
    client = people.client("editor")
    page = client.post(f"/r/{run.id}/control", {"action": "stop"}, follow=True)
    assert "first was asked: it saves a checkpoint, then it ends." in page.content.decode()
    Run.objects.filter(id=run.id).update(status="stopped", ended_at=Now(), wish="", wish_at=None)
    assert (
        "has already ended (stopped)"
        in client.post(f"/r/{run.id}/control", {"action": "stop"}, follow=True).content.decode()
    )


@pytest.mark.django_db(transaction=True)
def test_stops_and_claims_at_once_leave_one_truth(config: RunConfig) -> None:
    """Eight people press Stop while a worker claims: either it was cancelled, or it was claimed and asked;
    never both.
    """
    ModelSource.objects.create(slug="tiny-reasoner", name="Tiny", path="tiny-reasoner")
    project = Project.objects.create(slug="lab", name="Lab")
    user = User.objects.create_user("ada")
    for _ in range(5):
        run = services.create_run(project, user, config, "x")

        def act(number: int, run_id: int = run.id) -> int:
            try:
                if number == 3:
                    with transaction.atomic():
                        return Run.objects.filter(id=run_id, status=RunStatus.QUEUED).update(
                            status=RunStatus.STARTING, lease_epoch=1, lease_until=Now(), lease_owner="w"
                        )
                with contextlib.suppress(RequestError):  # it had been cancelled
                    control(Run.objects.get(id=run_id), user, Action.STOP)
                return 0
            finally:
                connection.close()

        with ThreadPoolExecutor(8) as pool:
            claimed = sum(pool.map(act, range(8)))
        run.refresh_from_db()
        events = list(Event.objects.filter(run=run).order_by("seq"))
        assert [event.seq for event in events] == [1, 2]
        assert run.last_seq == 2
        assert run.wish == ("stop" if claimed else "")
        assert run.status == ("starting" if claimed else "cancelled")
        assert events[1].body["status"] == run.status


def test_status_events_are_numbered_without_a_gap_and_notify(people: People, queued: Run) -> None:
    start(queued)
    with connection.cursor() as cursor:
        cursor.execute("LISTEN arborist_poke")
    seqs = [append_status_event(queued.id, 1, "running", f"line {n}\x00") for n in range(3)]
    assert seqs == [2, 3, 4]
    assert Event.objects.get(run=queued, seq=4).body["reason"] == "line 2\u2400"
