import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("runs", "0009_attempts_know_what_was_recorded")]

    operations = [
        migrations.AddField(
            model_name="run",
            name="cloned_from",
            field=models.ForeignKey(
                blank=True,
                help_text="Whose config it was made with.",
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="clones",
                to="runs.run",
            ),
        ),
    ]
