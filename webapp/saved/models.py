"""Saved views: an address of a search or of a run's trees, under a name."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models.functions import Now

from webapp.projects.models import Project
from webapp.runs.models import Run


class SavedView(models.Model):
    """A page's query string, kept for everybody in the project. It has no other meaning."""

    class Page(models.TextChoices):
        SEARCH = "search"
        TREES = "trees"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="saved_views", db_index=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="saved_views")
    name = models.CharField(max_length=120)
    page = models.CharField(max_length=8, choices=Page.choices)
    run = models.ForeignKey(Run, on_delete=models.CASCADE, null=True, related_name="+", help_text="Of trees.")
    query = models.CharField(max_length=4000)
    created_at = models.DateTimeField(db_default=Now())
    alert = models.BooleanField(default=False, db_default=False)
    new_matches = models.PositiveIntegerField(default=0, db_default=0)
    seen_id = models.BigIntegerField(
        default=0, db_default=0, help_text="The newest indexed node when its owner saw it."
    )
    looked_id = models.BigIntegerField(
        default=0, db_default=0, help_text="The newest indexed node when it was counted."
    )

    class Meta:
        db_table = "arborist_saved_view"
        constraints = [
            models.UniqueConstraint(
                fields=["project", "owner", "name"], name="saved_view_name_is_unique_for_its_owner"
            ),
            models.CheckConstraint(
                condition=models.Q(page="trees", run__isnull=False)
                | models.Q(page="search", run__isnull=True),
                name="saved_view_of_trees_has_a_run",
            ),
            models.CheckConstraint(
                condition=models.Q(alert=False) | models.Q(page="search"),
                name="saved_view_that_alerts_is_a_search",
            ),
        ]
