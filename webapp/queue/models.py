"""How many runs of a project may be worked on at once."""

from __future__ import annotations

from django.db import models

from webapp.projects.models import Project

ALL_CLASSES = ""


class ProjectLimit(models.Model):
    """At most `most` runs of the project at once: of one resource class, or with `queue` "" of all together.
    Without a row there is no limit. The claim of a run obeys it (`order.next_run`).
    """

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="limits", db_index=False)
    queue = models.CharField(max_length=32, blank=True, default=ALL_CLASSES)
    most = models.PositiveSmallIntegerField()

    class Meta:
        db_table = "arborist_project_limit"
        constraints = [
            models.UniqueConstraint(fields=["project", "queue"], name="one_limit_per_project_and_class")
        ]
