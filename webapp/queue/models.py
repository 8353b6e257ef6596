"""What decides between projects: how many of their runs may be worked on at once, and who had a turn when."""

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


class ProjectTurn(models.Model):
    """When a worker last took a new run of the project in a resource class: of projects with as many runs at
    work the one that waited longest for a turn is next (`order`).
    """

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="turns", db_index=False)
    queue = models.CharField(max_length=32)
    at = models.DateTimeField()

    class Meta:
        db_table = "arborist_project_turn"
        constraints = [
            models.UniqueConstraint(fields=["project", "queue"], name="one_turn_per_project_and_class")
        ]
