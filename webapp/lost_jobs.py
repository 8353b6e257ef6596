"""What a sweeper does for every kind of job, exports, imports and verifications alike: those whose worker was
lost wait again, and workers are told of those that nobody was told of. Anything here may be done twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from django.db import connection
from django.db.models.functions import Now

from webapp import broker
from webapp.jobs import Job, JobStatus
from webapp.limits import JOB_ATTEMPTS, JOB_LEASE_SECONDS, RESEND_QUEUED_SECONDS

MAX_AT_ONCE = 100
ORPHAN_SECONDS = 3600  # a file that no job knows, and that was not written to for so long

logger = logging.getLogger(__name__)


def is_alone(lock: int) -> bool:
    """Whether no other process sweeps under this number until the transaction around it ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [lock])
        return bool(cursor.fetchone()[0])


def give_up_lost(model: type[Job], advice: str, *, attempts: int = JOB_ATTEMPTS) -> None:
    """Jobs whose lease ran out wait for another worker, or have failed for good: then `advice` says what to
    do. By the database's clock, and not just after its start: nobody could renew while it was away.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT now() - pg_postmaster_start_time() < make_interval(secs => %s)",
            [JOB_LEASE_SECONDS],
        )
        if cursor.fetchone()[0]:
            return
    rows = model._default_manager
    expired = rows.filter(status=JobStatus.RUNNING, lease_until__lt=Now())
    for job in expired.select_for_update(skip_locked=True)[:MAX_AT_ONCE]:
        mine = rows.filter(pk=job.pk, epoch=job.epoch, status=JobStatus.RUNNING)
        if job.attempts >= attempts:
            mine.update(
                status=JobStatus.FAILED,
                ended_at=Now(),
                lease_until=None,
                lease_owner="",
                reason=f"Contact with its worker was lost {job.attempts} times. Look at that machine's "
                f"memory, disk and log, or {advice}.",
            )
        else:
            mine.update(
                status=JobStatus.QUEUED,
                queued_at=Now() - timedelta(seconds=RESEND_QUEUED_SECONDS + 1),  # so it is sent in this round
                lease_until=None,
                lease_owner="",
                reason="Contact with its worker was lost; another one begins anew.",
            )
        logger.warning("%s %s: contact with %s was lost.", model._meta.object_name, job.pk, job.lease_owner)


def forgotten(model: type[Job]) -> list[int]:
    """Those that have waited so long that perhaps no worker was told of them."""
    since = Now() - timedelta(seconds=RESEND_QUEUED_SECONDS)
    waiting = model._default_manager.filter(status=JobStatus.QUEUED, queued_at__lt=since)
    return list(waiting.order_by("pk").values_list("pk", flat=True)[:MAX_AT_ONCE])


def tell_again(ids: list[int], send: Callable[[int], bool], queue: str = broker.EXPORT_QUEUE) -> None:
    # A queue that still holds messages has no free worker, and more of them would only pile up.
    if ids and broker.waiting(queue) == 0:
        for job_id in ids:
            if not send(job_id):
                break


def delete_orphans(folder: Path, is_known: Callable[[str], bool], delete: Callable[[str], None]) -> None:
    """Files, by name, that no job knows: of a process that died, or of a project that was deleted."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            continue
        if age > ORPHAN_SECONDS and path.is_file() and not is_known(path.name):
            logger.info("The file %s in %s belongs to no job; it is deleted.", path.name, folder.name)
            delete(path.name)
