from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """The indexes of sort signals carry the step, by which lists of a range of steps leave out the rest."""

    dependencies = [
        ("runs", "0003_runs_may_be_imported"),
        ("trees", "0008_growing_trees"),
    ]

    operations = [
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_value",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_advantage_spread",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_cliff",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_zero_variance_share",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_mean_entropy",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_max_entropy",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_mean_logprob",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_duplicate_share",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_grpo_flips",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_n_errors",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_n_nodes",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_n_leaves",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_depth",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_tokens",
        ),
        migrations.RemoveIndex(
            model_name="storedtree",
            name="tree_by_tokens_flat",
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "value", "id"],
                include=("step",),
                name="tree_by_value",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "advantage_spread", "id"],
                include=("step",),
                name="tree_by_advantage_spread",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "cliff", "id"],
                include=("step",),
                name="tree_by_cliff",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "zero_variance_share", "id"],
                include=("step",),
                name="tree_by_zero_variance_share",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "mean_entropy", "id"],
                include=("step",),
                name="tree_by_mean_entropy",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "max_entropy", "id"],
                include=("step",),
                name="tree_by_max_entropy",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "mean_logprob", "id"],
                include=("step",),
                name="tree_by_mean_logprob",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "duplicate_share", "id"],
                include=("step",),
                name="tree_by_duplicate_share",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "grpo_flips", "id"],
                include=("step",),
                name="tree_by_grpo_flips",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "n_errors", "id"],
                include=("step",),
                name="tree_by_n_errors",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "n_nodes", "id"],
                include=("step",),
                name="tree_by_n_nodes",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "n_leaves", "id"],
                include=("step",),
                name="tree_by_n_leaves",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "depth", "id"],
                include=("step",),
                name="tree_by_depth",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "tokens", "id"],
                include=("step",),
                name="tree_by_tokens",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "tokens_flat", "id"],
                include=("step",),
                name="tree_by_tokens_flat",
            ),
        ),
    ]
