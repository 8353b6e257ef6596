"""Exports: what somebody asked to have written to a file, and how far it is."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from webapp.jobs import UNFINISHED, Job, JobStatus, state_constraints, unfinished_index
from webapp.projects.models import Project

__all__ = ["UNFINISHED", "Export", "ExportStatus"]

ExportStatus = JobStatus


class Export(Job):
    """One file that somebody asked for."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="exports")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="exports", db_index=False
    )
    kind = models.CharField(max_length=16)
    parameters = models.JSONField(help_text="`webapp.exports.kinds`, without the kind.")
    selection = models.JSONField(help_text="`webapp.exports.selection.Selection`.")
    title = models.CharField(max_length=300, help_text="What was selected, in words.")

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
            *state_constraints("export"),
            models.CheckConstraint(
                condition=models.Q(status="succeeded") ^ models.Q(file=""),
                name="export_that_succeeded_has_a_file",
            ),
        ]
        indexes = [
            # My exports, newest first.
            models.Index(fields=["created_by", "-id"], name="export_of_a_user"),
            unfinished_index("export"),
            # The sweeper: files to delete.
            models.Index(
                fields=["expires_at"], name="export_with_a_file", condition=models.Q(status="succeeded")
            ),
        ]
