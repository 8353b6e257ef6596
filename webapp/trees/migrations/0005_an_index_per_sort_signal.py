from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Lists of a run's trees page by key in the order of any signal, however many trees there are."""

    dependencies = [("trees", "0004_advantage_spread_of_older_trees")]

    operations = [
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)), fields=["run", "value", "id"], name="tree_by_value"
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "advantage_spread", "id"],
                name="tree_by_advantage_spread",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)), fields=["run", "cliff", "id"], name="tree_by_cliff"
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "zero_variance_share", "id"],
                name="tree_by_zero_variance_share",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "mean_entropy", "id"],
                name="tree_by_mean_entropy",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "max_entropy", "id"],
                name="tree_by_max_entropy",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "mean_logprob", "id"],
                name="tree_by_mean_logprob",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "duplicate_share", "id"],
                name="tree_by_duplicate_share",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "grpo_flips", "id"],
                name="tree_by_grpo_flips",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "n_errors", "id"],
                name="tree_by_n_errors",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "n_nodes", "id"],
                name="tree_by_n_nodes",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "n_leaves", "id"],
                name="tree_by_n_leaves",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)), fields=["run", "depth", "id"], name="tree_by_depth"
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "tokens", "id"],
                name="tree_by_tokens",
            ),
        ),
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                condition=models.Q(("superseded", False)),
                fields=["run", "tokens_flat", "id"],
                name="tree_by_tokens_flat",
            ),
        ),
    ]
