"""The trees of one step: sampled, verified, rewarded; and sampled further where a prompt taught nothing.

Dynamic sampling (DAPO, TreePO): a prompt whose answers are all equal has no gradient. With it as many new
problems are sampled as fell out, round by round, until the batch is full or the rounds are over. Which
problems those are is a function of the step and of what fell out in it, so a resumed run takes the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from trainer.advantages import has_zero_variance
from trainer.data import Problem, TrainingProblems
from trainer.schema.credit import CreditFilter
from trainer.tree import RolloutTree

# Step s takes its further problems from place FURTHER + s * A_STEP on: far from any place that a run's own
# batches get to, and apart from those of every other step.
FURTHER: Final = 10**13
A_STEP: Final = 10**7


@dataclass(frozen=True, slots=True)
class Rollouts:
    """trees: those that teach something first. problems: of each tree. rounds: further ones that were needed;
    dropped: trees whose answers are all equal.
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
    rule: CreditFilter,
) -> Rollouts:
    """The step's trees. `grow`: problems to trees with rewards. Only the filter zero_variance with rounds
    samples further; any other rule leaves it at one tree per problem.
    """
    problems = source.batch(step, size)
    trees = grow(problems)
    if rule.kind != "zero_variance" or not rule.resample_rounds:
        return Rollouts(trees, problems)
    further = _further_problems(source, step, problems)
    kept: list[tuple[RolloutTree, Problem]] = []
    dropped: list[tuple[RolloutTree, Problem]] = []
    rounds = 0
    while True:
        for tree, problem in zip(trees, problems, strict=True):
            (dropped if has_zero_variance(tree, rule) else kept).append((tree, problem))
        if len(kept) == size or rounds == rule.resample_rounds:
            break
        problems = [problem for _, problem in zip(range(size - len(kept)), further, strict=False)]
        if not problems:  # every problem there is was sampled in this step
            break
        rounds += 1
        trees = grow(problems)
    both = [*kept, *dropped]
    return Rollouts([tree for tree, _ in both], [problem for _, problem in both], rounds, len(dropped))


def _further_problems(source: TrainingProblems, step: int, first: Sequence[Problem]) -> Iterator[Problem]:
    """Problems that the step has not sampled yet: the same one again would only give the same answers."""
    drawn = {problem.problem_id for problem in first}
    place = FURTHER + step * A_STEP
    misses = 0
    while source.count is None or (len(drawn) < source.count and misses < 2 * source.count):
        place += 1
        (problem,) = source.batch(place, 1)
        if problem.problem_id in drawn:
            misses += 1
            continue
        misses = 0
        drawn.add(problem.problem_id)
        yield problem
