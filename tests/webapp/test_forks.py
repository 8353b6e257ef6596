from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now

from tests.webapp.material import People
from trainer.presets import PRESETS
from webapp.projects.models import Project
from webapp.runs.clones import free_name
from webapp.runs.models import Attempt, Checkpoint, Event, Run
from webapp.runs.services import check_name


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


def test_page_of_a_fork_draws_what_it_came_from_as_far_as_one_may_see_it(
    people: People, run: Run, kept: Checkpoint
) -> None:
    child = Run.objects.get(
        id=fork(people, run, checkpoint=kept.id, changes={"training.steps": 9}).json()["id"]
    )
    grandchild = Run.objects.get(
        id=fork(people, run, checkpoint=kept.id, changes={"training.steps": 8}).json()["id"]
    )
    Run.objects.filter(id=grandchild.id).update(parent=child, parent_step=4)
    client = people.client("viewer")
    drawn = client.get(f"/r/{grandchild.id}/").context["ancestors"]
    assert [(one["id"], one["to_step"]) for one in drawn] == [(child.id, 4), (run.id, 2)]
    Run.objects.filter(id=child.id).update(project=Project.objects.get(slug="elsewhere"))
    assert client.get(f"/r/{grandchild.id}/").context["ancestors"] == []


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


def test_a_run_keeps_only_so_many_checkpoints_for_forks(
    people: People, run: Run, kept: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.runs.forks.FORKED_CHECKPOINTS_PER_RUN", 0)
    refused = fork(people, run, checkpoint=kept.id)
    assert (refused.status_code, "that is the most" in refused.json()["detail"]) == (409, True)
    Checkpoint.objects.filter(id=kept.id).update(is_pinned=True)
    assert fork(people, run, checkpoint=kept.id).status_code == 201


def test_checkpoint_that_is_gone_is_refused_with_those_that_are_there(
    people: People, run: Run, kept: Checkpoint
) -> None:
    gone = Checkpoint.objects.get(run=run, step=1)
    response = fork(people, run, checkpoint=gone.id)
    assert (response.status_code, response.json()["detail"]) == (
        409,
        "That checkpoint is not kept any more. These are: step 2.",
    )


def form_of(people: People, address: str) -> dict[str, str]:
    """What a browser would send of the form at `address`, untouched."""
    context = people.client("editor").get(address).context
    fields = [*context["own_fields"]]
    for section in context["sections"]:
        fields += [*section.fields, *section.advanced]
    return {item.path: item.value for item in fields if not item.fixed} | {"idempotency_key": "k"}


def test_form_forks_with_any_setting_and_keeps_what_was_typed(
    people: People, run: Run, kept: Checkpoint
) -> None:
    client, address = people.client("editor"), f"/r/{run.id}/fork"
    page = client.get(address).content.decode()
    assert f'<option value="{kept.id}" selected>step 2' in page
    typed = form_of(people, address)
    assert "model.path" not in typed
    typed |= {"name": "mine", "training.learning_rate": "1e-3", "seed": "4", "sampler.branching": "2, 2"}
    wrong = client.post(address, typed | {"training.steps": "1"})
    assert wrong.status_code == 400
    assert "Use more than 2." in wrong.content.decode()
    assert 'value="1e-3"' in wrong.content.decode()
    # The model's fields are not in the form, so what somebody sends for them anyway is not looked at.
    made = client.post(address, typed | {"training.steps": "300", "model.path": "other"})
    new = Run.objects.get(parent=run)
    assert (made.status_code, new.name, new.seed, new.steps_total) == (302, "mine", 4, 300)
    assert new.config["training"]["learning_rate"] == 0.001
    assert new.config["model"] == run.config["model"]


def test_form_does_not_fork_another_checkpoint_than_the_one_that_was_chosen(
    people: People, run: Run, kept: Checkpoint
) -> None:
    client, address = people.client("editor"), f"/r/{run.id}/fork"
    gone = Checkpoint.objects.get(run=run, step=1)
    typed = form_of(people, address) | {"training.steps": "300", "checkpoint": str(gone.id)}
    refused = client.post(address, typed)
    assert refused.status_code == 400
    assert "That checkpoint is not kept any more. Step 2 is chosen instead" in refused.content.decode()
    assert not Run.objects.filter(parent=run).exists()
    assert client.post(address, typed | {"checkpoint": str(kept.id)}).status_code == 302


def test_fork_form_says_at_once_that_a_value_head_does_not_fit(
    people: People, run: Run, kept: Checkpoint
) -> None:
    other = PRESETS["rest-mcts-tiny"].config.model_dump(mode="json")
    Run.objects.filter(id=run.id).update(config=other)
    asked = {"objective.value_weight": "0", "sampler.evaluator": "rollout"}
    context = people.client("editor").get(f"/r/{run.id}/fork", asked).context
    errors = {path: message for path, message, _ in context["errors"]}
    assert "cannot change in a fork" in errors["objective.value_weight"]


def test_clone_begins_anew_with_the_config_of_a_run(people: People, run: Run) -> None:
    Run.objects.filter(id=run.id).update(name="first-7")
    address = f"/p/lab/new?from={run.id}"
    typed = form_of(people, address) | {"from": str(run.id)}
    assert typed["name"] == "first-8"
    made = people.client("editor").post(address, typed | {"seed": "9", "training.steps": "77"})
    new = Run.objects.get(cloned_from=run)
    assert (made.status_code, new.name, new.seed, new.steps_total) == (302, "first-8", 9, 77)
    assert (new.parent, new.step, new.status) == (None, 0, "queued")
    unchanged = {"seed": None, "training": None}
    assert {**new.config, **unchanged} == {**run.config, **unchanged}
    page = people.client("viewer").get(f"/r/{new.id}/").content.decode()
    assert f'config of <a href="/r/{run.id}/">first-7</a>' in page


def test_clone_by_api_is_made_once_by_its_key_and_named_by_itself(people: People, run: Run) -> None:
    client, body = people.client("editor"), {"changes": {"seed": 3}, "idempotency_key": "k"}
    made = [
        client.post(f"/api/v1/runs/{run.id}/clone", body, content_type="application/json").json()
        for _ in range(2)
    ]
    assert made[0]["id"] == made[1]["id"]
    assert (made[0]["name"], made[0]["seed"]) == ("first 2", 3)


@pytest.mark.parametrize("name", ["a" * 118 + "-9", "a" * 120, "a" * 113 + "-999999"])
def test_clone_of_a_run_with_a_long_name_has_a_name_too(people: People, run: Run, name: str) -> None:
    Run.objects.filter(id=run.id).update(name=name)
    free = free_name(run.project, name)
    assert free != name
    assert check_name(free) == free


def test_a_run_of_another_project_is_no_start(people: People, run: Run) -> None:
    assert people.client("stranger").get(f"/p/elsewhere/new?from={run.id}").status_code == 404


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
    # Its second attempt found the checkpoint damaged: to go on from there is no promise to make.
    Run.objects.filter(id=run.id).update(lease_epoch=2)
    Attempt.objects.create(run=run, epoch=2, owner="w", outcome="paused", ended_at=Now(), last_step=3)
    page = people.client("editor").get(f"/r/{run.id}/").content.decode()
    assert "Retry tries the checkpoint of step 2 again, once what is said above is put right" in page
