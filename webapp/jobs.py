"""What exports, imports and verifications share: a row that is a job, worked off by one worker at a time.

The queue's message is only a hint. States move by conditional UPDATE; the worker that holds the lease writes
under its `epoch`, so a cancelled or lost one writes nothing more.
"""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now


class JobStatus(models.TextChoices):
    """Where a job stands. Ends: succeeded, failed, cancelled, expired (its file was deleted; of exports)."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


UNFINISHED = (JobStatus.QUEUED, JobStatus.RUNNING)


class Job(models.Model):
    """One thing to do, and how it went."""

    created_at = models.DateTimeField(db_default=Now())

    status = models.CharField(max_length=12, choices=JobStatus.choices, default=JobStatus.QUEUED)
    reason = models.CharField(max_length=2000, blank=True)
    queued_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    attempts = models.PositiveSmallIntegerField(default=0)
    epoch = models.BigIntegerField(default=0, help_text="Fences every write of a worker.")
    lease_owner = models.CharField(max_length=120, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)

    class Meta:
        abstract = True

    @property
    def is_unfinished(self) -> bool:
        return self.status in UNFINISHED


def state_constraints(name: str) -> list[models.BaseConstraint]:
    """Of a table of jobs; `name` is what one is called in the database's messages."""
    unfinished = [status.value for status in UNFINISHED]
    return [
        models.CheckConstraint(
            condition=models.Q(status__in=JobStatus.values), name=f"{name}_status_is_known"
        ),
        models.CheckConstraint(
            condition=models.Q(status__in=unfinished, ended_at__isnull=True)
            | (~models.Q(status__in=unfinished) & models.Q(ended_at__isnull=False)),
            name=f"{name}_is_ended_iff_it_has_an_end_time",
        ),
        models.CheckConstraint(
            condition=~models.Q(status="running") | models.Q(lease_until__isnull=False),
            name=f"{name}_that_is_worked_on_has_a_lease",
        ),
    ]


def unfinished_index(name: str) -> models.Index:
    """The sweeper: what waits or is worked on."""
    return models.Index(
        fields=["status", "lease_until"],
        name=f"{name}_unfinished",
        condition=models.Q(status__in=[status.value for status in UNFINISHED]),
    )
