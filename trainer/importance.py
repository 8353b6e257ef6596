"""Importance correction: what was sampled under other logprobs than those of the policy that is trained.

    rho_t = exp(log pi_old(o_t) - log pi_sampled(o_t))     pi_old: the policy before the step's first update;
                                                           pi_sampled: as the engine said when it sampled
    truncated   w = min(rho, cap)                          bounded variance, biased where it cuts
    masked      w = rho if low <= rho <= high else 0
    level token: rho of each token, a weight of that token; level sequence: the product of rho over the
    trained tokens of an item (an answer, or a segment under spread node), a weight of all of it

The weight multiplies the advantage, so the policy term alone: normalisers, regularizers, entropy bonus and
worked solutions stay as they are. Where the logprobs agree every weight is exactly 1. The weights are numbers
of the tree, known before anything is packed, so packed and flat batches carry the same ones. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.loss_weights import Floats, TreeWeights
from trainer.schema.objective import Importance


@dataclass(frozen=True, slots=True)
class Weighed:
    """Trees with their correction in them. `figures`: of the whole update, by metric name; none where nothing
    was weighed.
    """

    weights: list[TreeWeights]
    figures: dict[str, float]


def corrected(weights: Sequence[TreeWeights], old: Sequence[Floats], importance: Importance) -> Weighed:
    """Correct what an update trains on. old: per tree [T] logprobs of the policy, NaN where a token does not
    train; such tokens keep weight 1.
    """
    if importance.kind == "none":
        return Weighed(list(weights), {})
    found, all_raw, all_kept = [], [], []
    for own, known in zip(weights, old, strict=True):
        away = np.where(own.trains & ~np.isnan(known), known - own.tree.logprobs, 0.0)  # [T] log rho
        if importance.level == "token":
            counted = own.trains & ~np.isnan(known)
            raw, kept = _weights(away, importance)
            found.append(replace(own, correction=np.where(counted, kept, 1.0)))
        else:
            counted = own.advantage != 0
            raw, kept = _weights(_per_item(own, away), importance)
            found.append(replace(own, advantage=own.advantage * np.where(counted, kept, 1.0)))
        all_raw.append(raw[counted])
        all_kept.append(kept[counted])
    return Weighed(found, _figures(np.concatenate(all_raw), np.concatenate(all_kept)) if all_raw else {})


def _weights(log_rho: Floats, importance: Importance) -> tuple[Floats, Floats]:
    """rho, and what is left of it."""
    with np.errstate(over="ignore"):  # an infinite ratio is past every bound
        rho = np.exp(log_rho)
    if importance.kind == "truncated":
        return rho, np.minimum(rho, importance.cap)
    if importance.kind == "masked":
        return rho, np.where((rho >= importance.low) & (rho <= importance.high), rho, 0.0)
    return rho, rho


def _per_item(own: TreeWeights, values: Floats) -> Floats:
    """[K] sum of values [T] over each item's tokens."""
    tree = own.tree
    node_of = np.repeat(np.arange(tree.n_nodes), tree.token_counts())
    of_node = np.bincount(node_of, values, minlength=tree.n_nodes).astype(np.float64)
    if own.is_path:
        for node in range(1, tree.n_nodes):
            of_node[node] += of_node[tree.parent[node]]
    found: Floats = of_node[own.end]
    return found


def _figures(raw: Floats, kept: Floats) -> dict[str, float]:
    """cut: share that was truncated or masked. effective: (sum w)^2 / (n sum w^2), the effective sample size
    over the number of weights (Kish), 1 where all are equal.
    """
    if not len(raw):
        return {}
    squares = float((kept**2).sum())
    return {
        "importance/mean_weight": float(kept.mean()),
        "importance/cut_share": float((raw != kept).mean()),
        "importance/effective_share": float(kept.sum()) ** 2 / (len(kept) * squares) if squares else 0.0,
    }
