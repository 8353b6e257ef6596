"""Imports: files of trees that somebody uploaded, and how far each is on its way to a run."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from webapp.jobs import Job, state_constraints, unfinished_index
from webapp.projects.models import Project
from webapp.runs.models import Run


class Import(Job):
    """One file that is to become a run."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="imports")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="imports", db_index=False
    )
    run_name = models.CharField(max_length=120)
    file = models.CharField(max_length=200, help_text="What people call it.")
    upload = models.CharField(max_length=120, help_text="Its name in the folder of uploads, until it ends.")
    size_bytes = models.BigIntegerField()

    done = models.BigIntegerField(default=0, help_text="Bytes that were read.")
    trees = models.BigIntegerField(default=0, help_text="Trees that were read.")
    errors = models.JSONField(default=list, help_text="The first lines that cannot be used, in sentences.")
    report = models.CharField(max_length=2000, blank=True, help_text="What became of it, in sentences.")
    run = models.ForeignKey(Run, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")

    class Meta:
        db_table = "arborist_import"
        constraints = state_constraints("import")
        indexes = [
            # Imports of a project, newest first.
            models.Index(fields=["project", "-id"], name="import_of_a_project"),
            models.Index(fields=["created_by", "status"], name="import_of_a_user"),
            unfinished_index("import"),
        ]
