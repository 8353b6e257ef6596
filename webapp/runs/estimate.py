"""What a config will cost before it runs, in nodes and tokens: upper bounds, from the config alone."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import RunConfig
from trainer.schema.sampler import Sampler

MOST_CELLS = 4096  # of one row of a picture


@dataclass(frozen=True, slots=True)
class Estimate:
    """For one tree, or for all of a step. `flat_tokens_max`: the same leaves as independent answers.

    nodes = sum over depths d of b_1 ... b_d; leaves = b_1 ... b_D; tokens <= sum over d of (b_1 ... b_d) L_d;
    flat = leaves * (L_1 + ... + L_D); saving = 1 - tokens / flat, which for equal L is 1 - nodes / (leaves
    D). `is_loose`: how much is shared is decided while sampling, so the bounds may be far above what comes,
    and `saving` is None. `rows`: nodes at depth 1, 2, ... as a picture shows them. `tokens_total_max`: of all
    `steps`, as `most_tokens` counts them.
    """

    nodes_per_tree: int
    leaves_per_tree: int
    tokens_per_tree_max: int
    flat_tokens_max: int
    saving: float | None
    leaves_per_step: int
    nodes_per_step: int
    tokens_per_step_max: int
    flat_tokens_per_step_max: int
    steps: int
    tokens_total_max: int
    is_loose: bool
    rows: tuple[int, ...]


def estimate(config: RunConfig, from_step: int = 0) -> Estimate:
    """`from_step`: the step of the checkpoint that a fork begins with."""
    bounds = config.sampler.bounds
    trees = config.training.problems_per_step
    loose = is_loose(config.sampler)
    return Estimate(
        nodes_per_tree=bounds.nodes,
        leaves_per_tree=bounds.leaves,
        tokens_per_tree_max=bounds.tokens,
        flat_tokens_max=bounds.flat_tokens,
        saving=None if loose else 1 - bounds.tokens / bounds.flat_tokens,
        leaves_per_step=trees * bounds.leaves,
        nodes_per_step=trees * bounds.nodes,
        tokens_per_step_max=trees * bounds.tokens,
        flat_tokens_per_step_max=trees * bounds.flat_tokens,
        steps=max(config.training.steps - from_step, 0),
        tokens_total_max=most_tokens(config, from_step),
        is_loose=loose,
        rows=tuple(min(row, MOST_CELLS) for row in picture_rows(config.sampler)),
    )


def most_tokens(config: RunConfig, from_step: int = 0) -> int:
    """The most that all steps can sample, with the problems that are drawn for others that taught nothing,
    and up to the limit of sampled tokens, at which only the step at work ends.
    """
    rule = config.credit.filter
    rounds = 1 + (rule.resample_rounds if rule.kind == "zero_variance" else 0)
    per_step = rounds * config.training.problems_per_step * config.sampler.bounds.tokens
    most = max(config.training.steps - from_step, 0) * per_step
    limit = config.training.max_sampled_tokens
    return min(most, limit + per_step) if limit else most


def is_loose(sampler: Sampler) -> bool:
    """Whether the shape of a tree is decided while it is sampled, answers that end early aside."""
    if sampler.kind == "flat":
        return sampler.merge != "none"
    if sampler.kind == "segment_tree":
        return sampler.fallback != "none" or sampler.root_branching_max > sampler.branching[0]
    return True


def picture_rows(sampler: Sampler) -> tuple[int, ...]:
    """Nodes at depth 1, 2, ...: planned, or for samplers without a plan the widest that is typical."""
    if sampler.kind == "flat" and sampler.budgets:
        return len(sampler.budgets), sampler.group_size
    if sampler.kind == "fork_tree":
        return sampler.trees, sampler.bounds.leaves
    if sampler.kind == "lookahead":
        rows = [2]
        while rows[-1] < sampler.group_size:
            rows.append(min(2 * rows[-1], sampler.group_size))
        return tuple(rows)
    if sampler.kind == "search_tree":
        return tuple(
            min(sampler.expand**depth, sampler.bounds.nodes) for depth in range(1, sampler.depth + 1)
        )
    return sampler.bounds.per_depth
