"""Fill the stack's database for the browser tests: a person, a project, an ended run whose texts are hostile.

    python -m tests.browser.plant      prints one JSON object: {"login", "second_login", "run", "tree"}

It runs as a process of its own, with the stack's database in its environment.
"""

from __future__ import annotations

import json
import os
import sys

HOSTILE = (
    "<img src=x onerror=\"window.pwned='img'\"> <script>window.pwned='script'</script> "
    "<button hx-post=/logout/>b</button> {{ 7*7 }} \u202egnirts\u202c a\u200bb </textarea> ${alert(1)}\n"
    "#### 71"
)
HOSTILE_NAME = "<b>bold</b> \u202eeman <img src=x onerror=window.pwned=1>"


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")
    import django

    django.setup()

    from django.utils import timezone

    from tests.webapp.material import add_metrics, add_tree, next_event, worked_tree
    from tests.webapp.test_audits import trees_for
    from tests.webapp.token_trees import reading_tree
    from trainer.credit import credit_plan, credit_trees
    from trainer.presets import PRESETS
    from webapp.accounts.models import User
    from webapp.accounts.services import create_login_link
    from webapp.projects.models import Membership, ModelSource, Project
    from webapp.runs.models import Run, RunStatus
    from webapp.runs.services import create_run

    user = User.objects.create_user("ada")
    project = Project.objects.create(slug="lab", name="Lab")
    Membership.objects.create(project=project, user=user, role="admin")
    ModelSource.objects.create(slug="tiny-reasoner", name="Tiny reasoner", path="tiny-reasoner")
    config = PRESETS["treerpo-tiny"].config
    run = Run.objects.create(
        project=project,
        name=HOSTILE_NAME,
        config=config.model_dump(mode="json"),
        config_sha256=config.sha256(),
        preset=config.preset,
        seed=1,
        colour=4,
        created_by=user,
        status=RunStatus.FAILED,
        reason=f"It failed: {HOSTILE}",
        ended_at=timezone.now(),
        step=2,
        steps_total=2,
    )
    for step in (1, 2):
        stored = add_tree(run, step, worked_tree(step, text=HOSTILE, problem_id="<i>p-1</i>"))
        loss = float("nan") if step == 2 else 0.5
        add_metrics(run, step, {"reward/mean": 0.25 * step, "policy/loss": loss})
    kept = {}
    for name, slug in (("budget_tree", "hbpo-tiny"), ("merged_tree", "step-grpo-tiny")):
        preset = PRESETS[slug]
        (tree,) = credit_trees(trees_for(preset), credit_plan(preset.config))
        other = create_run(project, user, preset.config, slug)
        Run.objects.filter(id=other.id).update(status=RunStatus.SUCCEEDED, ended_at=timezone.now())
        kept[name] = add_tree(other, 1, tree).id
    other = create_run(project, user, config, "reading")
    Run.objects.filter(id=other.id).update(status=RunStatus.SUCCEEDED, ended_at=timezone.now())
    kept["reading_tree"] = add_tree(other, 1, reading_tree()).id
    next_event(run, "log", 2, {"level": "error", "message": HOSTILE})
    json.dump(
        {
            "login": create_login_link(user),
            "second_login": create_login_link(user),
            "run": run.id,
            "tree": stored.id,
            **kept,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
