"""Browsable rollout trees: one row each, summary columns to sort by, one columnar payload."""

from __future__ import annotations

from django.db import models

from webapp.runs.models import Run


class StoredTree(models.Model):
    """A `trainer.tree.RolloutTree` of one problem at one step. `payload` is its `to_payload()`.

    `seq` is the event that brought it. Summary columns are `trainer.events.TreeSummary`; NaN is stored as
    NULL.
    """

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="trees", db_index=False)
    seq = models.BigIntegerField()
    epoch = models.BigIntegerField()
    step = models.BigIntegerField()
    index = models.IntegerField(help_text="Place in the step's batch.")
    problem_id = models.CharField(max_length=200)
    prompt = models.TextField()
    superseded = models.BooleanField(default=False)

    n_nodes = models.IntegerField()
    n_leaves = models.IntegerField()
    n_correct = models.IntegerField()
    n_unparsed = models.IntegerField()
    n_truncated = models.IntegerField()
    n_errors = models.IntegerField()
    depth = models.IntegerField()
    tokens = models.BigIntegerField()
    tokens_flat = models.BigIntegerField()
    value = models.FloatField(null=True)
    advantage_min = models.FloatField(null=True)
    advantage_max = models.FloatField(null=True)
    zero_variance_share = models.FloatField(null=True)
    mean_entropy = models.FloatField(null=True)

    payload = models.BinaryField()

    class Meta:
        db_table = "arborist_tree"
        constraints = [models.UniqueConstraint(fields=["run", "seq"], name="tree_seq_is_unique_in_its_run")]
        indexes = [
            # The trees of a step.
            models.Index(fields=["run", "step", "index"], name="tree_step"),
            # One problem over training.
            models.Index(fields=["run", "problem_id", "step"], name="tree_problem"),
        ]
