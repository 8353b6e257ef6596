"""What may be asked of a worker. A message holds the id of a run, an export, an import, a probe or a
verification and is a hint: twice, late or never. That of a run says only that its class has something to do:
a worker takes what is next there.
"""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeGuard

from django.db import InterfaceError, OperationalError, connections

from webapp import broker
from webapp.limits import LEASE_SECONDS
from webapp.queue import order
from webapp.runs.models import Run
from workers import exports, imports, lease, probing, verifying
from workers.celery import app, draining, must_leave, urgency
from workers.jobs import Held, J
from workers.lease import Lease
from workers.limits import RETRY_SECONDS
from workers.supervisor import supervise

logger = logging.getLogger(__name__)


@app.task(name=broker.TRAIN_RUN, bind=True, ignore_result=True)  # type: ignore[untyped-decorator] # Celery
def train_run(self: Any, run_id: object) -> None:
    """Work on the run that is next in this one's class. `Any`: Celery's task instance has no types."""
    if not _is_id(run_id, "run") or _takes_nothing():
        return
    queue, held = _take_next(run_id, self.request.hostname or "worker")
    if held is None:
        return
    supervise(held, told_to_leave=urgency)
    _tell_of_next(queue)


def _take_next(run_id: int, owner: str) -> tuple[str, Lease | None]:
    """The class of the run, and what may be worked on there."""
    queue, mark = "", uuid.uuid4()
    try:
        queue = Run.objects.filter(id=run_id).values_list("queue", flat=True).first() or ""
        held = lease.claim_next(queue, owner, mark) if queue else None
    except (OperationalError, InterfaceError) as error:
        logger.warning("Run %s waits for the sweeper: the database does not answer (%s).", run_id, error)
        connections.close_all()
        return queue, _claimed(mark) if queue else None
    finally:
        connections.close_all()
    if held is None:
        logger.info("Run %s does not wait for a worker, nor does another that may be taken.", run_id)
    return queue, held


def _claimed(mark: uuid.UUID) -> Lease | None:
    """Whether a claim arrived whose answer did not: asked again and again, until its lease would be over."""
    end, pauses = time.monotonic() + LEASE_SECONDS, itertools.chain(RETRY_SECONDS, itertools.repeat(1.0))
    while time.monotonic() < end and not _takes_nothing():
        try:
            held = lease.claimed(mark)
        except (OperationalError, InterfaceError):
            time.sleep(next(pauses))
            continue
        finally:
            connections.close_all()
        if held is not None:
            logger.warning("Run %s was taken by a claim whose answer was lost.", held.run_id)
        return held
    return None


def _tell_of_next(queue: str) -> None:
    """A run that waited for this one's place, by its project's limit, was told of when there was none."""
    try:
        run_id = order.next_run(queue)
    except (OperationalError, InterfaceError):
        return  # the sweeper tells
    finally:
        connections.close_all()
    if run_id is not None:
        broker.send_train_run(run_id, queue)


def _takes_nothing() -> bool:
    return must_leave() or draining.is_set()


@app.task(name=broker.WRITE_EXPORT, bind=True, ignore_result=True)  # type: ignore[untyped-decorator] # Celery
def write_export(self: Any, export_id: object) -> None:
    """Write the export's file, if it waits for a worker. `Any`: see `train_run`."""
    _work_off("export", export_id, exports.claim, exports.work_off, self.request.hostname or "worker")


@app.task(name=broker.READ_IMPORT, bind=True, ignore_result=True)  # type: ignore[untyped-decorator] # Celery
def read_import(self: Any, import_id: object) -> None:
    """Make a run of the uploaded file, if it waits for a worker. `Any`: see `train_run`."""
    _work_off("import", import_id, imports.claim, imports.work_off, self.request.hostname or "worker")


@app.task(name=broker.SAMPLE_PROBE, bind=True, ignore_result=True)  # type: ignore[untyped-decorator] # Celery
def sample_probe(self: Any, probe_id: object) -> None:
    """Sample the probe, if it waits for a worker."""
    if not _is_id(probe_id, "probe") or _takes_nothing():
        return
    try:
        held = probing.claim(probe_id, self.request.hostname or "worker")
    except (OperationalError, InterfaceError) as error:
        logger.warning("Probe %s waits for the sweeper: the database does not answer (%s).", probe_id, error)
        return
    finally:
        connections.close_all()
    if held is None:
        logger.info("Probe %s does not wait for a worker; nothing to do.", probe_id)
        return
    probing.sample(held, told_to_leave=must_leave)


@app.task(name=broker.VERIFY_ANSWER, bind=True, ignore_result=True)  # type: ignore[untyped-decorator] # Celery
def verify_answer(self: Any, verification_id: object) -> None:
    """Judge the answer, if it waits for a worker. `Any`: see `train_run`."""
    _work_off(
        "verification",
        verification_id,
        verifying.claim,
        verifying.work_off,
        self.request.hostname or "worker",
    )


def _work_off(
    what: str,
    job_id: object,
    claim: Callable[[int, str, Callable[[], bool]], Held[J] | None],
    work_off: Callable[[Held[J]], None],
    owner: str,
) -> None:
    """Claim the job that a message names, and do it."""
    if not _is_id(job_id, what) or _takes_nothing():
        return
    try:
        held = claim(job_id, owner, must_leave)
        if held is not None:
            work_off(held)
    except (OperationalError, InterfaceError) as error:
        logger.warning(
            "%s %s waits for the sweeper: the database does not answer (%s).", what.title(), job_id, error
        )
    finally:
        connections.close_all()


def _is_id(value: object, what: str) -> TypeGuard[int]:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63:
        return True
    logger.warning("A message names the %s %.80r, which is no id; it is dropped.", what, value)
    return False
