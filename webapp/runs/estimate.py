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
    sampler = config.sampler
    width, nodes, tokens = 1, 0, 0
    for children, segment in zip(sampler.branching, sampler.segment_tokens, strict=True):
        width *= children
        nodes += width
        tokens += width * segment
    flat = width * sum(sampler.segment_tokens)
    return Estimate(
        nodes_per_tree=nodes,
        leaves_per_tree=width,
        tokens_per_tree_max=tokens,
        flat_tokens_max=flat,
        saving=1 - tokens / flat,
        tokens_per_step_max=config.training.problems_per_step * tokens,
    )
