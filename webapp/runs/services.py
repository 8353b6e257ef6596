"""Making a run. What people ask of it later is in `controls`; workers have their verbs in `workers`."""

from __future__ import annotations

import logging
import unicodedata

from django.db import IntegrityError, transaction

from trainer.config import RunConfig
from trainer.schema.data import Data, HubData, JsonlData, ParquetData
from trainer.text import storable
from webapp import broker
from webapp.accounts.models import User
from webapp.errors import RequestError, bad_field
from webapp.limits import WAITING_PER_PERSON, WAITING_PER_PROJECT
from webapp.projects.models import Dataset, ModelSource, Project
from webapp.queue.capacity import check_capacity
from webapp.runs.models import CLAIMABLE, Checkpoint, Run, RunStatus
from webapp.runs.states import append_status_event

log = logging.getLogger(__name__)

MAX_NAME_LETTERS = 120
N_COLOURS = 10


def check_name(name: str) -> str:
    """`name` without outer blanks. Raises RequestError(400) when nobody could read it or the database could
    not hold it.
    """
    name = name.strip()
    if "\x00" in name or name != storable(name):
        raise bad_field("name", "The name holds a NUL or half a surrogate pair. Remove it.")
    if len(name) > MAX_NAME_LETTERS:
        raise bad_field("name", f"The name has {len(name)} letters. Use at most {MAX_NAME_LETTERS}.")
    # Cc, Cf: control and invisible formatting; Z: blanks. Formatting inside a name stays as typed.
    if not any(unicodedata.category(letter)[0] not in "CZ" for letter in name):
        raise bad_field("name", "The name has no visible letter. Give the run a name.")
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        raise bad_field("name", "The name holds a line break or another control character. Remove it.")
    return name


def check_sources(project: Project, config: RunConfig) -> None:
    """A run may start from models this server knows and data of its own project. Raises RequestError(400)
    otherwise.
    """
    if not ModelSource.objects.filter(slug=config.model.path).exists():
        known = ", ".join(ModelSource.objects.values_list("slug", flat=True)[:20]) or "none yet"
        raise bad_field(
            "model.path", f"There is no base model called {config.model.path[:80]!r}. Known: {known}."
        )
    source = source_of(config.data)
    if source is None:
        return
    field, value = source
    datasets = Dataset.objects.filter(project=project, spec__kind=config.data.kind)
    if not datasets.filter(**{f"spec__{field}": value}).exists():
        raise bad_field(
            f"data.{field}",
            f"{value[:200]!r} is not a dataset of {project.name}. "
            f"Import it first: manage.py import_dataset {project.slug} FILE.",
        )


def source_of(data: Data) -> tuple[str, str] | None:
    """The knob that says where the problems come from, and its value; None when they are generated."""
    if isinstance(data, JsonlData | ParquetData):
        return "path", data.path
    if isinstance(data, HubData):
        return "name", data.name
    return None


def check_room(project: Project, owner: User) -> None:
    """One more run of `owner` may wait in `project`. Holds the project's row to the end of the transaction:
    two at once are counted one by one. Raises RequestError(409).
    """
    Project.objects.select_for_update(no_key=True).get(id=project.id)
    waiting = Run.objects.filter(status__in=CLAIMABLE)
    for who, n, most in (
        (owner.get_username(), waiting.filter(created_by=owner).count(), WAITING_PER_PERSON),
        (project.name, waiting.filter(project=project).count(), WAITING_PER_PROJECT),
    ):
        if n >= most:
            raise RequestError(
                409,
                f"{who} has {n} runs in the queue, and {most} is the most. Wait until some of them have "
                "started, or cancel some.",
            )


def create_run(
    project: Project,
    user: User,
    config: RunConfig,
    name: str,
    idempotency_key: str | None = None,
    *,
    begins_with: Checkpoint | None = None,
    cloned_from: Run | None = None,
) -> Run:
    """A queued run with its first event; a worker is told after the commit. `begins_with`: it is a fork;
    `cloned_from`: whose config it started from.

    The same `idempotency_key` again gives the run that the first call made, so a double click makes one run.
    Raises RequestError: 400 for a bad name, model or dataset, or more processes than any worker has room for;
    409 for a key that was used for another config and where too many runs wait already.
    """
    name = check_name(name)
    check_sources(project, config)
    wanted = config.resources
    check_capacity(wanted.queue, wanted.processes, wanted.engine_processes)
    if idempotency_key is not None and not (0 < len(idempotency_key) <= 64 and idempotency_key.isprintable()):
        raise bad_field("idempotency_key", "The idempotency key must have 1 to 64 printable letters.")
    try:
        with transaction.atomic():
            mine = Run.objects.filter(project=project, idempotency_key=idempotency_key)
            if idempotency_key is None or not mine.exists():
                check_room(project, user)
            last = (
                Run.objects.filter(project=project).order_by("-id").values_list("colour", flat=True).first()
            )
            run = Run.objects.create(
                project=project,
                name=name,
                config=config.model_dump(mode="json"),
                config_sha256=config.sha256(),
                preset=config.preset,
                seed=config.seed,
                queue=config.resources.queue,
                colour=(last or 0) % N_COLOURS + 1,
                created_by=user,
                idempotency_key=idempotency_key,
                steps_total=config.training.steps,
                parent_id=begins_with.run_id if begins_with else None,
                parent_step=begins_with.step if begins_with else None,
                forked_from=begins_with,
                cloned_from=cloned_from,
                step=begins_with.step if begins_with else 0,
            )
            words = "Waiting for a worker."
            if begins_with is not None:
                words = f"Forked from run {begins_with.run_id} at step {begins_with.step}. {words}"
            if cloned_from is not None:
                words = f"Made with the config of run {cloned_from.id}. {words}"
            append_status_event(run.id, 0, RunStatus.QUEUED, words, actor=user.get_username())
            # The row is the job and this is only a hint: without a broker the sweeper sends it again.
            transaction.on_commit(lambda: broker.send_train_run(run.id, run.queue), robust=True)
    except IntegrityError as error:
        if idempotency_key is None or "idempotency_key_is_used_once_per_project" not in str(error):
            raise
        run = Run.objects.get(project=project, idempotency_key=idempotency_key)
        asked = None if begins_with is None else (begins_with.run_id, begins_with.step)
        begun = None if run.parent_step is None else (run.parent_id, run.parent_step)
        if run.config_sha256 != config.sha256() or run.name != name or begun != asked:
            raise RequestError(
                409,
                f"This idempotency key made run {run.id} from another request. Use a new key for a new run.",
            ) from error
        return run
    run.refresh_from_db()
    return run
