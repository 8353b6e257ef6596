"""What `make demo` shows: an admin, a project, a dataset, a base model, and a run that learns."""

from __future__ import annotations

from dataclasses import dataclass

from django.db import connection, transaction

from trainer.presets import PRESETS
from webapp.accounts.models import User
from webapp.projects.access import Role
from webapp.projects.models import Dataset, Membership, ModelSource, Project
from webapp.runs import services
from webapp.runs.models import Run

ADMIN = "admin"
PROJECT = "demo"
PRESET = "treerpo-tiny"
TINY_REASONER = "tiny-reasoner"
_LOCK = 0x61726264  # "arbd": two `make demo` at once make one demo


@dataclass(frozen=True, slots=True)
class DemoContent:
    """`created`: this call made and queued the run; else it is the newest one that was there."""

    project_slug: str
    run_id: int
    created: bool
    admin: User


def ensure_tiny_reasoner() -> None:
    """The base model that comes with Arborist, known to this site."""
    defaults = {"name": "Tiny reasoner", "path": TINY_REASONER}
    ModelSource.objects.get_or_create(slug=TINY_REASONER, defaults=defaults)


def ensure_demo() -> DemoContent:
    """Make what is missing; a second call changes nothing. The admin has no password, only login links."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        admin = User.objects.filter(username=ADMIN).first()
        if admin is None:
            admin = User.objects.create_user(ADMIN, password=None)
        project, _ = Project.objects.get_or_create(slug=PROJECT, defaults={"name": "Demo"})
        Membership.objects.get_or_create(project=project, user=admin, defaults={"role": Role.ADMIN})
        ensure_tiny_reasoner()
        preset = PRESETS[PRESET]
        Dataset.objects.get_or_create(
            project=project,
            slug="chain",
            defaults={"name": "Chains of sums", "spec": preset.config.data.model_dump(mode="json")},
        )
        run = Run.objects.filter(project=project).order_by("-id").first()
        created = run is None
        if run is None:
            run = services.create_run(project, admin, preset.config, preset.title, idempotency_key="demo")
    return DemoContent(project.slug, run.id, created, admin)
