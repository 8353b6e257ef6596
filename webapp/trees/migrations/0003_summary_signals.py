from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """What lists of trees sort by, beyond the first summary. NULL: the trainer of an older tree did not say."""

    dependencies = [("trees", "0002_payload_is_not_compressed_again")]

    operations = [
        migrations.AddField(
            model_name="storedtree",
            name="advantage_spread",
            field=models.FloatField(null=True),
        ),
        migrations.AddField(
            model_name="storedtree",
            name="cliff",
            field=models.FloatField(help_text="Negative.", null=True),
        ),
        migrations.AddField(
            model_name="storedtree",
            name="cliff_node",
            field=models.TextField(null=True),
        ),
        migrations.AddField(
            model_name="storedtree",
            name="duplicate_share",
            field=models.FloatField(null=True),
        ),
        migrations.AddField(
            model_name="storedtree",
            name="grpo_flips",
            field=models.IntegerField(null=True),
        ),
        migrations.AddField(
            model_name="storedtree",
            name="max_entropy",
            field=models.FloatField(null=True),
        ),
        migrations.AddField(
            model_name="storedtree",
            name="mean_logprob",
            field=models.FloatField(null=True),
        ),
    ]
