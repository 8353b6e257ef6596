"""Brings back exports whose worker was lost or that nobody was told of, and deletes what is too old.

A round of `manage.py sweep`. It uses the database's clock for rows, and anything it does may be done twice.
"""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from django.db.models.functions import Now

from webapp import broker, lost_jobs
from webapp.exports import files
from webapp.exports.models import UNFINISHED, Export, ExportStatus
from webapp.exports.services import delete_file
from webapp.limits import EXPORT_FORGET_SECONDS, EXPORT_KEEP_SECONDS

LOCK = 0x4152_424F_4558  # any number that nobody else uses: "ARBOEX"
MAX_AT_ONCE = 100


def sweep_exports() -> None:
    """One round. Does nothing while another process is at it. Raises the database's errors."""
    with transaction.atomic():
        if not lost_jobs.is_alone(LOCK):
            return
        lost_jobs.give_up_lost(Export, "export fewer trees")
        ids = lost_jobs.forgotten(Export)
        for export in Export.objects.filter(status=ExportStatus.SUCCEEDED, expires_at__lt=Now())[
            :MAX_AT_ONCE
        ]:
            days = EXPORT_KEEP_SECONDS // 86_400
            delete_file(export, f"Its file was deleted after {days} days.")
        old = timedelta(seconds=EXPORT_FORGET_SECONDS)
        ended = Export.objects.exclude(status__in=(*UNFINISHED, ExportStatus.SUCCEEDED))
        ended.filter(ended_at__lt=Now() - old).delete()
    lost_jobs.tell_again(ids, broker.send_write_export)
    lost_jobs.delete_orphans(
        files.folder(), lambda name: Export.objects.filter(file=name).exists(), files.delete
    )
