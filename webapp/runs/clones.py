"""A new run with the config of another one."""

from __future__ import annotations

import re

from trainer.config import RunConfig
from webapp.accounts.models import User
from webapp.errors import RequestError
from webapp.projects.models import Project
from webapp.runs.models import Run
from webapp.runs.services import MAX_NAME_LETTERS, create_run

_NUMBERED = re.compile(r"(?P<stem>.*?[-_ ])(?P<n>[0-9]{1,6})")


def free_name(project: Project, name: str) -> str:
    """`name`, or with the next number where the project has such a run: `grpo-7` → `grpo-8`, `base` →
    `base 2`. One query.
    """
    found = _NUMBERED.fullmatch(name)
    most = MAX_NAME_LETTERS - 7  # so that a number has room
    stem, n = (f"{name[: most - 1]} ", 1) if found is None else (found["stem"][:most], int(found["n"]))
    like = Run.objects.filter(project=project, name__startswith=stem.rstrip())
    taken = set(like.values_list("name", flat=True))
    while name in taken:
        n += 1
        name = f"{stem}{n}"
    return name


def clone(
    run: Run, user: User, config: RunConfig, name: str | None, idempotency_key: str | None = None
) -> Run:
    """A queued run of the same project with `config`, which is that of `run` but for what was changed. It
    begins with the base model. Whoever calls it has looked that the user may. `name` None: the next free one.

    Raises RequestError: 409 for an imported run, and those of `create_run`.
    """
    if run.is_imported:
        raise RequestError(409, "This run was imported: it has no config to start a run with.")
    if name is None:
        mine = Run.objects.filter(project=run.project, idempotency_key=idempotency_key)
        made = mine.first() if idempotency_key else None
        name = free_name(run.project, run.name) if made is None else made.name
    return create_run(run.project, user, config, name, idempotency_key, cloned_from=run)
