"""Brings back exports whose worker was lost or that nobody was told of, and deletes what is too old.

A round of `manage.py sweep`. It uses the database's clock for rows, and anything it does may be done twice.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from django.db import connection, transaction
from django.db.models.functions import Now

from webapp import broker
from webapp.exports import files
from webapp.exports.models import UNFINISHED, Export, ExportStatus
from webapp.exports.services import delete_file
from webapp.limits import (
    EXPORT_ATTEMPTS,
    EXPORT_FORGET_SECONDS,
    EXPORT_KEEP_SECONDS,
    EXPORT_LEASE_SECONDS,
    RESEND_QUEUED_SECONDS,
)

LOCK = 0x4152_424F_4558  # any number that nobody else uses: "ARBOEX"
MAX_AT_ONCE = 100
ORPHAN_SECONDS = 3600  # a file without a row, or half a file, that was not written to for so long

logger = logging.getLogger(__name__)


def sweep_exports() -> None:
    """One round. Does nothing while another process is at it. Raises the database's errors."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK])
            if not cursor.fetchone()[0]:
                return
            cursor.execute(
                "SELECT now() - pg_postmaster_start_time() < make_interval(secs => %s)",
                [EXPORT_LEASE_SECONDS],
            )
            has_just_started = cursor.fetchone()[0]
        if not has_just_started:  # nobody could renew while the database was away
            _give_up_lost()
        forgotten = timedelta(seconds=RESEND_QUEUED_SECONDS)
        waiting = Export.objects.filter(status=ExportStatus.QUEUED, queued_at__lt=Now() - forgotten)
        ids = list(waiting.order_by("id").values_list("id", flat=True)[:MAX_AT_ONCE])
        for export in Export.objects.filter(status=ExportStatus.SUCCEEDED, expires_at__lt=Now())[
            :MAX_AT_ONCE
        ]:
            days = EXPORT_KEEP_SECONDS // 86_400
            delete_file(export, f"Its file was deleted after {days} days.")
        old = timedelta(seconds=EXPORT_FORGET_SECONDS)
        ended = Export.objects.exclude(status__in=(*UNFINISHED, ExportStatus.SUCCEEDED))
        ended.filter(ended_at__lt=Now() - old).delete()
    # A queue that still holds messages has no free worker, and more of them would only pile up.
    if ids and broker.waiting(broker.EXPORT_QUEUE) == 0:
        for export_id in ids:
            if not broker.send_write_export(export_id):
                break
    _delete_orphans()


def _give_up_lost() -> None:
    expired = Export.objects.filter(status=ExportStatus.RUNNING, lease_until__lt=Now())
    for export in expired.select_for_update(skip_locked=True)[:MAX_AT_ONCE]:
        mine = Export.objects.filter(id=export.id, epoch=export.epoch, status=ExportStatus.RUNNING)
        if export.attempts >= EXPORT_ATTEMPTS:
            mine.update(
                status=ExportStatus.FAILED,
                ended_at=Now(),
                lease_until=None,
                lease_owner="",
                reason=f"Contact with its worker was lost {export.attempts} times. Look at that machine's "
                "memory, disk and log, or export fewer trees.",
            )
        else:
            mine.update(
                status=ExportStatus.QUEUED,
                queued_at=Now() - timedelta(seconds=RESEND_QUEUED_SECONDS + 1),  # so it is sent in this round
                lease_until=None,
                lease_owner="",
                reason="Contact with its worker was lost; another one begins anew.",
            )
        logger.warning("Export %s: contact with %s was lost.", export.id, export.lease_owner)


def _delete_orphans() -> None:
    """Files that no row knows: of a worker that died, or of a project that was deleted."""
    if not files.folder().is_dir():
        return
    for path in files.folder().iterdir():
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            continue
        if age > ORPHAN_SECONDS and not Export.objects.filter(file=path.name).exists():
            logger.info("The file %s belongs to no export; it is deleted.", path.name)
            files.delete(path.name)
