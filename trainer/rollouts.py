"""The trees of one step: sampled, verified, rewarded; and sampled further where a prompt taught nothing.

Dynamic sampling (DAPO, TreePO): a prompt whose answers all have the same reward has no gradient. With it as
many new problems are sampled as fell out, round by round, until the batch is full or the rounds are over.
Which problems those are is a function of step and round alone, so a resumed run takes the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from trainer.advantages import has_zero_variance
from trainer.data import Problem, TrainingProblems
from trainer.tree import RolloutTree

# Round r of step s takes the problems of "step" s + r * ROUND: far from any that a run gets to.
ROUND: Final = 10**9


@dataclass(frozen=True, slots=True)
class Rollouts:
    """trees: those that teach something first. problems: of each tree. rounds: further ones that were needed;
    dropped: trees whose rewards are all equal.
    """

    trees: list[RolloutTree]
    problems: list[Problem]
    rounds: int = 0
    dropped: int = 0


def collect(
    source: TrainingProblems,
    step: int,
    size: int,
    grow: Callable[[Sequence[Problem]], list[RolloutTree]],
    *,
    resample_rounds: int = 0,
) -> Rollouts:
    """The step's trees. `grow`: problems to trees with rewards. Without rounds simply one tree per
    problem."""
    problems = source.batch(step, size)
    trees = grow(problems)
    if not resample_rounds:
        return Rollouts(trees, problems)
    kept: list[tuple[RolloutTree, Problem]] = []
    dropped: list[tuple[RolloutTree, Problem]] = []
    rounds = 0
    while True:
        for tree, problem in zip(trees, problems, strict=True):
            (dropped if has_zero_variance(tree) else kept).append((tree, problem))
        missing = size - len(kept)
        if missing == 0 or rounds == resample_rounds:
            break
        rounds += 1
        problems = source.batch(step + rounds * ROUND, missing)
        trees = grow(problems)
    both = [*kept, *dropped]
    return Rollouts([tree for tree, _ in both], [problem for _, problem in both], rounds, len(dropped))
