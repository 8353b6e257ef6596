"""Rows and events that the workers' tests begin with."""

from __future__ import annotations

import itertools
from typing import Any

from trainer.config import RunConfig
from trainer.events import (
    CheckpointSaved,
    Finished,
    LogLine,
    Metrics,
    Started,
    TreeSampled,
    TreeSummary,
)
from webapp.accounts.models import User
from webapp.projects.models import Membership, ModelSource, Project
from webapp.runs.models import Run
from webapp.runs.states import append_status_event

_numbers = itertools.count(1)
NAN = float("nan")


def make_user(role: str = "editor", project: Project | None = None) -> User:
    user = User.objects.create_user(f"user-{next(_numbers)}", password=None)
    if project is not None:
        Membership.objects.create(project=project, user=user, role=role)
    return user


def make_project() -> Project:
    number = next(_numbers)
    return Project.objects.create(slug=f"lab-{number}", name=f"Lab {number}")


def make_run(project: Project | None = None, user: User | None = None, **changes: Any) -> Run:
    """A queued run with its first event, as `services.create_run` leaves it. No message is sent."""
    project = project or make_project()
    config = changes.pop("run_config", None) or RunConfig()
    ModelSource.objects.get_or_create(
        slug="tiny-reasoner", defaults={"name": "Tiny reasoner", "path": "tiny-reasoner"}
    )
    run = Run.objects.create(
        **{
            "project": project,
            "name": f"run {next(_numbers)}",
            "config": config.model_dump(mode="json"),
            "config_sha256": config.sha256(),
            "preset": config.preset,
            "seed": config.seed,
            "colour": 1,
            "created_by": user or make_user(project=project),
            "steps_total": config.training.steps,
        }
        | changes
    )
    append_status_event(run.id, 0, "queued", "Waiting for a worker.")
    run.refresh_from_db()
    return run


def started(step: int = 0, resumed_from: str | None = None) -> Started:
    return Started(
        time=1000.0,
        step=step,
        resumed_from=resumed_from,
        config_sha256="c" * 64,
        weights_sha256="a" * 64,
        parameters=100,
        engine="local",
        device="cpu",
        versions={"torch": "2"},
        training_problems=None,
        evaluation_problems=8,
    )


def metrics(step: int, **values: float) -> Metrics:
    """`reward__mean=0.5` is `reward/mean`."""
    named = {name.replace("__", "/"): value for name, value in values.items()}
    return Metrics(time=1000.0 + step, step=step, values=named)


def tree(step: int, index: int = 0, payload: bytes = b"payload", **changes: Any) -> TreeSampled:
    summary = {
        "n_nodes": 7,
        "n_leaves": 4,
        "n_correct": 2,
        "n_unparsed": 1,
        "n_truncated": 0,
        "n_errors": 0,
        "depth": 2,
        "tokens": 30,
        "tokens_flat": 44,
        "value": 0.5,
        "advantage_min": -2.0,
        "advantage_max": 2.0,
        "zero_variance_share": 0.25,
        "mean_entropy": 0.3,
    }
    return TreeSampled(
        time=1000.0 + step,
        step=step,
        index=index,
        problem_id=changes.pop("problem_id", f"problem {index}"),
        prompt=changes.pop("prompt", "1 + 1 ="),
        summary=TreeSummary(**(summary | changes)),
        payload=payload,
    )


def checkpoint(step: int, weights: str = "b" * 64) -> CheckpointSaved:
    return CheckpointSaved(
        time=1000.0 + step, step=step, path=f"checkpoints/step-{step}", bytes=9, weights_sha256=weights
    )


def log(message: str) -> LogLine:
    return LogLine(time=1000.0, level="info", message=message)


def finished(outcome: Any = "succeeded", step: int = 3, reason: str = "All 3 steps are done.") -> Finished:
    return Finished(time=2000.0, outcome=outcome, step=step, reason=reason, weights_sha256="d" * 64)


def numbered(events: list[Any], first: int = 1) -> list[tuple[int, Any]]:
    return list(enumerate(events, first))
