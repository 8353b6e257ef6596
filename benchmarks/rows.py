"""Rows and events that benchmarks begin with. Import it when Django is set up."""

from __future__ import annotations

import random

from trainer.config import RunConfig
from trainer.events import Metrics, TreeSampled, TreeSummary
from trainer.presets import PRESETS
from webapp.accounts.models import User
from webapp.projects.models import Membership, ModelSource, Project
from webapp.runs.models import Run
from webapp.runs.services import create_run


def new_run(config: RunConfig | None = None) -> Run:
    """A queued run in the project `bench`, whose one member is its creator."""
    project, _ = Project.objects.get_or_create(slug="bench", defaults={"name": "Bench"})
    user, made = User.objects.get_or_create(username="bench")
    if made:
        Membership.objects.create(project=project, user=user, role=Membership.Role.ADMIN)
    ModelSource.objects.get_or_create(
        slug="tiny-reasoner", defaults={"name": "Tiny reasoner", "path": "tiny-reasoner"}
    )
    return create_run(project, user, config or PRESETS["treerpo-tiny"].config, "benchmark")


def metrics_event(step: int, n_points: int) -> Metrics:
    return Metrics(time=1.0, step=step, values={f"area/metric_{i}": step + i / 7 for i in range(n_points)})


def tree_event(step: int, n_nodes: int) -> TreeSampled:
    summary = TreeSummary(
        n_nodes=n_nodes,
        n_leaves=16,
        n_correct=8,
        n_unparsed=0,
        n_truncated=0,
        n_errors=0,
        depth=3,
        tokens=400,
        tokens_flat=900,
        value=0.5,
        advantage_min=-2.0,
        advantage_max=2.0,
        zero_variance_share=0.2,
        mean_entropy=0.3,
        advantage_spread=4.0,
        max_entropy=random.random(),  # noqa: S311 (spread over the indexes)
        mean_logprob=-0.3,
        cliff=-0.5,
        cliff_node="2.1",
        duplicate_share=0.1,
        grpo_flips=2,
    )
    payload = random.Random(step).randbytes(250 * n_nodes)  # noqa: S311 (as incompressible as a payload is)
    return TreeSampled(
        time=1.0, step=step, index=step % 48, problem_id=f"p{step}", prompt="1 + 1 =", summary=summary,
        payload=payload,
    )  # fmt: skip
