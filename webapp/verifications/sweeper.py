"""Brings back verifications whose worker was lost or that nobody was told of.

A round of `manage.py sweep`, likewise.
"""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from django.db.models.functions import Now

from webapp import broker, lost_jobs
from webapp.jobs import UNFINISHED
from webapp.limits import VERIFICATION_ATTEMPTS, VERIFICATION_KEEP_SECONDS
from webapp.verifications.models import Verification

LOCK = 0x4152_5653_5750  # any number that nobody else uses: "ARVSWP"


def sweep_verifications() -> None:
    """One round. Does nothing while another process is at it. Raises the database's errors."""
    with transaction.atomic():
        if not lost_jobs.is_alone(LOCK):
            return
        lost_jobs.give_up_lost(Verification, "choose another verifier", attempts=VERIFICATION_ATTEMPTS)
        ids = lost_jobs.forgotten(Verification)
        old = timedelta(seconds=VERIFICATION_KEEP_SECONDS)
        Verification.objects.exclude(status__in=UNFINISHED).filter(ended_at__lt=Now() - old).delete()
    lost_jobs.tell_again(ids, broker.send_verify_answer, broker.VERIFY_QUEUE)
