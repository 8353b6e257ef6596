"""Ends trainers on this machine that nobody watches over any more, also where no worker is left to do it."""

from __future__ import annotations

from django.conf import settings

from webapp.embedded import leftovers
from webapp.runs.models import LEASED, Run, RunStatus


def may_have_trainer(run_id: int, epoch: int) -> bool:
    """Whether the attempt may still have a trainer; it may while its worker is only out of contact."""
    held = (*LEASED, RunStatus.RECOVERING)
    return Run.objects.filter(id=run_id, lease_epoch=epoch, status__in=held).exists()


def end_leftovers() -> int:
    """One round of the sweeper. Returns how many trainers and sampling processes were found so."""
    notes = settings.DATA_DIR / "workers"
    return leftovers.reap(notes / "trainers", may_have_trainer) + leftovers.reap(notes / "probes")
