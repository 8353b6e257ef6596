"""People with roles, a run with everything in it, and a project they are not in.

Nothing of Django is imported up here: pytest reads this file before the settings stand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from trainer.config import RunConfig
from trainer.presets import PRESETS

if TYPE_CHECKING:
    from tests.webapp.material import People
    from webapp.projects.models import Project
    from webapp.runs.models import Run


@pytest.fixture(autouse=True)
def _no_call_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix of calls is faster than any person; the limit has a test of its own."""
    monkeypatch.setattr("webapp.api.API_CALLS", 100_000)


@pytest.fixture
def project(db: None) -> Project:
    from webapp.projects.models import ModelSource, Project

    ModelSource.objects.create(slug="tiny-reasoner", name="Tiny reasoner", path="tiny-reasoner")
    return Project.objects.create(slug="lab", name="Lab")


@pytest.fixture
def people(project: Project) -> People:
    from tests.webapp.material import People
    from webapp.accounts.models import User
    from webapp.projects.access import Role
    from webapp.projects.models import Membership, Project

    other = Project.objects.create(slug="elsewhere", name="Elsewhere")
    made = {name: User.objects.create_user(name) for name in ("viewer", "editor", "admin", "stranger")}
    for name in ("viewer", "editor", "admin"):
        Membership.objects.create(project=project, user=made[name], role=Role(name))
    Membership.objects.create(project=other, user=made["stranger"], role=Role.ADMIN)
    return People(**made)


@pytest.fixture
def config() -> RunConfig:
    return PRESETS["treerpo-tiny"].config


@pytest.fixture
def run(project: Project, people: People, config: RunConfig) -> Run:
    """A run that is being worked on: 3 steps with metrics, a tree at steps 1 and 2."""
    from tests.webapp.material import add_metrics, add_tree, start, worked_tree
    from webapp.runs import services

    run = services.create_run(project, people.editor, config, "first")
    start(run)
    for step in (1, 2, 3):
        add_metrics(
            run, step, {"reward/mean": step / 10, "speed/step_seconds": 2.0, "eval/pass1_sampled": 0.5}
        )
    for step in (1, 2):
        add_tree(run, step, worked_tree(step))
    run.refresh_from_db()
    return run
