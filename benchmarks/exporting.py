"""How fast trees leave as files, and how much memory that takes.

    python -m benchmarks.exporting [TREES]      on ARBORIST_DATABASE_URL, in a project of its own

Every kind is worked off as a worker does it, in a process of its own, so that its largest memory is its own.
Rows per CPU-second of that process; the database's work is not in it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("trees", {}),
    ("nodes", {"format": "csv"}),
    ("nodes", {"format": "parquet"}),
    ("pairs", {}),
    ("labels", {}),
    ("chats", {}),
)
NODES = 85  # of a tree: 4 + 16 + 64, as a tree of width 4 and depth 3 has them
SEGMENT_TOKENS = 24


def plant(trees: int) -> int:
    """A run with so many trees. Returns its id."""
    import dataclasses

    import numpy as np
    from django.utils import timezone

    from tests.trainer.trees import credit_tree, tree_of
    from trainer.presets import PRESETS
    from trainer.summary import summarise
    from webapp.accounts.models import User
    from webapp.projects.models import Project
    from webapp.runs.models import Run, RunStatus
    from webapp.trees.models import StoredTree, summary_columns

    rng = np.random.default_rng(1)
    config = PRESETS["treerpo-tiny"].config
    number = int(time.time())
    user = User.objects.create_user(f"bench-{number}")
    project = Project.objects.create(slug=f"bench-{number}", name="Bench")
    run = Run.objects.create(
        project=project,
        name="bench",
        config=config.model_dump(mode="json"),
        config_sha256=config.sha256(),
        preset=config.preset,
        seed=1,
        colour=1,
        created_by=user,
        steps_total=1,
        status=RunStatus.SUCCEEDED,
        ended_at=timezone.now(),
    )
    words = ["so ", "the ", "number ", "of ", "books ", "is ", "45 ", "+ ", "26 ", "= ", "71\n"]
    rows = []
    for k in range(trees):
        rewards = [[[int(rng.random() < 0.5) for _ in range(4)] for _ in range(4)] for _ in range(4)]
        tree = tree_of(
            rewards, tokens_per_segment=SEGMENT_TOKENS, prompt_tokens=60, problem_id=f"p-{k % 500}"
        )
        texts = ("".join(rng.choice(words, SEGMENT_TOKENS)) for _ in range(tree.n_nodes))
        tree = credit_tree(dataclasses.replace(tree, step=k // 50 + 1, texts=tuple(texts)), config.credit)
        rows.append(
            StoredTree(
                run=run,
                seq=k + 1,
                epoch=1,
                step=tree.step,
                index=k % 50,
                problem_id=tree.problem_id,
                prompt=tree.texts[0],
                payload=tree.to_payload(),
                **summary_columns(summarise(tree)),
            )
        )
        if len(rows) == 200:
            StoredTree.objects.bulk_create(rows)
            rows.clear()
    StoredTree.objects.bulk_create(rows)
    return run.id


def export(run_id: int, kind: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """One export, worked off here."""
    from webapp.exports.kinds import read_parameters
    from webapp.exports.models import Export
    from webapp.exports.selection import Selection
    from webapp.exports.services import create_export
    from webapp.runs.models import Run
    from workers.exports import claim, work_off

    run = Run.objects.get(id=run_id)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    export = create_export(
        run.project, run.created_by, Selection(runs=(run_id,)), read_parameters(kind, parameters)
    )
    start = time.process_time()
    held = claim(export.id, "benchmark", lambda: False)
    assert held is not None
    work_off(held)
    seconds = time.process_time() - start
    done = Export.objects.get(id=export.id)
    assert done.status == "succeeded", done.reason
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "kind": " ".join([kind, *map(str, parameters.values())]),
        "trees": done.total,
        "rows": done.rows,
        "megabytes": round(done.size_bytes / 1e6, 1),
        "cpu_seconds": round(seconds, 1),
        "rows_per_cpu_second": round(done.rows / seconds),
        "trees_per_cpu_second": round(done.total / seconds),
        "megabytes_before": round(before / 1024),
        "megabytes_at_most": round(peak / 1024),
    }


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")
    import django
    from django.conf import settings

    django.setup()
    settings.BROKER_URL = ""  # nobody else is told
    if len(sys.argv) == 4:
        print(json.dumps(export(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))))
        return
    run_id = plant(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"ARBORIST_EXPORT_DIR": folder}
        for kind, parameters in KINDS:
            argv = [sys.executable, "-m", "benchmarks.exporting", str(run_id), kind, json.dumps(parameters)]
            found = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
            print(found.stdout.strip() or found.stderr[-2000:], flush=True)


if __name__ == "__main__":
    main()
