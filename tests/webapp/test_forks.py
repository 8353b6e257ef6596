from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now

from tests.webapp.material import People
from webapp.runs.models import Checkpoint, Event, Run


@pytest.fixture
def kept(run: Run, settings: Any, tmp_path: Path) -> Checkpoint:
    """The run's checkpoint of step 2, on this machine's disk; that of step 1 is not kept."""
    settings.DATA_DIR = tmp_path
    rows = [
        Checkpoint.objects.create(
            run=run,
            epoch=1,
            step=step,
            seq=step,
            path=f"attempt-1/checkpoints/step-{step}",
            size_bytes=9,
            weights_sha256="b" * 64,
        )
        for step in (1, 2)
    ]
    folder = tmp_path / "runs" / str(run.id) / rows[1].path
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return rows[1]


def fork(people: People, run: Run, **payload: Any) -> Any:
    return people.client("editor").post(
        f"/api/v1/runs/{run.id}/fork", {"name": "fork", **payload}, content_type="application/json"
    )


def test_fork_begins_with_the_checkpoint_and_changes_what_it_is_told(
    people: People, run: Run, kept: Checkpoint
) -> None:
    changes = {"training.steps": 500, "training.learning_rate": 0.001, "seed": 9}
    response = fork(people, run, checkpoint=kept.id, changes=changes)
    assert response.status_code == 201, response.content
    new = Run.objects.get(id=response.json()["id"])
    assert (new.parent, new.parent_step, new.forked_from, new.step) == (run, 2, kept, 2)
    training = new.config["training"]
    assert (new.status, new.seed, new.steps_total, training["learning_rate"]) == ("queued", 9, 500, 0.001)
    assert {**new.config, "training": None, "seed": None} == {**run.config, "training": None, "seed": None}
    first = Event.objects.get(run=new, seq=1)
    assert first.body["reason"] == f"Forked from run {run.id} at step 2. Waiting for a worker."
    kept.refresh_from_db()
    assert kept.is_pinned
    listed = people.client("viewer").get(f"/api/v1/runs/{run.id}/checkpoints").json()
    assert [(one["step"], one["is_pinned"]) for one in listed] == [(2, True)]
    page = people.client("viewer").get(f"/r/{new.id}/").content.decode()
    assert f'fork of <a href="/r/{run.id}/">first</a>' in page


def test_fork_is_made_once_by_its_key_and_never_another_run(
    people: People, run: Run, kept: Checkpoint, tmp_path: Path
) -> None:
    changes = {"training.steps": 500}
    made = fork(people, run, checkpoint=kept.id, changes=changes, idempotency_key="k")
    again = fork(people, run, checkpoint=kept.id, changes=changes, idempotency_key="k")
    assert (again.status_code, again.json()["id"]) == (201, made.json()["id"])
    other = Checkpoint.objects.exclude(id=kept.id).get()
    (tmp_path / "runs" / str(run.id) / other.path).mkdir()
    (tmp_path / "runs" / str(run.id) / other.path / "manifest.json").write_text("{}")
    assert fork(people, run, checkpoint=other.id, changes=changes, idempotency_key="k").status_code == 409
    other.refresh_from_db()
    assert not other.is_pinned
    new = {"name": "fork", "config": made.json()["config"], "idempotency_key": "k"}
    fresh = people.client("editor").post("/api/v1/projects/lab/runs", new, content_type="application/json")
    assert fresh.status_code == 409


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({"training.steps": 2}, "training.steps", "leave nothing to do. Use more than 2."),
        ({"model.path": "other"}, "model.path", "cannot change in a fork"),
        ({"training.stepz": 5}, "training.stepz", "is no setting of this run"),
        ({"training.steps": "many"}, "training.steps", "Use a whole number"),
    ],
)
def test_fork_that_does_not_fit_is_refused(
    people: People, run: Run, kept: Checkpoint, changes: dict[str, Any], path: str, words: str
) -> None:
    response = fork(people, run, checkpoint=kept.id, changes=changes)
    assert response.status_code == 400
    (error,) = response.json()["errors"]
    assert error["path"] == path
    assert words in error["message"]
    assert Run.objects.filter(parent=run).count() == 0
    kept.refresh_from_db()
    assert not kept.is_pinned


def test_checkpoint_that_is_gone_is_refused_with_those_that_are_there(
    people: People, run: Run, kept: Checkpoint
) -> None:
    gone = Checkpoint.objects.get(run=run, step=1)
    response = fork(people, run, checkpoint=gone.id)
    assert (response.status_code, response.json()["detail"]) == (
        409,
        "That checkpoint is not kept any more. These are: step 2.",
    )


def test_form_forks_without_a_script_and_keeps_what_was_typed(
    people: People, run: Run, kept: Checkpoint
) -> None:
    client = people.client("editor")
    page = client.get(f"/r/{run.id}/fork").content.decode()
    assert f'<option value="{kept.id}" selected>step 2' in page
    typed = {"name": "mine", "checkpoint": kept.id, "training.learning_rate": "1e-3", "seed": "4"}
    wrong = client.post(f"/r/{run.id}/fork", typed | {"training.steps": "1"})
    assert wrong.status_code == 400
    assert "Use more than 2." in wrong.content.decode()
    assert 'value="1e-3"' in wrong.content.decode()
    client.post(f"/r/{run.id}/fork", typed | {"training.steps": "300"})
    new = Run.objects.get(parent=run)
    assert (new.name, new.seed, new.config["training"]["learning_rate"]) == ("mine", 4, 0.001)


def test_header_of_a_failed_run_says_where_what_is_left_and_what_to_do(
    people: People, run: Run, kept: Checkpoint
) -> None:
    Run.objects.filter(id=run.id).update(
        status="failed", ended_at=Now(), lease_until=None, reason="The loss became NaN.", phase="training"
    )
    seq = run.last_seq + 1
    Event.objects.create(
        run=run, seq=seq, epoch=1, kind="log", step=3, at=Now(), body={"level": "error", "message": "NaN"}
    )
    page = people.client("editor").get(f"/r/{run.id}/").content.decode()
    assert "The loss became NaN." in page
    assert "in step 4, while training" in page
    assert "Retry goes on from step 2, in this run." in page
    assert f"#event-{seq}" in page
    assert 'value="retry"' in page
    assert f"/r/{run.id}/fork" in page
    seen = people.client("viewer").get(f"/r/{run.id}/").content.decode()
    assert 'value="retry"' not in seen
