"""What a step's updates found of each tree, kept with the tree for looking at. It changes no training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trainer.clipping import clips_of
from trainer.loss_weights import Floats, pull
from trainer.optim import UpdateData, UpdateResult
from trainer.schema.objective import Objective, PolicyObjective, PreferenceObjective
from trainer.tree import RolloutTree

HALF = float(np.finfo(np.float16).max)


def with_training(
    trees: Sequence[RolloutTree],
    updates: Sequence[UpdateData],
    results: Sequence[UpdateResult],
    objective: Objective,
) -> list[RolloutTree]:
    """The trees with `mismatch`, `loss_share` and, where a step has several updates, the ratios and what was
    clipped; those that no update was made of as they are.

    Every update counts alike. The share is not defined for preference pairs, whose pull depends on how far
    apart policy and reference are, nor where an update was not applied.
    """
    is_defined = not isinstance(objective, PreferenceObjective) and all(one.is_applied for one in results)
    pulls = [
        float(pull(own, objective).sum()) if is_defined else math.nan
        for update in updates
        for own in update.weights
    ]
    total = math.fsum(pulls)
    of_tree = [own.tree for update in updates for own in update.weights]
    logprobs = [known for result in results for known in result.logprobs]
    if len(logprobs) != len(of_tree):  # nothing trained in one of them
        return list(trees)
    found = {
        id(tree): tree.with_training(
            (tree.logprobs - known).astype(np.float16), own / total if total > 0 else math.nan
        )
        for tree, known, own in zip(of_tree, logprobs, pulls, strict=True)
    }
    if isinstance(objective, PolicyObjective):
        for number, (update, result) in enumerate(zip(updates, results, strict=True), start=1):
            none: list[Floats | None] = [None] * len(update.weights)
            ratios = [*result.log_ratios] or none
            for own, ratio in zip(update.weights, ratios, strict=True):
                clips = None if ratio is None else clips_of(own, ratio, objective)
                halved = None if ratio is None else np.clip(ratio, -HALF, HALF).astype(np.float16)
                found[id(own.tree)] = found[id(own.tree)].with_clips(number, len(updates), halved, clips)
    return [found.get(id(tree), tree) for tree in trees]
