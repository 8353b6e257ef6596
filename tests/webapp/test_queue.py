"""The queue and the workers: who waits and why, expected starts, priorities, limits, drains."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from tests.webapp.material import People, start
from trainer.config import RunConfig
from webapp.projects.access import Role, is_operator
from webapp.projects.models import Membership, Project
from webapp.queue.forecast import Occupant, Slot, Waiting, line, starts
from webapp.queue.models import ProjectLimit
from webapp.queue.querysets import workers_of
from webapp.queue.services import set_priority
from webapp.runs import services
from webapp.runs.models import Attempt, Event, Run, Worker

CPU = frozenset({"cpu"})


# ------------------------------------------------------------------------------------------------ forecast


def test_starts_are_played_forward() -> None:
    """Two places, one busy for 30 s. Runs of 100, 50, 10 s: the first now, the second at 30, the third at 80,
    when the second is done, which is before the first.
    """
    slots = [Slot(CPU), Slot(CPU, 30.0)]
    waiting = [Waiting(1, 1, "cpu", 100), Waiting(2, 1, "cpu", 50), Waiting(3, 1, "cpu", 10)]
    assert starts(slots, [], waiting, {}) == {1: 0, 2: 30, 3: 80}


def test_a_limit_lets_others_by_and_ends_with_who_holds_it() -> None:
    slots = [Slot(CPU), Slot(CPU)]
    waiting = [Waiting(1, 7, "cpu", 5), Waiting(2, 8, "cpu", 5)]
    assert starts(slots, [Occupant(9, 7, "cpu", 40)], waiting, {(7, ""): 1}) == {1: 40, 2: 0}
    assert starts(slots, [Occupant(9, 7, "gpu", None)], waiting, {(7, "cpu"): 1}) == {1: 0, 2: 0}
    assert starts(slots, [Occupant(9, 7, "cpu", None)], waiting, {(7, "cpu"): 1}) == {2: 0}


def test_a_lost_run_does_not_stand_in_its_own_way() -> None:
    lost = Waiting(1, 7, "cpu", 5, ready_in=10, goes_on=True)
    assert starts([Slot(CPU)], [Occupant(1, 7, "cpu", None)], [lost], {(7, ""): 1}) == {1: 10}


def test_what_nobody_knows_stays_unknown() -> None:
    waiting = [Waiting(1, 1, "cpu", None), Waiting(2, 1, "cpu", 5), Waiting(3, 1, "gpu.4", 5)]
    assert starts([Slot(CPU)], [], waiting, {}) == {1: 0}
    assert starts([Slot(CPU, None)], [], waiting, {}) == {}


def test_projects_take_turns_in_the_forecast_too() -> None:
    """One place, 10 s a run, and project 1 had the last turn: 2, 1, 2, and what is lost goes on before."""
    waiting = [Waiting(run, project, "cpu", 10) for run, project in ((1, 1), (2, 1), (3, 2), (4, 2))]
    turns = {(1, "cpu"): -5.0, (2, "cpu"): -50.0}
    assert starts([Slot(CPU)], [], waiting, {}, turns) == {3: 0, 1: 10, 4: 20, 2: 30}
    lost = Waiting(9, 1, "cpu", 10, goes_on=True)
    assert starts([Slot(CPU)], [], [*waiting, lost], {}, turns) == {9: 0, 3: 10, 1: 20, 4: 30, 2: 40}
    assert line(waiting, [Occupant(8, 2, "cpu", None)], {}) == [1, 3, 2, 4]


# ------------------------------------------------------------------------------------------------ the page


@pytest.fixture
def worker(db: None) -> Worker:
    return Worker.objects.create(name="w-1", queues="cpu,probes.cpu")


def queued(project: Project, people: People, config: RunConfig, name: str, **changes: Any) -> Run:
    run = services.create_run(project, people.editor, config, name)
    Run.objects.filter(id=run.id).update(**changes)
    run.refresh_from_db()
    return run


def rows(people: People, who: str = "viewer", queue: str = "cpu") -> list[dict[str, Any]]:
    classes = people.client(who).get("/queue/").context["classes"]
    return next(one["waiting"] for one in classes if one["queue"] == queue)


def test_the_order_is_shown_as_it_is_taken(
    project: Project, people: People, config: RunConfig, worker: Worker
) -> None:
    old = queued(project, people, config, "old", queued_at=Now() - timedelta(hours=2))
    queued(project, people, config, "young")
    queued(project, people, config, "urgent", priority=3)
    assert [(row["position"], row["name"]) for row in rows(people)] == [
        (1, "urgent"), (2, "old"), (3, "young"),
    ]  # fmt: skip
    page = people.client("viewer").get("/queue/").content.decode()
    assert (f"/r/{old.id}/" in page, "Cancel" in page, 'value="top"' in page) == (True, False, False)
    assert "Queue 3 · 0 running" in page


def test_the_queue_leads_to_what_is_worked_on(run: Run, people: People, worker: Worker) -> None:
    page = people.client("viewer").get("/queue/")
    (cpu,) = page.context["classes"]
    assert [(one["name"], one["step"]) for one in cpu["at_work"]] == [("first", 3)]
    assert f'href="/r/{run.id}/"' in page.content.decode().split('id="live-region"')[1]


def test_a_stranger_sees_places_and_no_names(
    project: Project, people: People, config: RunConfig, worker: Worker
) -> None:
    start(queued(project, people, config, "secret-name at work"))
    queued(project, people, config, "secret-name")
    (row,) = rows(people, "stranger")
    assert (row["run"], row["why"], row["position"], "name" in row) == (None, "", 1, False)
    for path in ("/queue/", "/api/v1/queue", "/workers/", "/api/v1/workers"):
        assert "secret-name" not in people.client("stranger").get(path).content.decode()


def test_every_reason_to_wait_has_its_sentence(
    project: Project, people: People, config: RunConfig, worker: Worker
) -> None:
    run = queued(project, people, config, "waits")

    def told() -> tuple[str, str]:
        (row,) = rows(people)
        return row["why"], row["start_basis"]

    assert told() == ("A worker is free: it starts within seconds.", "a worker is free")
    busy = queued(project, people, config, "busy")
    start(busy)
    Run.objects.filter(id=busy.id).update(lease_owner="w-1")
    assert told()[0] == "The only worker of queue cpu is busy."
    ProjectLimit.objects.create(project=project, most=1)
    assert told()[0] == "1 of 1 runs of this project are running."
    Worker.objects.update(drain_at=Now())
    assert told() == ("The only worker of queue cpu is draining.", "every worker of its class is draining")
    Worker.objects.update(heartbeat_at=Now() - timedelta(minutes=2))
    assert told() == ("No worker serves queue cpu.", "no worker serves cpu")
    Run.objects.filter(id=run.id).update(queue="gpu.4")
    (row,) = rows(people, queue="gpu.4")
    assert (row["why"], row["start_s"]) == ("No worker serves queue gpu.4.", None)


def test_a_waiting_run_says_where_it_says_why_and_whether_nobody_serves_it(
    project: Project, people: People, config: RunConfig, worker: Worker
) -> None:
    def page(run: Run) -> str:
        return people.client("viewer").get(f"/r/{run.id}/").content.decode()

    run = queued(project, people, config, "waits")
    nobody = "No worker takes runs of queue"
    assert (f'"/queue/#run-{run.id}"' in page(run), nobody in page(run)) == (True, False)
    Worker.objects.filter(id=worker.id).update(drain_at=Now())
    assert f"{nobody} cpu now." in page(run)
    Worker.objects.filter(id=worker.id).update(drain_at=None, heartbeat_at=Now() - timedelta(minutes=5))
    assert f"{nobody} cpu now." in page(run)
    start(run)
    assert "/queue/#run-" not in page(run)


def test_an_expected_start_says_what_it_rests_on(
    project: Project, people: People, config: RunConfig, worker: Worker
) -> None:
    """One place; a finished run of this preset took 10 s for each of its 5 steps."""
    done = queued(project, people, config, "done")
    ago = timedelta(seconds=50)
    Run.objects.filter(id=done.id).update(
        status="succeeded", step=5, started_at=Now() - ago, ended_at=Now(), steps_total=5
    )
    first = queued(project, people, config, "first", steps_total=6)
    queued(project, people, config, "second")
    one, two = rows(people)
    assert (one["start_s"], one["run"]) == (0, first.id)
    assert two["start_s"] == pytest.approx(60, abs=0.5)
    assert two["start_basis"] == "from a finished run like those before it"
    Run.objects.filter(id=done.id).update(preset="another")
    one, two = rows(people)
    assert (two["start_s"], two["start_basis"]) == (None, "how long the runs before it take is not known yet")


# ------------------------------------------------------------------------------------------------ priorities


def post(people: People, who: str, path: str, body: dict[str, Any] | None = None) -> Any:
    return people.client(who).post(f"/api/v1{path}", json.dumps(body or {}), content_type="application/json")


def test_priorities_move_and_are_told(project: Project, people: People, config: RunConfig) -> None:
    first = queued(project, people, config, "first", priority=4)
    run = queued(project, people, config, "second")
    path = f"/runs/{run.id}/priority"
    assert post(people, "editor", path, {"move": "top"}).status_code == 403
    found = [
        post(people, "admin", path, {"move": move}).json()["priority"] for move in ("raise", "lower", "top")
    ]
    assert found == [1, 0, 5]
    assert Event.objects.filter(run=run).latest("seq").body["reason"] == "Priority 0 → 5, by admin."
    before = Event.objects.filter(run=run).count()
    assert post(people, "admin", path, {"move": "top"}).json()["priority"] == 5
    assert Event.objects.filter(run=run).count() == before
    for wrong in ({}, {"priority": 101}, {"priority": 1, "move": "top"}, {"move": "up"}, {"priority": True}):
        assert post(people, "admin", path, wrong).status_code == 400, wrong
    Run.objects.filter(id=first.id).update(priority=100)
    assert set_priority(run, people.admin, move="top").priority == 100
    Run.objects.filter(id=run.id).update(status="cancelled", ended_at=Now())
    assert post(people, "admin", path, {"priority": 1}).status_code == 409


def test_the_page_raises_and_cancels(project: Project, people: People, config: RunConfig) -> None:
    run = queued(project, people, config, "waits")
    people.client("admin").post(f"/queue/{run.id}/priority", {"move": "raise"})
    run.refresh_from_db()
    assert run.priority == 1
    people.client("editor").post(f"/queue/{run.id}/cancel")
    run.refresh_from_db()
    assert run.status == "cancelled"


def test_top_is_the_top_of_the_projects_own_runs(project: Project, people: People, config: RunConfig) -> None:
    other = Project.objects.get(slug="elsewhere")
    foreign = services.create_run(other, people.stranger, config, "foreign")
    Run.objects.filter(id=foreign.id).update(priority=50)
    queued(project, people, config, "first", priority=4)
    run = queued(project, people, config, "second")
    assert set_priority(run, people.admin, move="top").priority == 5


# ------------------------------------------------------------------------------------------------ limits


def test_nobody_fills_the_queue_and_what_was_made_is_still_given_again(
    project: Project, people: People, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.runs.services.WAITING_PER_PERSON", 2)
    monkeypatch.setattr("webapp.runs.services.WAITING_PER_PROJECT", 3)
    first = services.create_run(project, people.editor, config, "a", "key")
    stopped = queued(project, people, config, "b")
    body = {"name": "c", "config": config.model_dump(mode="json")}
    refused = post(people, "editor", "/projects/lab/runs", body)
    assert refused.status_code == 409
    assert refused.json()["detail"].startswith("editor has 2 runs in the queue, and 2 is the most.")
    assert services.create_run(project, people.editor, config, "a", "key") == first
    post(people, "editor", f"/runs/{stopped.id}/stop")
    services.create_run(project, people.editor, config, "d")
    assert post(people, "editor", f"/runs/{stopped.id}/retry").status_code == 409
    assert post(people, "admin", "/projects/lab/runs", body).status_code == 201
    assert "Lab has 3 runs in the queue" in post(people, "admin", "/projects/lab/runs", body).json()["detail"]


def test_limits_are_set_lifted_and_refused_with_the_reason(project: Project, people: People) -> None:
    path = "/projects/lab/limits"
    answer = post(people, "admin", path, {"limits": {"all": 4, "gpu": 0}})
    assert answer.json() == {"limits": {"all": 4, "gpu": 0}}
    assert post(people, "admin", path, {"limits": {"all": None}}).json() == {"limits": {"gpu": 0}}
    refused = post(people, "admin", path, {"limits": {"tpu": 1}})
    assert (refused.status_code, refused.json()["detail"]) == (
        400, "'tpu' is no resource class. There are cpu, gpu, gpu.2, gpu.4, gpu.8, all."
    )  # fmt: skip
    assert post(people, "admin", path, {"limits": {"cpu": -1}}).status_code == 400
    people.client("admin").post("/queue/limits/lab", {"all": "", "cpu": "3", "gpu": "x"})
    assert ProjectLimit.objects.values_list("queue", "most").get() == ("gpu", 0)
    people.client("admin").post("/queue/limits/lab", {"all": "", "cpu": "3", "gpu": ""})
    assert ProjectLimit.objects.values_list("queue", "most").get() == ("cpu", 3)


def test_an_unknown_class_is_refused_when_a_run_is_made(people: People, config: RunConfig) -> None:
    body = config.model_dump(mode="json")
    body["resources"]["queue"] = "tpu"
    answer = post(people, "editor", "/projects/lab/runs", {"name": "x", "config": body})
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (400, "resources.queue")
    assert "gpu.4" in answer.json()["detail"]


# ------------------------------------------------------------------------------------------------ workers


@pytest.mark.parametrize(
    ("age", "state", "words"),
    [(3, "idle", "idle"), (45, "silent", "silent for 45 s"), (200, "lost", "lost: silent for 3 min 20 s")],
)
def test_a_silent_worker_is_not_called_idle(
    people: People, worker: Worker, age: int, state: str, words: str
) -> None:
    Worker.objects.update(heartbeat_at=Now() - timedelta(seconds=age))
    (row,) = workers_of(people.viewer)
    assert (row["state"], row["words"]) == (state, words)


def test_a_worker_shows_its_run_machine_and_past(run: Run, people: People, worker: Worker) -> None:
    Run.objects.filter(id=run.id).update(lease_owner="w-1", phase="sampling")
    gpu = {"index": 0, "name": "NVIDIA H100", "memory_used_bytes": 2**30, "memory_bytes": 80 * 2**30}
    Worker.objects.update(machine={"host": "box", "cpus": 4, "load": 0.5, "gpus": [gpu], "gpu_trouble": ""})
    Attempt.objects.create(run=run, epoch=1, owner="w-1")
    page = people.client("viewer").get(f"/workers/{worker.id}").content.decode()
    for text in ("Working", "NVIDIA H100", "80.0", "sampling", "step", f"/r/{run.id}/", "under way"):
        assert text in page.replace("\xa0", " "), text
    foreign = people.client("stranger").get(f"/workers/{worker.id}").content.decode()
    assert ("1 run of projects that you are not in" in foreign, run.name in foreign) == (True, False)
    Worker.objects.update(machine={"host": "box", "gpus": [], "gpu_trouble": ""})
    assert "no GPU" in people.client("viewer").get("/workers/").content.decode()


def test_operators_are_staff_or_admins_of_everything(people: People) -> None:
    assert not is_operator(people.admin)
    Membership.objects.create(
        project=Project.objects.get(slug="elsewhere"), user=people.admin, role=Role.ADMIN
    )
    assert is_operator(people.admin)
    people.viewer.is_staff = True
    people.viewer.save()
    assert is_operator(people.viewer)
    people.viewer.only_project = 1
    assert not is_operator(people.viewer)


def test_a_drain_goes_from_requested_over_acknowledged_to_done(people: People, worker: Worker) -> None:
    people.viewer.is_staff = True
    people.viewer.save()
    client = people.client("viewer")
    client.post(f"/workers/{worker.id}/drain")
    page = client.get(f"/workers/{worker.id}").content.decode()
    assert ("requested by viewer" in page, "not acknowledged yet" in page) == (True, True)
    Worker.objects.update(drain_seen_at=Now())
    answer = post(people, "viewer", f"/workers/{worker.id}/drain", {"now": True}).json()["drain"]
    assert (answer["now"], answer["acknowledged_at"]) == (True, None)
    post(people, "viewer", f"/workers/{worker.id}/drain", {"now": False})
    worker.refresh_from_db()
    assert worker.drain_now
    Worker.objects.update(drain_seen_at=Now(), drained_at=Now())
    assert "→ done" in client.get(f"/workers/{worker.id}").content.decode()
    assert post(people, "viewer", f"/workers/{worker.id}/undrain").json()["drain"] is None
    assert post(people, "viewer", "/workers/987654/drain").status_code == 404
