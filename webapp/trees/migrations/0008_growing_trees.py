from __future__ import annotations

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    """The trees that a run samples just now, one row per run."""

    dependencies = [("runs", "0001_initial"), ("trees", "0007_answers_of_older_trees")]

    operations = [
        migrations.CreateModel(
            name="GrowingTrees",
            fields=[
                (
                    "run",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="growing",
                        serialize=False,
                        to="runs.run",
                    ),
                ),
                ("step", models.BigIntegerField()),
                ("at", models.DateTimeField()),
                ("trees", models.JSONField()),
            ],
            options={
                "db_table": "arborist_growing",
            },
        ),
    ]
