from __future__ import annotations

from typing import Any

from django.db import migrations

from trainer.summary import summarise
from trainer.tree import RolloutTree

COUNTS = ("n_answers", "n_given_up", "n_correct", "n_unparsed", "n_truncated", "n_errors")
# Only these merge equal answers or give some up; elsewhere every leaf is one answer.
SAMPLERS = ("flat", "lookahead", "search_tree")


def count_answers(apps: Any, _editor: Any) -> None:
    """Count again from the payloads, a few at a time. A damaged tree keeps its old numbers."""
    trees = apps.get_model("trees", "StoredTree").objects
    old = trees.filter(run__config__sampler__kind__in=SAMPLERS, n_answers__isnull=True)
    for tree_id, payload in old.values_list("id", "payload").iterator(chunk_size=100):
        try:
            summary = summarise(RolloutTree.from_payload(bytes(payload)))
        except ValueError:
            continue
        trees.filter(id=tree_id).update(**{name: getattr(summary, name) for name in COUNTS})


class Migration(migrations.Migration):
    dependencies = [("trees", "0006_answers_are_counted"), ("runs", "0001_initial")]

    operations = [migrations.RunPython(count_answers, migrations.RunPython.noop)]
