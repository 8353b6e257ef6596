"""Brings back imports whose worker was lost or that nobody was told of, and deletes uploads without one.

A round of `manage.py sweep`, likewise.
"""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from django.db.models.functions import Now

from webapp import broker, lost_jobs
from webapp.imports import files
from webapp.imports.models import Import
from webapp.jobs import UNFINISHED
from webapp.limits import EXPORT_FORGET_SECONDS

LOCK = 0x4152_424F_494D  # any number that nobody else uses: "ARBOIM"


def sweep_imports() -> None:
    """One round. Does nothing while another process is at it. Raises the database's errors."""
    with transaction.atomic():
        if not lost_jobs.is_alone(LOCK):
            return
        lost_jobs.give_up_lost(Import, "import a smaller file")
        ids = lost_jobs.forgotten(Import)
        old = timedelta(seconds=EXPORT_FORGET_SECONDS)
        Import.objects.exclude(status__in=UNFINISHED).filter(ended_at__lt=Now() - old).delete()
    lost_jobs.tell_again(ids, broker.send_read_import)
    unfinished = Import.objects.filter(status__in=UNFINISHED)
    lost_jobs.delete_orphans(
        files.folder(), lambda name: unfinished.filter(upload=name).exists(), files.delete
    )
