"""The trees that a run samples just now, as its trees tab shows them. A hint: it may be late, or lost."""

from __future__ import annotations

from typing import Any

from trainer.config import stored_config
from trainer.schema.sampler import Sampler
from webapp.runs.models import Run
from webapp.trees.models import GrowingTrees


def growing(run: Run) -> dict[str, Any]:
    """The newest sketch of a run's step under way: `step` (None: none), `trees`, and where the trainer is.
    `branching`: children that the sampler makes at each depth, so that room can be kept for them; empty where
    that is not planned. Finished runs have none. One query.
    """
    found: dict[str, Any] = {
        "is_active": run.is_active,
        "phase": run.phase if run.is_active else "",
        "done": run.phase_done,
        "total": run.phase_total,
        "step": None,
        "is_recorded": False,
        "branching": _branching(stored_config(run.config).sampler),
        "trees": [],
    }
    hint = GrowingTrees.objects.filter(run=run).first() if run.is_active else None
    if hint is not None:
        found |= {"step": hint.step, "is_recorded": hint.step <= (run.step or 0), "trees": hint.trees}
    return found


def _branching(sampler: Sampler) -> list[int]:
    if sampler.kind == "segment_tree" and not sampler.max_width:
        return list(sampler.branching)
    if sampler.kind == "flat" and not sampler.budgets:
        return [sampler.group_size]
    return []
