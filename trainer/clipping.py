"""Where an objective's clipping is active: one rule for the loss (tensors) and for what is recorded of it
(arrays). Torch-free.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.loss_weights import Floats, TreeWeights
from trainer.schema.objective import PolicyObjective


class Clip(IntFlag):
    """What is clipped of a token. A token that answers share may be pushed both ways, and clipped in both."""

    NONE = 0
    ABOVE = 1  # pushed up, and its ratio is past 1 + clip_high already
    BELOW = 2  # pushed down, and its ratio is below 1 - clip_low already
    DUAL = 4  # pushed down, and its ratio is past clip_dual


def clipped_sides(ratio: Any, up: Any, down: Any, objective: PolicyObjective) -> tuple[Any, Any, Any]:
    """Above, below and dual, of terms with these ratios, and sums of positive and of negative weights. `Any`:
    all numpy arrays or all tensors, of one size.
    """
    never = (up > 0) & (up < 0)
    if objective.clip == "none":
        return never, never, never
    above = (up > 0) & (ratio > 1 + objective.clip_high)
    below = (down < 0) & (ratio < 1 - objective.clip_low)
    has_dual = objective.clip == "both" and objective.clip_dual
    return above, below, (down < 0) & (ratio > objective.clip_dual) if has_dual else never


def clips_of(own: TreeWeights, log_ratio: Floats, objective: PolicyObjective) -> NDArray[np.uint8]:
    """[T] Clip of each token of a tree, at the update that trained it. log_ratio [T]: log(policy / the policy
    before the step's first update), nats; NaN where a token did not train. Where the ratio is of whole
    answers, a token is clipped if an answer through it is.
    """
    tree = own.tree
    trained = own.trains & np.isfinite(log_ratio)
    node_of = np.repeat(np.arange(tree.n_nodes), tree.token_counts())
    if objective.ratio in ("token", "none"):
        up, down = own.up[node_of], own.down[node_of]
        if len(own.correction):
            up, down = up * own.correction, down * own.correction
        with np.errstate(over="ignore"):  # an infinite ratio is past every bound
            sides = clipped_sides(np.exp(np.where(trained, log_ratio, 0.0)), up, down, objective)
        return _flags(sides, trained)
    of_node = np.bincount(node_of, np.where(trained, log_ratio, 0.0), minlength=tree.n_nodes)
    whole = np.array([of_node[own.item_nodes(item)].sum() for item in range(len(own.end))])
    if objective.ratio == "geometric":
        whole = whole / np.maximum(own.length, 1)
    weight = own.whole * own.advantage
    with np.errstate(over="ignore"):
        sides = clipped_sides(np.exp(whole), np.maximum(weight, 0), np.minimum(weight, 0), objective)
    return _flags([own.over_nodes(side.astype(np.float64))[node_of] > 0 for side in sides], trained)


def _flags(sides: Any, trained: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """`Any`: three [T] boolean arrays."""
    found = np.zeros(len(trained), np.uint8)
    for side, flag in zip(sides, (Clip.ABOVE, Clip.BELOW, Clip.DUAL), strict=True):
        found[side & trained] |= np.uint8(flag)
    return found
