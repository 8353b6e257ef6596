"""A saved search may tell its owner of new matches."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("saved", "0001_initial")]

    operations = [
        migrations.AddField("savedview", "alert", models.BooleanField(default=False, db_default=False)),
        migrations.AddField("savedview", "new_matches", models.PositiveIntegerField(default=0, db_default=0)),
        migrations.AddField(
            "savedview",
            "seen_id",
            models.BigIntegerField(
                default=0, db_default=0, help_text="The newest indexed node when its owner saw it."
            ),
        ),
        migrations.AddField(
            "savedview",
            "looked_id",
            models.BigIntegerField(
                default=0, db_default=0, help_text="The newest indexed node when it was counted."
            ),
        ),
        migrations.AddConstraint(
            "savedview",
            models.CheckConstraint(
                condition=models.Q(alert=False) | models.Q(page="search"),
                name="saved_view_that_alerts_is_a_search",
            ),
        ),
    ]
