from __future__ import annotations

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

import webapp.accounts.models


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial"), ("projects", "0001_initial")]

    operations = [
        migrations.AddField(
            "apitoken",
            "scopes",
            django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(
                    choices=[("read", "Read"), ("write", "Write"), ("control", "Control")], max_length=8
                ),
                default=webapp.accounts.models._read_only,
                size=None,
            ),
        ),
        # A token that could write could also stop a run.
        migrations.RunSQL(
            "UPDATE arborist_api_token SET scopes = ARRAY['read', 'write', 'control'] WHERE scope = 'write'",
            "UPDATE arborist_api_token SET scope = CASE WHEN cardinality(scopes) > 1 THEN 'write' ELSE 'read' END",
        ),
        migrations.RemoveField("apitoken", "scope"),
        migrations.AddField(
            "apitoken",
            "project",
            models.ForeignKey(
                blank=True,
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="+",
                to="projects.project",
            ),
        ),
        migrations.AddConstraint(
            "apitoken",
            models.CheckConstraint(
                condition=models.Q(
                    ("scopes__contains", ["read"]),
                    ("scopes__contained_by", ["read", "write", "control"]),
                ),
                name="token_scopes_are_known_and_read",
            ),
        ),
    ]
