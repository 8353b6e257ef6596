from __future__ import annotations

from django.db import migrations, models
from django.db.models.functions import Left


class Migration(migrations.Migration):
    """The list of problems has an index in which 2 stands before 10."""

    dependencies = [
        ("trees", "0010_growing_trees_know_the_engine"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="storedtree",
            index=models.Index(
                models.F("run"),
                Left(
                    models.Func(
                        models.Func(
                            models.F("problem_id"),
                            models.Value("([0-9]+)"),
                            models.Value("0" * 18 + r"\1"),
                            models.Value("g"),
                            function="regexp_replace",
                        ),
                        models.Value("[0-9]*([0-9]{18})"),
                        models.Value(r"\1"),
                        models.Value("g"),
                        function="regexp_replace",
                    ),
                    400,
                ),
                models.F("problem_id"),
                condition=models.Q(("superseded", False)),
                name="tree_problems_in_order",
            ),
        ),
    ]
