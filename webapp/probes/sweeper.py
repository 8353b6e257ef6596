"""Finds probes whose worker was lost and probes that nobody was told of. Part of every sweep."""

from __future__ import annotations

import logging
from datetime import timedelta

from django.db.models import F, Q
from django.db.models.functions import Now

from webapp import broker
from webapp.limits import PROBE_LOSSES, RESEND_QUEUED_SECONDS
from webapp.probes.models import Probe, ProbeStatus

LOST_TOO_OFTEN = (
    "Contact with its worker was lost {times}. Look at the worker's machine (memory, log), then ask again."
)

logger = logging.getLogger(__name__)


def give_up_lost() -> int:
    """Probes whose lease ran out: queued again, or failed when that has happened before. Returns how many.

    Each change is one conditional UPDATE, so that it may be done twice, and a worker that comes back
    meanwhile either renews first or finds that it lost.
    """
    lost = Probe.objects.filter(status=ProbeStatus.RUNNING, lease_until__lt=Now())
    unwanted = lost.filter(cancel_requested_by__isnull=False).update(
        status=ProbeStatus.CANCELLED,
        ended_at=Now(),
        lease_until=None,
        owner="",
        reason="Cancelled; contact with its worker was lost.",
    )
    times = "once" if PROBE_LOSSES == 1 else f"{PROBE_LOSSES} times"
    failed = lost.filter(losses__gte=PROBE_LOSSES - 1).update(
        status=ProbeStatus.FAILED,
        ended_at=Now(),
        lease_until=None,
        owner="",
        losses=F("losses") + 1,
        reason=LOST_TOO_OFTEN.format(times=times),
    )
    again = lost.update(
        status=ProbeStatus.QUEUED,
        lease_until=None,
        owner="",
        losses=F("losses") + 1,
        queued_at=Now() - timedelta(seconds=RESEND_QUEUED_SECONDS),  # a message may go at once
        reason="Contact with its worker was lost; a free one takes it.",
    )
    if unwanted or failed or again:
        logger.warning("Probes without a worker: %s queued again, %s failed.", again, failed + unwanted)
    return unwanted + failed + again


def send_forgotten() -> int:
    """Messages for probes that wait although their queue is empty. Returns how many were sent."""
    due = Q(queued_at__lte=Now() - timedelta(seconds=RESEND_QUEUED_SECONDS))
    waiting: dict[str, list[int]] = {}
    rows = Probe.objects.filter(due, status=ProbeStatus.QUEUED).order_by("id")
    for queue, probe_id in rows.values_list("queue", "id")[:1000]:
        waiting.setdefault(queue, []).append(probe_id)
    sent = 0
    for queue, probe_ids in waiting.items():
        # A queue that still holds messages has no free worker.
        if broker.waiting(queue) != 0:
            continue
        for probe_id in probe_ids:
            if not broker.send_sample_probe(probe_id, queue):
                return sent
            sent += 1
    return sent
