"""What a config will cost before it runs, in nodes and tokens: upper bounds, from the config alone."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import RunConfig


@dataclass(frozen=True, slots=True)
class Estimate:
    """For one tree, but `tokens_per_step_max`. `flat_tokens_max`: the same leaves as independent answers.

    nodes = sum over depths d of b_1 ... b_d; leaves = b_1 ... b_D; tokens <= sum over d of (b_1 ... b_d) L_d;
    flat = leaves * (L_1 + ... + L_D); saving = 1 - tokens / flat, which for equal L is 1 - nodes / (leaves
    D).
    """

    nodes_per_tree: int
    leaves_per_tree: int
    tokens_per_tree_max: int
    flat_tokens_max: int
    saving: float
    tokens_per_step_max: int


def estimate(config: RunConfig) -> Estimate:
    bounds = config.sampler.bounds
    return Estimate(
        nodes_per_tree=bounds.nodes,
        leaves_per_tree=bounds.leaves,
        tokens_per_tree_max=bounds.tokens,
        flat_tokens_max=bounds.flat_tokens,
        saving=1 - bounds.tokens / bounds.flat_tokens,
        tokens_per_step_max=config.training.problems_per_step * bounds.tokens,
    )
