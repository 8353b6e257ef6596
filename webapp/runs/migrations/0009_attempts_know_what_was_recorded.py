from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("runs", "0008_priorities_and_drains")]

    operations = [
        migrations.AddField(
            model_name="attempt",
            name="recorded_checksum",
            field=models.BigIntegerField(
                blank=True,
                help_text="Of those records, by which they are known when they come again.",
                null=True,
            ),
        ),
    ]
