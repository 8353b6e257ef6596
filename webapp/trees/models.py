"""Browsable rollout trees: one row each, summary columns to sort by, one columnar payload."""

from __future__ import annotations

import math

from django.db import models
from django.db.models import F, Func, Value
from django.db.models.functions import Left

from trainer.events import TreeSummary
from webapp.runs.models import Run

# What the trees of a run are sorted by, over all steps. Each has an index (run, signal, id) of the trees that
# are not superseded. A list reads it forwards, or backwards for the largest first; trees without the signal
# (NULL) stand at its end and are read as a part of their own: ... IS NOT NULL ORDER BY signal DESC, id DESC,
# then ... IS NULL. Within a step `tree_step` finds the few thousand trees, and sorting them is cheap.
SORT_SIGNALS = (
    "value", "advantage_spread", "cliff", "zero_variance_share", "mean_entropy", "max_entropy",
    "mean_logprob", "duplicate_share", "grpo_flips", "n_errors", "n_nodes", "n_leaves", "depth", "tokens",
    "tokens_flat",
)  # fmt: skip
_KEPT = models.Q(superseded=False)

# Problems as people count them: 2 before 10, p-2 before p-10. Every number of an id is written in 18 digits,
# of a longer one the last 18; equal keys stand in the order of the ids. Cut to what a row of an index holds.
_PADDED = Func(
    F("problem_id"), Value("([0-9]+)"), Value("0" * 18 + r"\1"), Value("g"), function="regexp_replace"
)
PROBLEM_ORDER = Left(
    Func(_PADDED, Value("[0-9]*([0-9]{18})"), Value(r"\1"), Value("g"), function="regexp_replace"), 400
)
# The same for raw queries; {} is an id.
PROBLEM_ORDER_SQL = (
    f"left(regexp_replace(regexp_replace({{}}, '([0-9]+)', '{'0' * 18}\\1', 'g'), "
    r"'[0-9]*([0-9]{{18}})', '\1', 'g'), 400)"
)


class StoredTree(models.Model):
    """A `trainer.tree.RolloutTree` of one problem at one step. `payload` is its `to_payload()`.

    `seq` is the event that brought it. Summary columns are `trainer.events.TreeSummary`; NaN is stored as
    NULL, and so is what the trainer of an older tree did not tell.
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
    n_answers = models.IntegerField(null=True, help_text="NULL: as many as leaves.")
    n_given_up = models.IntegerField(db_default=0)
    advantage_spread = models.FloatField(null=True)
    max_entropy = models.FloatField(null=True)
    mean_logprob = models.FloatField(null=True)
    cliff = models.FloatField(null=True, help_text="Negative.")
    cliff_node = models.TextField(null=True)
    duplicate_share = models.FloatField(null=True)
    grpo_flips = models.IntegerField(null=True)

    payload = models.BinaryField()

    class Meta:
        db_table = "arborist_tree"
        constraints = [models.UniqueConstraint(fields=["run", "seq"], name="tree_seq_is_unique_in_its_run")]
        indexes = [
            # The trees of a step.
            models.Index(fields=["run", "step", "index"], name="tree_step"),
            # One problem over training.
            models.Index(fields=["run", "problem_id", "step"], name="tree_problem"),
            # The list of problems, by `PROBLEM_ORDER`.
            models.Index(
                F("run"), PROBLEM_ORDER, F("problem_id"), condition=_KEPT, name="tree_problems_in_order"
            ),
            *(
                # With the step, so that a range of steps is told from the index alone: 6 ms instead of 260
                # for half of a million trees, where it begins a hundred thousand rows into the order.
                models.Index(
                    fields=["run", signal, "id"], include=["step"], condition=_KEPT, name=f"tree_by_{signal}"
                )
                for signal in SORT_SIGNALS
            ),
        ]


class GrowingTrees(models.Model):
    """The first trees of the step that a run samples just now: `trainer.events.GrowingTree`. A hint, no
    record: the next one replaces it, and what is stored of the step is in `StoredTree`.
    """

    run = models.OneToOneField(Run, on_delete=models.CASCADE, primary_key=True, related_name="growing")
    step = models.BigIntegerField()
    at = models.DateTimeField()
    trees = models.JSONField()
    occupancy = models.JSONField(null=True)  # `trainer.events.Occupancy` of the engine; null while it rests

    class Meta:
        db_table = "arborist_growing"


def summary_columns(summary: TreeSummary) -> dict[str, float | str | None]:
    """The summary columns of a `StoredTree`: NULL for what is not there."""
    return {name: _or_null(value) for name, value in summary}


def _or_null(value: float | str | None) -> float | str | None:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return None if value == "" else value
