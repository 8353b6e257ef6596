"""What people write beside a tree or a node of it: notes and tags. They are data of the project, never of
training.
"""

from __future__ import annotations

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models.functions import Now

from webapp.projects.models import Project
from webapp.trees.models import StoredTree


class Note(models.Model):
    """Text, tags or both. `path` is the node's name, `2.1.3`; the root, `0`, stands for the whole tree."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="notes", db_index=False)
    tree = models.ForeignKey(StoredTree, on_delete=models.CASCADE, related_name="notes", db_index=False)
    path = models.CharField(max_length=2000, default="0")
    text = models.TextField(blank=True)
    tags = ArrayField(models.CharField(max_length=40), default=list, blank=True)
    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="notes", db_index=False
    )
    created_at = models.DateTimeField(db_default=Now())
    edited_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "arborist_note"
        constraints = [
            models.CheckConstraint(
                condition=~models.Q(text="") | ~models.Q(tags=[]), name="note_has_text_or_tags"
            )
        ]
        indexes = [
            # The project's notes, newest first.
            models.Index(fields=["project", "-id"], name="note_of_project"),
            # Beside a tree and its nodes.
            models.Index(fields=["tree", "id"], name="note_of_tree"),
            # Whose notes; also what keeps a person with notes from being deleted.
            models.Index(fields=["author", "id"], name="note_of_author"),
            GinIndex(fields=["tags"], name="note_tags"),
        ]
