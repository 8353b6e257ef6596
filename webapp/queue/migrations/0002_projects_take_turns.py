import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("projects", "0001_initial"), ("queue", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="ProjectTurn",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("queue", models.CharField(max_length=32)),
                ("at", models.DateTimeField()),
                (
                    "project",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="turns",
                        to="projects.project",
                    ),
                ),
            ],
            options={
                "db_table": "arborist_project_turn",
                "constraints": [
                    models.UniqueConstraint(
                        fields=("project", "queue"), name="one_turn_per_project_and_class"
                    )
                ],
            },
        ),
    ]
