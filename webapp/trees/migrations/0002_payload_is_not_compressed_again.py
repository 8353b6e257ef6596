from __future__ import annotations

from django.db import migrations


class Migration(migrations.Migration):
    """Payloads are zstd already: PostgreSQL would try again, for nothing, on every insert."""

    dependencies = [("trees", "0001_initial")]

    operations = [
        migrations.RunSQL(
            "ALTER TABLE arborist_tree ALTER COLUMN payload SET STORAGE EXTERNAL",
            "ALTER TABLE arborist_tree ALTER COLUMN payload SET STORAGE EXTENDED",
        ),
    ]
