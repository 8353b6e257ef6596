from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("runs", "0005_requested_stops_are_wishes")]

    operations = [
        migrations.AddConstraint(
            model_name="run",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("wish", ""), ("wish_at__isnull", True), ("wish_seen_at__isnull", True)),
                    models.Q(
                        ("status__in", ["starting", "running", "stopping"]),
                        ("wish__in", ["pause", "stop", "kill"]),
                        ("wish_at__isnull", False),
                    ),
                    _connector="OR",
                ),
                name="run_has_a_wish_only_while_it_is_worked_on",
            ),
        ),
    ]
