"""A run that is at work, as a worker would write it, one step per line of input; ended at the end of input.

    python -m tests.browser.grow      prints the run's id, then "ok" for each line: the number of a
                                      step that is done, or growing trees of the one under way, as JSON

It runs as a process of its own, with the stack's database in its environment.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")
    import django

    django.setup()

    from django.utils import timezone

    from tests.webapp.material import add_metrics, add_tree, start, worked_tree
    from trainer.presets import PRESETS
    from webapp.accounts.models import User
    from webapp.live.poke import poke
    from webapp.projects.models import Project
    from webapp.runs.models import Run, RunStatus
    from webapp.trees.models import GrowingTrees

    config = PRESETS["treerpo-tiny"].config
    # Not through `create_run`: a worker of the stack would take it.
    run = Run.objects.create(
        project=Project.objects.get(slug="lab"),
        name="growing",
        config=config.model_dump(mode="json"),
        config_sha256=config.sha256(),
        preset=config.preset,
        seed=1,
        colour=2,
        created_by=User.objects.get(username="ada"),
        status=RunStatus.STOPPED,
        ended_at=timezone.now(),
        steps_total=20,
    )
    Run.objects.filter(id=run.id).update(ended_at=None, status=RunStatus.QUEUED, not_before=None)
    start(run)
    print(run.id, flush=True)  # noqa: T201  # read by the test
    try:
        for line in sys.stdin:
            if line.startswith("{"):
                told = json.loads(line)
                Run.objects.filter(id=run.id).update(phase="sampling", phase_done=1, phase_total=9)
                GrowingTrees.objects.update_or_create(
                    run=run, defaults={"step": told["step"], "at": timezone.now(), "trees": told["trees"]}
                )
                print("ok", flush=True)  # noqa: T201  # read by the test
                continue
            step = int(line)
            Run.objects.filter(id=run.id).update(step=step)
            for index in range(3):
                problem = "again" if index == 2 else f"p-{step}-{index}"
                add_tree(run, step, worked_tree(step, problem_id=problem), index)
            last = add_metrics(run, step, {"reward/mean": 0.25})
            poke(run.id, run.project_id, last)
            print("ok", flush=True)  # noqa: T201  # read by the test
    finally:
        Run.objects.filter(id=run.id).update(
            status=RunStatus.STOPPED, ended_at=timezone.now(), lease_until=None
        )


if __name__ == "__main__":
    main()
