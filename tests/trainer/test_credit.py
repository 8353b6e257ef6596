from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.trees import (
    T1,
    T2,
    Nested,
    children_of,
    credit_tree,
    explain,
    leaves_below,
    nested_trees,
    slow_grpo,
    slow_treerpo,
    slow_value,
    tree_of,
)
from trainer.credit import CreditPlan, RewardRangeError, credit_trees
from trainer.presets import PRESETS
from trainer.schema.credit import (
    CreditConfig,
    GroupMeanBaseline,
    GroupStdScale,
    NoFilter,
    NoScale,
    RangeFilter,
)
from trainer.tree import CreditState, RolloutTree

TREERPO = PRESETS["treerpo-tiny"].config.credit
GRPO = PRESETS["grpo-tiny"].config.credit
NAN = math.nan


def grpo(ddof: int, eps: float) -> CreditConfig:
    return CreditConfig.model_validate(
        GRPO.model_dump() | {"scale": {"kind": "group_std", "ddof": ddof, "eps": eps}}
    )


def leaf_mean(config: CreditConfig) -> CreditConfig:
    return config.model_copy(update={"backup": "leaf_mean"})


def by_name(tree: RolloutTree, column: str) -> dict[str, float]:
    return {tree.name(node): float(getattr(tree, column)[node]) for node in range(tree.n_nodes)}


# T1: root -> A, B; A -> a1 (R=1), a2 (0); B -> b1 (0), b2 (0).
# T2: root -> a (leaf, R=1), b; b -> c (0), d (1), e (0).


def test_t1_values_are_child_means() -> None:
    assert by_name(credit_tree(tree_of(T1), TREERPO), "value") == {
        "0": 0.25, "1": 0.5, "2": 0, "1.1": 1, "1.2": 0, "2.1": 0, "2.2": 0,
    }  # fmt: skip


def test_t2_child_mean_and_leaf_mean_differ_where_a_branch_ends_early() -> None:
    child = by_name(credit_tree(tree_of(T2), TREERPO), "value")
    leaf = by_name(credit_tree(tree_of(T2), leaf_mean(TREERPO)), "value")
    assert child["0"] == pytest.approx(2 / 3)  # (1 + 1/3) / 2
    assert leaf["0"] == pytest.approx(1 / 2)  # 2 of 4 leaves
    assert child["2"] == leaf["2"] == pytest.approx(1 / 3)


def test_t1_treerpo_by_hand() -> None:
    # Root group: values .5, 0; mu .25; mu(1-mu) .1875; .25 / .1875 = 1.3333. Group A: mu .5, .25; .5 / .25 =
    # 2.
    tree = credit_tree(tree_of(T1), TREERPO)
    assert by_name(tree, "advantage") == pytest.approx(
        {"0": NAN, "1": 4 / 3, "2": -4 / 3, "1.1": 2, "1.2": -2, "2.1": NAN, "2.2": NAN}, nan_ok=True
    )
    assert tree.credit_state.tolist() == [
        CreditState.NONE, *[CreditState.CREDITED] * 4, *[CreditState.DROPPED_BY_FILTER] * 2,
    ]  # fmt: skip


def test_t2_treerpo_by_hand() -> None:
    # Root group: 1, 1/3; mu 2/3; mu(1-mu) 2/9; (1/3)/(2/9) = 1.5. Below b: 0, 1, 0; mu 1/3; 2/9: -1.5, 3,
    # -1.5.
    assert by_name(credit_tree(tree_of(T2), TREERPO), "advantage") == pytest.approx(
        {"0": NAN, "1": 1.5, "2": -1.5, "2.1": -1.5, "2.2": 3, "2.3": -1.5}, nan_ok=True
    )


def test_treerpo_divides_by_the_variance_and_not_by_its_root() -> None:
    tree = credit_tree(tree_of([1, 0, 0, 0, 0, 0, 0, 0]), TREERPO)
    assert tree.advantage[1:] == pytest.approx([8.0] + [-8 / 7] * 7)


def test_the_range_filter_is_strict() -> None:
    half = tree_of([[1, 0], [0, 0]])  # root group: .5 and 0, range .5
    at = TREERPO.model_copy(update={"filter": RangeFilter(tau=0.5)})
    below = TREERPO.model_copy(update={"filter": RangeFilter(tau=0.499)})
    assert credit_tree(half, at).credit_state[1] == CreditState.DROPPED_BY_FILTER
    assert credit_tree(half, below).credit_state[1] == CreditState.CREDITED


def test_near_equal_values_are_dropped_by_tau_and_small_without_it() -> None:
    # [.49, .49, .51, .51]: +-.01/.25 = +-.04, not +-1.
    tree = tree_of([0.49, 0.49, 0.51, 0.51])
    assert np.isnan(credit_tree(tree, TREERPO).advantage).all()
    loose = TREERPO.model_copy(update={"filter": RangeFilter(tau=0)})
    assert credit_tree(tree, loose).advantage[1:] == pytest.approx([-0.04, -0.04, 0.04, 0.04], abs=1e-4)


@pytest.mark.parametrize(
    ("ddof", "eps", "first", "others"),
    [(0, 0.0, 1.7321, -0.5774), (1, 0.0, 1.5, -0.5), (1, 1e-4, 1.4997, -0.4999)],
)
def test_flat_group_under_grpo(ddof: int, eps: float, first: float, others: float) -> None:
    tree = credit_tree(tree_of([1, 0, 0, 0]), grpo(ddof, eps))
    assert tree.advantage[1:] == pytest.approx([first, others, others, others], abs=1e-4)
    assert (tree.credit_state[1:] == CreditState.CREDITED).all()


def test_no_scale_is_dr_grpo() -> None:
    config = GRPO.model_copy(update={"scale": NoScale()})
    assert credit_tree(tree_of([1, 0, 0, 0]), config).advantage[1:] == pytest.approx(
        [0.75, -0.25, -0.25, -0.25]
    )


def test_grpo_on_a_tree_compares_all_leaves_and_leaves_inner_nodes_to_their_paths() -> None:
    tree = credit_tree(tree_of(T2), grpo(0, 0.0))
    # Leaves 1, 0, 1, 0: mean .5, std .5.
    assert by_name(tree, "advantage") == pytest.approx(
        {"0": NAN, "1": 1, "2": NAN, "2.1": -1, "2.2": 1, "2.3": -1}, nan_ok=True
    )
    assert tree.credit_state[2] == CreditState.PER_PATH


def test_treerpo_of_depth_one_is_grpo_up_to_scale() -> None:
    tree = tree_of([1, 0, 0, 1, 0])
    bernoulli, std = credit_tree(tree, TREERPO).advantage[1:], credit_tree(tree, grpo(0, 0.0)).advantage[1:]
    assert bernoulli / std == pytest.approx([1 / math.sqrt(0.4 * 0.6)] * 5)


@pytest.mark.parametrize("reward", [0, 1])
def test_all_equal_leaves_teach_nothing(reward: int) -> None:
    tree = tree_of([[reward, reward], [reward, reward]])
    assert np.isnan(credit_tree(tree, TREERPO).advantage).all()
    grpo_tree = credit_tree(tree, GRPO)
    assert grpo_tree.advantage[grpo_tree.is_leaf()].tolist() == [0, 0, 0, 0]


def test_all_equal_group_is_exactly_zero_whatever_rounding_says() -> None:
    # The mean of three times 0.1 is not 0.1 in binary.
    tree = credit_tree(tree_of([0.1, 0.1, 0.1]), grpo(0, 0.0))
    assert tree.advantage[1:].tolist() == [0, 0, 0]


@pytest.mark.parametrize("config", [TREERPO, GRPO])
def test_single_leaf_and_only_children_get_no_credit(config: CreditConfig) -> None:
    tree = credit_tree(tree_of([[1]]), config)
    assert np.isnan(tree.advantage).all()
    assert tree.credit_state[2] == CreditState.ONLY_CHILD
    assert tree.value[0] == 1


def test_a_leaf_whose_verifier_failed_is_in_no_mean() -> None:
    tree = credit_tree(tree_of([1, 0, NAN]), TREERPO)
    assert tree.value[0] == 0.5
    assert tree.advantage[1:3].tolist() == [2, -2]
    assert math.isnan(tree.advantage[3])
    assert tree.credit_state[3] == CreditState.NO_REWARD
    assert credit_tree(tree_of([1, 0, NAN]), grpo(0, 0.0)).advantage[1:3].tolist() == [1, -1]


def test_a_lone_rewarded_sibling_has_nothing_to_be_better_than() -> None:
    tree = credit_tree(tree_of([1, NAN]), TREERPO)
    assert tree.credit_state[1:].tolist() == [CreditState.ONLY_CHILD, CreditState.NO_REWARD]


def test_a_subtree_without_any_reward_has_no_value() -> None:
    tree = credit_tree(tree_of([[NAN, NAN], [1, 0], 0]), TREERPO)
    assert math.isnan(tree.value[1])
    assert tree.credit_state[1] == CreditState.NO_REWARD
    assert tree.value[0] == 0.25


def test_a_tree_of_a_root_alone_is_left_as_it_is() -> None:
    tree = credit_tree(tree_of([]), TREERPO)
    assert tree.credit_state.tolist() == [CreditState.NONE]
    assert math.isnan(tree.value[0])


@pytest.mark.parametrize("reward", [-1, 1.5])
def test_bernoulli_variance_refuses_rewards_outside_zero_to_one(reward: float) -> None:
    with pytest.raises(RewardRangeError, match="rewards from 0 to 1"):
        credit_tree(tree_of([reward, 0]), TREERPO)
    credit_tree(tree_of([reward, 0]), GRPO)


@given(nested_trees())
def test_treerpo_equals_the_slow_recursive_version(nested: Nested) -> None:
    tree = credit_tree(tree_of(nested), TREERPO)
    for node in range(1, tree.n_nodes):
        assert tree.value[node] == pytest.approx(slow_value(tree, node, "child_mean"), nan_ok=True)
        assert tree.advantage[node] == pytest.approx(slow_treerpo(tree, node, 0.1), nan_ok=True)
        assert (tree.credit_state[node] == CreditState.CREDITED) == np.isfinite(tree.advantage[node])


@given(nested_trees(), st.sampled_from([0, 1]), st.sampled_from([0.0, 1e-4]))
def test_grpo_equals_the_slow_version(nested: Nested, ddof: int, eps: float) -> None:
    tree = credit_tree(tree_of(nested), grpo(ddof, eps))
    leaves = leaves_below(tree, 0) if tree.n_nodes > 1 else []
    for node in range(1, tree.n_nodes):
        assert tree.value[node] == pytest.approx(slow_value(tree, node, "leaf_mean"), nan_ok=True)
        expected = slow_grpo(tree, node, ddof, eps) if node in leaves else NAN
        assert tree.advantage[node] == pytest.approx(expected, nan_ok=True)


@given(
    nested_trees(), st.randoms(use_true_random=False), st.sampled_from([TREERPO, GRPO, leaf_mean(TREERPO)])
)
def test_order_of_siblings_does_not_matter(nested: Nested, rng: random.Random, config: CreditConfig) -> None:
    def shuffled(below: Nested) -> Nested:
        if not isinstance(below, list):
            return below
        return rng.sample([shuffled(child) for child in below], len(below))

    def fingerprint(nested: Nested) -> list[tuple[float, ...]]:
        tree = credit_tree(tree_of(nested), config)
        rows = zip(tree.depths(), tree.value, tree.advantage, tree.credit_state, strict=True)
        return sorted(tuple(-9.0 if v != v else round(float(v), 9) for v in row) for row in rows)

    assert fingerprint(nested) == fingerprint(shuffled(nested))


@given(nested_trees(allow_errors=False))
def test_treerpo_advantages_of_a_group_sum_to_zero(nested: Nested) -> None:
    tree = credit_tree(tree_of(nested), TREERPO)
    for node in range(tree.n_nodes):
        group = tree.advantage[children_of(tree, node)]
        if np.isfinite(group).any():
            assert group.sum() == pytest.approx(0, abs=1e-9)


def test_trees_do_not_matter_to_each_other() -> None:
    together = credit_trees([tree_of(T1), tree_of(T2)], CreditPlan(TREERPO))
    assert together[1].advantage.tolist()[1:] == credit_tree(tree_of(T2), TREERPO).advantage.tolist()[1:]


# ---- explanations


def test_explanation_shows_the_figures_of_the_formula() -> None:
    found = explain(credit_tree(tree_of(T1), TREERPO), 1, TREERPO)
    assert found.name == "1"
    assert found.numbers == "A = (0.5 − 0.25) / (0.25 × 0.75) = 1.3333"
    assert found.value_numbers == "V = mean(1, 0) = 0.5"
    assert [(row.name, row.value, row.in_group) for row in found.group] == [
        ("1", 0.5, True),
        ("2", 0.0, True),
    ]
    assert found.filter == "Kept: max V − min V = 0.5 > τ = 0.1."
    assert found.reason == ""


def test_explanation_of_a_dropped_group_says_so() -> None:
    found = explain(tree_of(T1), 5, TREERPO)
    assert found.state is CreditState.DROPPED_BY_FILTER
    assert found.filter == "Dropped: max V − min V = 0 ≤ τ = 0.1."
    assert found.numbers == ""
    assert math.isnan(found.advantage)


def test_explanation_under_grpo_names_all_answers() -> None:
    found = explain(tree_of([1, 0, 0, NAN]), 1, GRPO)
    assert found.numbers == "A = (1 − 0.3333) / (0.5774 + 0.0001) = 1.1545"
    assert [row.in_group for row in found.group] == [True, True, True, False]
    inner = explain(tree_of(T1), 1, GRPO)
    assert inner.state is CreditState.PER_PATH
    assert inner.group == ()


def test_explanation_refuses_a_node_that_is_not_there() -> None:
    with pytest.raises(IndexError, match="nodes 0 to 6"):
        explain(tree_of(T1), 7, TREERPO)


@given(nested_trees(), st.sampled_from([TREERPO, GRPO]))
def test_explanation_recomputes_what_training_used(nested: Nested, config: CreditConfig) -> None:
    tree = credit_tree(tree_of(nested), config)
    for node in range(tree.n_nodes):
        found = explain(tree, node, config)
        assert found.advantage == pytest.approx(tree.advantage[node], nan_ok=True, abs=0)
        assert found.value == pytest.approx(tree.value[node], nan_ok=True, abs=0)
        assert found.state == tree.credit_state[node]
        if found.state is CreditState.CREDITED:
            shown = found.numbers.rpartition("= ")[2].replace("−", "-")
            assert float(shown) == pytest.approx(tree.advantage[node], abs=6e-5)


def test_group_std_over_siblings_is_defined_too() -> None:
    config = CreditConfig(
        baseline=GroupMeanBaseline(group="siblings"),
        spread="node",
        scale=GroupStdScale(ddof=0, eps=0),
        filter=NoFilter(),
    )
    assert credit_tree(tree_of(T1), config).advantage[1:] == pytest.approx([1, -1, 1, -1, 0, 0])
