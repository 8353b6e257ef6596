"""The text of nodes, to be searched: one row per sampled node, and how far each run's trees are in it.

Everything here is made from `arborist_tree` and can be made again (`manage.py index_nodes --again`). Rows are
written by `indexer.py` alone and name runs and trees without a constraint, which would cost as much as the
row; what is shown is always read together with its tree.
"""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now

from webapp.projects.models import Project
from webapp.runs.models import Run


class IndexedNode(models.Model):
    """A node's text and what search filters on. `id` grows with time. NaN is NULL.

    Its one index besides the key is over words *and* marks, made by the database
    functions of migration 0001: each mark is a lexeme that stands for a column's value or range, so one
    bitmap answers text and filters together (docs/search.md). `marks.py` names the same marks in Python.
    """

    id = models.BigAutoField(primary_key=True)
    project_id = models.BigIntegerField()
    run_id = models.BigIntegerField()
    tree_id = models.BigIntegerField()
    step = models.BigIntegerField()
    value = models.FloatField(null=True)
    advantage = models.FloatField(null=True)
    tokens = models.IntegerField()
    depth = models.SmallIntegerField()
    verdict = models.SmallIntegerField()
    credit_state = models.SmallIntegerField()
    path = models.TextField()
    problem = models.TextField()
    text = models.TextField()

    class Meta:
        db_table = "arborist_search_node"


class IndexCursor(models.Model):
    """How far a run is indexed: trees of events up to `seq` are."""

    run = models.OneToOneField(Run, on_delete=models.CASCADE, primary_key=True, related_name="search_cursor")
    seq = models.BigIntegerField(default=0)
    step = models.BigIntegerField(null=True, help_text="Of the newest tree that is indexed.")
    nodes = models.BigIntegerField(default=0)
    updated_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "arborist_search_cursor"


class IndexDemand(models.Model):
    """When somebody last searched a project: until some time after, its runs are indexed while they train."""

    project = models.OneToOneField(Project, on_delete=models.CASCADE, primary_key=True, related_name="+")
    asked_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "arborist_search_demand"


class IndexedPart(models.Model):
    """Which rows of the index hold which steps of a run: written together, so close together."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="+", db_index=False)
    first_id = models.BigIntegerField()
    last_id = models.BigIntegerField()
    first_step = models.BigIntegerField()
    last_step = models.BigIntegerField()

    class Meta:
        db_table = "arborist_search_part"
        # The rows of a run, or of some of its steps.
        indexes = [models.Index(fields=["run", "first_id"], name="search_part_of_run")]
