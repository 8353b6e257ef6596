"""The trees that a run samples just now, as its trees tab shows them. A hint: it may be late, or lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.config import stored_config
from trainer.schema.sampler import Sampler
from webapp.runs.models import Run
from webapp.trees.models import GrowingTrees


def growing(run: Run) -> dict[str, Any]:
    """The newest sketch of a run's step under way: `step` (None: none), `trees`, and where the trainer is.
    `branching`: children that the sampler makes at each depth, so that room can be kept for them; empty where
    that is not planned. `occupancy`: what the engine is at, None while it rests. Finished runs have none. One
    query.
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
        "occupancy": None,
    }
    hint = GrowingTrees.objects.filter(run=run).first() if run.is_active else None
    if hint is not None:
        found |= {"step": hint.step, "is_recorded": hint.step <= (run.step or 0), "trees": hint.trees}
        if run.phase == "sampling":
            found["occupancy"] = hint.occupancy
    return found


def growing_row(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of `growing` in words: its segments with their depth, first come first; 0 tokens: being
    written.
    """
    depth = [0]
    for above in tree["parent"][1:]:
        depth.append(depth[above] + 1)
    return {
        "n_tokens": sum(tree["tokens"]),
        "n_written": sum(reason > 0 for reason in tree["finish"]),
        "n_segments": len(depth) - 1,
        "depths": [
            {
                "depth": at,
                "n": sum(one == at for one in depth),
                "n_written": sum(
                    one == at and reason > 0 for one, reason in zip(depth, tree["finish"], strict=True)
                ),
                "tokens": sum(count for one, count in zip(depth, tree["tokens"], strict=True) if one == at),
            }
            for at in range(1, max(depth) + 1)
        ],
    }


def _branching(sampler: Sampler) -> list[int]:
    if sampler.kind == "segment_tree" and not sampler.max_width:
        return list(sampler.branching)
    if sampler.kind == "flat" and not sampler.budgets:
        return [sampler.group_size]
    return []
