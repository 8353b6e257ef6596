"""The study's runs in the database: make them, and read what they came to."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Q

from trainer.config import stored_config
from webapp.accounts.models import User
from webapp.projects.access import Role
from webapp.projects.demo import ADMIN, ensure_tiny_reasoner
from webapp.projects.models import Membership, ModelSource, Project
from webapp.runs import services
from webapp.runs.models import Point, Run, RunStatus
from webapp.study.plan import Cell, config, identity
from webapp.study.results import Result, result_of

PROJECT = "study"
METRICS = (
    "eval/pass1_sampled",
    "eval/pass1_greedy",
    "tree/unique_tokens_total",
    "policy/trained_tokens",
    "speed/cpu_seconds_total",
)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose runs they are."""

    project: Project
    user: User


def ensure_owner() -> Owner:
    """The admin's project `study`, made if it is missing."""
    user = User.objects.filter(username=ADMIN).first() or User.objects.create_user(ADMIN, password=None)
    project, _ = Project.objects.get_or_create(slug=PROJECT, defaults={"name": "Study"})
    Membership.objects.get_or_create(project=project, user=user, defaults={"role": Role.ADMIN})
    ensure_tiny_reasoner()
    return Owner(project, user)


def ensure_model(slug: str, path: str) -> None:
    """A base model that the study made."""
    ModelSource.objects.update_or_create(slug=slug, defaults={"name": slug, "path": path})


def ensure_run(owner: Owner, cell: Cell, tokens: int) -> Run:
    """The cell's run: the one that was made before, or a new one in the queue."""
    wanted = config(cell, tokens)
    return services.create_run(
        owner.project, owner.user, wanted, cell.name, idempotency_key=f"study-{identity(wanted)[:48]}"
    )


def harvest(run: Run, cell: Cell) -> Result:
    """What an ended run came to. Raises ValueError when it has no curve."""
    series: dict[str, dict[int, float]] = {}
    wanted = Q(series__run=run, series__name__in=METRICS, superseded=False)
    for name, step, value in Point.objects.filter(wanted).values_list("series__name", "step", "value"):
        series.setdefault(name, {})[step] = value
    status = "succeeded" if run.status == RunStatus.SUCCEEDED else str(run.status)
    return result_of(cell, identity(stored_config(run.config)), status, series)
