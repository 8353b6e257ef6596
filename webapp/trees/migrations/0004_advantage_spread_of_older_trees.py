from __future__ import annotations

from django.db import migrations


class Migration(migrations.Migration):
    """The one new signal that older trees tell as well."""

    dependencies = [("trees", "0003_summary_signals")]

    operations = [
        migrations.RunSQL(
            "UPDATE arborist_tree SET advantage_spread = advantage_max - advantage_min"
            " WHERE advantage_max IS NOT NULL AND advantage_spread IS NULL",
            migrations.RunSQL.noop,
        ),
    ]
