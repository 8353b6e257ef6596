from django.conf import settings
from django.db import migrations, models

STATUSES = [
    ("queued", "Queued"),
    ("starting", "Starting"),
    ("running", "Running"),
    ("stopping", "Stopping"),
    ("recovering", "Recovering"),
    ("paused", "Paused"),
    ("succeeded", "Succeeded"),
    ("stopped", "Stopped"),
    ("failed", "Failed"),
    ("cancelled", "Cancelled"),
]


class Migration(migrations.Migration):
    dependencies = [
        ("runs", "0003_runs_may_be_imported"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.RemoveConstraint(model_name="run", name="run_status_is_known"),
        migrations.AlterField(
            model_name="run",
            name="status",
            field=models.CharField(choices=STATUSES, default="queued", max_length=12),
        ),
        migrations.AddConstraint(
            model_name="run",
            constraint=models.CheckConstraint(
                condition=models.Q(("status__in", [value for value, _ in STATUSES])),
                name="run_status_is_known",
            ),
        ),
        migrations.RenameField(model_name="run", old_name="stop_requested_at", new_name="wish_at"),
        migrations.RenameField(model_name="run", old_name="stop_requested_by", new_name="wish_by"),
        migrations.AddField(
            model_name="run",
            name="wish",
            field=models.CharField(
                blank=True,
                choices=[("pause", "Pause"), ("stop", "Stop"), ("kill", "Kill")],
                db_default="",
                default="",
                max_length=8,
            ),
        ),
        migrations.AddField(
            model_name="run",
            name="wish_seen_at",
            field=models.DateTimeField(blank=True, help_text="The worker acknowledged the wish.", null=True),
        ),
        migrations.AddField(
            model_name="run",
            name="settled_epoch",
            field=models.BigIntegerField(
                db_default=0,
                default=0,
                help_text="Attempts up to this one are settled: somebody took the run up again after them.",
            ),
        ),
        migrations.AlterField(
            model_name="attempt",
            name="outcome",
            field=models.CharField(
                blank=True,
                help_text="succeeded, stopped, failed, paused, preempted or lost.",
                max_length=12,
            ),
        ),
    ]
