"""Exports: what somebody asked to have written to a file, and how far it is.

The row is the job and the queue's message only a hint. States move by conditional UPDATE; the worker that
holds the lease writes under its `epoch`, so a cancelled or lost one writes nothing more.
"""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models.functions import Now

from webapp.projects.models import Project


class ExportStatus(models.TextChoices):
    """Where an export stands. Ends: succeeded, failed, cancelled, expired (its file was deleted)."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


UNFINISHED = (ExportStatus.QUEUED, ExportStatus.RUNNING)


class Export(models.Model):
    """One file that somebody asked for."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="exports")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="exports", db_index=False
    )
    kind = models.CharField(max_length=16)
    parameters = models.JSONField(help_text="`webapp.exports.kinds`, without the kind.")
    selection = models.JSONField(help_text="`webapp.exports.selection.Selection`.")
    title = models.CharField(max_length=300, help_text="What was selected, in words.")
    created_at = models.DateTimeField(db_default=Now())

    status = models.CharField(max_length=12, choices=ExportStatus.choices, default=ExportStatus.QUEUED)
    reason = models.CharField(max_length=2000, blank=True)
    queued_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    attempts = models.PositiveSmallIntegerField(default=0)
    epoch = models.BigIntegerField(default=0, help_text="Fences every write of a worker.")
    lease_owner = models.CharField(max_length=120, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)

    done = models.BigIntegerField(default=0, help_text="Trees that were read.")
    total = models.BigIntegerField(default=0, help_text="Trees that are to be read.")
    rows = models.BigIntegerField(default=0)
    left_out = models.JSONField(default=dict, help_text="What became no row: reason -> how many.")
    file = models.CharField(max_length=120, blank=True, help_text="Its name in the folder of exports.")
    size_bytes = models.BigIntegerField(default=0)
    expires_at = models.DateTimeField(null=True, blank=True, help_text="When the file is deleted.")

    class Meta:
        db_table = "arborist_export"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status__in=ExportStatus.values), name="export_status_is_known"
            ),
            models.CheckConstraint(
                condition=models.Q(status__in=[s.value for s in UNFINISHED], ended_at__isnull=True)
                | (~models.Q(status__in=[s.value for s in UNFINISHED]) & models.Q(ended_at__isnull=False)),
                name="export_is_ended_iff_it_has_an_end_time",
            ),
            models.CheckConstraint(
                condition=~models.Q(status="running") | models.Q(lease_until__isnull=False),
                name="export_that_is_worked_on_has_a_lease",
            ),
            models.CheckConstraint(
                condition=models.Q(status="succeeded") ^ models.Q(file=""),
                name="export_that_succeeded_has_a_file",
            ),
        ]
        indexes = [
            # My exports, newest first.
            models.Index(fields=["created_by", "-id"], name="export_of_a_user"),
            # The sweeper: what waits or is worked on.
            models.Index(
                fields=["status", "lease_until"],
                name="export_unfinished",
                condition=models.Q(status__in=[s.value for s in UNFINISHED]),
            ),
            # The sweeper: files to delete.
            models.Index(
                fields=["expires_at"], name="export_with_a_file", condition=models.Q(status="succeeded")
            ),
        ]

    @property
    def is_unfinished(self) -> bool:
        return self.status in UNFINISHED
