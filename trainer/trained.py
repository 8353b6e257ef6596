"""What a step's updates found of each tree, kept with the tree for looking at. It changes no training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trainer.loss_weights import pull
from trainer.optim import UpdateData, UpdateResult
from trainer.schema.objective import Objective, PreferenceObjective
from trainer.tree import RolloutTree


def with_training(
    trees: Sequence[RolloutTree],
    updates: Sequence[UpdateData],
    results: Sequence[UpdateResult],
    objective: Objective,
) -> list[RolloutTree]:
    """The trees with `mismatch` and `loss_share`; those that no update was made of as they are.

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
    return [found.get(id(tree), tree) for tree in trees]
