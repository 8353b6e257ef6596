"""Brings back imports whose worker was lost or that nobody was told of, and deletes uploads without one.

A round of `manage.py sweep`, likewise.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta

from django.db import transaction
from django.db.models.functions import Now

from webapp import broker, lost_jobs
from webapp.file_jobs import UNFINISHED
from webapp.imports import files
from webapp.imports.models import Import
from webapp.limits import EXPORT_FORGET_SECONDS

LOCK = 0x4152_424F_494D  # any number that nobody else uses: "ARBOIM"
ORPHAN_SECONDS = 3600  # an upload that no unfinished import names, for so long

logger = logging.getLogger(__name__)


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
    _delete_orphans()


def _delete_orphans() -> None:
    if not files.folder().is_dir():
        return
    for path in files.folder().iterdir():
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            continue
        wanted = Import.objects.filter(upload=path.name, status__in=UNFINISHED)
        if age > ORPHAN_SECONDS and not wanted.exists():
            logger.info("The upload %s belongs to no import; it is deleted.", path.name)
            files.delete(path.name)
