from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.trees import tree_of
from trainer.advantages import has_zero_variance
from trainer.data import ChainStream, Problem, ShuffledProblems
from trainer.rollouts import A_STEP, FURTHER, collect
from trainer.schema.credit import NoFilter, ZeroVarianceFilter
from trainer.tree import RolloutTree


def finite(count: int) -> ShuffledProblems:
    return ShuffledProblems([Problem(f"p{i}", f"{i}?", str(i), "") for i in range(count)], seed=3)


class Growth:
    """Grows a tree per problem; of those that `teaches` names the answers differ. Notes what it was asked."""

    def __init__(self, teaches: Callable[[str], bool]) -> None:
        self.teaches, self.asked = teaches, list[list[str]]()

    def __call__(self, problems: Sequence[Problem]) -> list[RolloutTree]:
        self.asked.append([problem.problem_id for problem in problems])
        return [
            tree_of([1, 0] if self.teaches(problem.problem_id) else [0, 0], problem_id=problem.problem_id)
            for problem in problems
        ]


def is_even(name: str) -> bool:
    return int(name.rpartition("-")[2].lstrip("p")) % 2 == 0


def test_without_the_filter_there_is_one_tree_per_problem() -> None:
    for rule in (NoFilter(), ZeroVarianceFilter(resample_rounds=0)):
        growth = Growth(lambda _: False)
        found = collect(finite(20), 2, 4, growth, rule=rule)
        assert (len(found.trees), found.rounds, found.dropped) == (4, 0, 0)
        assert len(growth.asked) == 1


def test_as_many_as_fell_out_are_sampled_until_the_batch_is_full() -> None:
    growth = Growth(is_even)
    found = collect(finite(100), 1, 8, growth, rule=ZeroVarianceFilter(resample_rounds=10))
    missing = 8
    for asked in growth.asked:
        assert len(asked) == missing
        missing -= sum(map(is_even, asked))
    assert missing == 0
    assert found.rounds == len(growth.asked) - 1 > 0
    names = [problem.problem_id for problem in found.problems]
    assert [tree.problem_id for tree in found.trees] == names
    assert all(map(is_even, names[:8]))
    assert not any(map(is_even, names[8:]))
    assert found.dropped == len(names) - 8


def test_no_further_round_once_the_batch_is_full_or_the_rounds_are_over() -> None:
    growth = Growth(lambda _: True)
    assert collect(finite(9), 1, 8, growth, rule=ZeroVarianceFilter(resample_rounds=5)).rounds == 0
    growth = Growth(lambda _: False)
    found = collect(ChainStream(1, 3), 1, 4, growth, rule=ZeroVarianceFilter(resample_rounds=2))
    assert (found.rounds, found.dropped, len(found.trees)) == (2, 12, 12)


@given(st.integers(4, 12), st.integers(1, 4), st.integers(1, 5))
def test_no_problem_is_sampled_again_in_a_step(count: int, size: int, step: int) -> None:
    growth = Growth(lambda _: False)
    found = collect(finite(count), step, size, growth, rule=ZeroVarianceFilter(resample_rounds=100))
    first, *further = growth.asked
    names = [name for asked in further for name in asked]
    assert len(names) == len(set(names))
    assert set(names) == {f"p{i}" for i in range(count)} - set(first)  # all there are, and then no more
    assert found.dropped == len(first) + len(names)


def test_a_resumed_step_draws_the_same_problems_and_steps_draw_apart() -> None:
    def drawn(step: int) -> list[list[str]]:
        growth = Growth(is_even)
        collect(ChainStream(1, 3), step, 6, growth, rule=ZeroVarianceFilter(resample_rounds=5))
        return growth.asked

    assert drawn(3) == drawn(3)
    names = [name for step in range(1, 6) for asked in drawn(step) for name in asked]
    assert len(names) == len(set(names))


def test_further_problems_are_far_from_any_that_a_run_gets_to() -> None:
    # The largest batch in the longest run, and the most problems of a step: 4,096 in each of 100 rounds.
    assert FURTHER > 10**6 * 4096
    assert A_STEP > 100 * 4096


@pytest.mark.parametrize(
    ("rewards", "by_reward", "by_verdict"),
    [
        ([1, 1], True, True),
        ([1, 0.5], False, True),  # both right, one too long
        ([1, -1], False, False),
        ([-1, -1.5], False, True),
    ],
)
def test_answers_are_equal_in_reward_or_in_verdict(
    rewards: list[float], by_reward: bool, by_verdict: bool
) -> None:
    tree = tree_of(rewards)
    assert has_zero_variance(tree, ZeroVarianceFilter(equal="reward")) == by_reward
    assert has_zero_variance(tree, ZeroVarianceFilter(equal="verdict")) == by_verdict


def test_an_answer_without_a_verdict_makes_no_difference() -> None:
    tree = tree_of([1, 1, float("nan")])
    assert has_zero_variance(tree, ZeroVarianceFilter(equal="reward"))
    assert has_zero_variance(tree, ZeroVarianceFilter(equal="verdict"))
    nothing = replace(tree, reward=np.full(4, np.nan))
    assert has_zero_variance(nothing, ZeroVarianceFilter())
