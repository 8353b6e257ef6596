"""The verbs of a run that people speak: create it, stop it. Workers have theirs in `workers`."""

from __future__ import annotations

import logging
import unicodedata

from django.db import IntegrityError, connection, transaction
from django.db.models.functions import Now

from trainer.config import RunConfig
from trainer.schema.data import Data, HubData, JsonlData, ParquetData
from trainer.text import storable
from webapp import broker
from webapp.accounts.models import User
from webapp.errors import RequestError
from webapp.live.poke import poke
from webapp.projects.models import Dataset, ModelSource, Project
from webapp.runs.models import CLAIMABLE, LEASED, Event, Run, RunStatus

log = logging.getLogger(__name__)

MAX_NAME_LETTERS = 120
N_COLOURS = 10


def check_name(name: str) -> str:
    """`name` without outer blanks. Raises RequestError(400) when nobody could read it or the database could
    not hold it.
    """
    name = name.strip()
    if "\x00" in name or name != storable(name):
        raise _wrong("name", "The name holds a NUL or half a surrogate pair. Remove it.")
    if len(name) > MAX_NAME_LETTERS:
        raise _wrong("name", f"The name has {len(name)} letters. Use at most {MAX_NAME_LETTERS}.")
    # Cc, Cf: control and invisible formatting; Z: blanks. Formatting inside a name stays as typed.
    if not any(unicodedata.category(letter)[0] not in "CZ" for letter in name):
        raise _wrong("name", "The name has no visible letter. Give the run a name.")
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        raise _wrong("name", "The name holds a line break or another control character. Remove it.")
    return name


def check_sources(project: Project, config: RunConfig) -> None:
    """A run may start from models this server knows and data of its own project. Raises RequestError(400)
    otherwise.
    """
    if not ModelSource.objects.filter(slug=config.model.path).exists():
        known = ", ".join(ModelSource.objects.values_list("slug", flat=True)[:20]) or "none yet"
        raise _wrong(
            "model.path", f"There is no base model called {config.model.path[:80]!r}. Known: {known}."
        )
    source = source_of(config.data)
    if source is None:
        return
    field, value = source
    datasets = Dataset.objects.filter(project=project, spec__kind=config.data.kind)
    if not datasets.filter(**{f"spec__{field}": value}).exists():
        raise _wrong(
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


def create_run(
    project: Project, user: User, config: RunConfig, name: str, idempotency_key: str | None = None
) -> Run:
    """A queued run with its first event; a worker is told after the commit.

    The same `idempotency_key` again gives the run that the first call made, so a double click makes one run.
    Raises RequestError: 400 for a bad name, model or dataset, 409 for a key that was used for another config.
    """
    name = check_name(name)
    check_sources(project, config)
    if idempotency_key is not None and not (0 < len(idempotency_key) <= 64 and idempotency_key.isprintable()):
        raise _wrong("idempotency_key", "The idempotency key must have 1 to 64 printable letters.")
    try:
        with transaction.atomic():
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
            )
            append_status_event(
                run.id, 0, RunStatus.QUEUED, "Waiting for a worker.", actor=user.get_username()
            )
            # The row is the job and this is only a hint: without a broker the sweeper sends it again.
            transaction.on_commit(lambda: broker.send_train_run(run.id, run.queue), robust=True)
    except IntegrityError as error:
        if idempotency_key is None or "idempotency_key_is_used_once_per_project" not in str(error):
            raise
        run = Run.objects.get(project=project, idempotency_key=idempotency_key)
        if run.config_sha256 != config.sha256() or run.name != name:
            raise RequestError(
                409,
                f"This idempotency key made run {run.id} from another request. Use a new key for a new run.",
            ) from error
        return run
    run.refresh_from_db()
    return run


def request_stop(run: Run, user: User) -> Run:
    """Cancel a run that waits, ask the worker of one that works. Asking twice changes nothing.

    Raises RequestError(409) for a run that has ended.
    """
    name = user.get_username()
    # A run may move between the two updates (a lost worker's is queued again), so the pair is tried again.
    for _ in range(3):
        with transaction.atomic():
            waiting = Run.objects.filter(id=run.id, status__in=CLAIMABLE)
            reason = (
                f"Cancelled by {name} before it started."
                if run.step == 0
                else f"Cancelled by {name} while it waited."
            )
            if waiting.update(
                status=RunStatus.CANCELLED,
                ended_at=Now(),
                reason=reason,
                stop_requested_at=Now(),
                stop_requested_by=user,
                lease_until=None,
            ):
                append_status_event(run.id, run.lease_epoch, RunStatus.CANCELLED, reason, actor=name)
                break
            working = Run.objects.filter(id=run.id, status__in=LEASED, stop_requested_at__isnull=True)
            if working.update(stop_requested_at=Now(), stop_requested_by=user):
                append_status_event(run.id, run.lease_epoch, None, f"Stop requested by {name}.", actor=name)
                break
        run.refresh_from_db()
        if run.status in LEASED:
            break
        if not run.is_active:
            raise RequestError(409, f"{run.name} has already ended ({run.status}); there is nothing to stop.")
    run.refresh_from_db()
    return run


def append_status_event(run_id: int, epoch: int, status: str | None, reason: str, actor: str = "") -> int:
    """Write the run's next event, of kind "status", and poke. Returns its seq. `status` None: as it stands.

    Call it in a transaction; it takes the run's row lock, if that is not held already, and keeps it to the
    commit.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE arborist_run SET last_seq = last_seq + 1 WHERE id = %s "
            "RETURNING last_seq, project_id, status, step",
            [run_id],
        )
        seq, project_id, stands, step = cursor.fetchone()
        body = {
            "status": str(status or stands),
            "reason": storable(reason),
            "actor": storable(actor),
            "epoch": epoch,
        }
        Event.objects.create(
            run_id=run_id, seq=seq, epoch=epoch, kind="status", step=step, at=Now(), body=body
        )
    poke(run_id, project_id, seq)
    return int(seq)


def _wrong(path: str, message: str) -> RequestError:
    return RequestError(400, message, [{"path": path, "message": message}])
