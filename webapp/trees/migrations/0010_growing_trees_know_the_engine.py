from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """What the engine is at while those trees grow."""

    dependencies = [("trees", "0009_lists_of_a_range_read_the_index_alone")]

    operations = [
        migrations.AddField(model_name="growingtrees", name="occupancy", field=models.JSONField(null=True)),
    ]
