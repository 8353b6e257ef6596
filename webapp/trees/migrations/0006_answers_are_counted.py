from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Answers as the inspector counts them: copies counted, what a search gave up apart."""

    dependencies = [("trees", "0005_an_index_per_sort_signal")]

    operations = [
        migrations.AddField(
            model_name="storedtree",
            name="n_answers",
            field=models.IntegerField(help_text="NULL: as many as leaves.", null=True),
        ),
        migrations.AddField(
            model_name="storedtree",
            name="n_given_up",
            field=models.IntegerField(db_default=0),
        ),
    ]
