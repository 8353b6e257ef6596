from __future__ import annotations

import math

import numpy as np
import pytest

from tests.trainer.trees import T1, credit_tree, leaves_below, slow_grpo, slow_treerpo, tree_of
from trainer.comparison import OWN, Compared, compare, estimators, grpo_advantages
from trainer.config import RunConfig
from trainer.credit import CreditPlan, credit_plan, credit_trees
from trainer.presets import PRESETS
from trainer.tree import CreditState, RolloutTree

TREERPO = credit_plan(PRESETS["treerpo-tiny"].config)
#        0                   rewards below 1: 1 1 1 0, below 2.1: 0 0 0, below 2.2: 1 0 0
#     1     2                mean reward 4/10
#          2.1  2.2          2.2 beats its sibling (TreeRPO pushes it up) and is below the mean (GRPO: down)
NESTED = [[1, 1, 1, 0], [[0, 0, 0], [1, 0, 0]]]


def by_name(tree: RolloutTree, own: CreditPlan) -> dict[str, Compared]:
    return {found.name: found for found in compare(tree, own)}


def test_every_preset_has_its_credit_in_the_list_once() -> None:
    listed = [estimator.credit for estimator in estimators()]
    assert all(preset.config.credit in listed for preset in PRESETS.values())
    assert len(listed) == len({credit.model_dump_json() for credit in listed})
    (grpo,) = [estimator for estimator in estimators() if estimator.name == "grpo"]
    assert grpo.title.startswith("GRPO, ")


def test_numbers_are_those_of_the_slow_versions_and_flips_are_by_sign() -> None:
    tree = credit_tree(tree_of(NESTED), TREERPO.credit)
    found = by_name(tree, TREERPO)
    treerpo, grpo = found["treerpo"], found["grpo"]
    assert (treerpo.is_own, grpo.is_own) == (True, False)
    np.testing.assert_array_equal(treerpo.advantage, tree.advantage)
    assert not treerpo.flips.any()
    for node in range(1, tree.n_nodes):
        assert treerpo.advantage[node] == pytest.approx(slow_treerpo(tree, node, 0.1), nan_ok=True)
        mean = np.mean([slow_grpo(tree, leaf, 1, 1e-4) for leaf in leaves_below(tree, node)])
        assert grpo.push[node] == pytest.approx(float(mean))
        assert grpo_advantages(tree)[node] == pytest.approx(float(mean))
        is_inner = node in tree.parent
        assert math.isnan(grpo.advantage[node]) == is_inner
        assert (grpo.state[node] == CreditState.PER_PATH) == is_inner
    assert [tree.name(node) for node in np.flatnonzero(grpo.flips)] == ["2.2"]


def test_what_is_not_defined_says_why() -> None:
    found = by_name(credit_tree(tree_of(T1), TREERPO.credit), TREERPO)
    assert "whole batch" in found["lite-ppo"].reason
    assert "token budgets" in found["hbpo"].reason
    assert "not on advantages" in found["mcts-dpo"].reason
    assert np.isnan(found["lite-ppo"].advantage).all()
    assert found["mcts-dpo"].value[0] == 0.25
    assert all(one.reason or np.isfinite(one.push[1:]).any() for one in found.values())
    signed = tree_of([[1, -1], [-1, -1]])
    refused = by_name(signed, TREERPO)["treerpo"]
    assert "needs rewards from 0 to 1" in refused.reason
    assert np.isnan(refused.value).all()


@pytest.mark.parametrize("slug", ["lite-ppo-tiny", "treepo-tiny", "spo-tree-tiny", "hbpo-tiny"])
def test_the_estimator_that_trained_uses_what_its_trees_remember(slug: str) -> None:
    plan = credit_plan(PRESETS[slug].config)
    trees = credit_trees([tree_of(T1), tree_of(NESTED, problem_id="q")], plan)
    (own,) = [one for one in compare(trees[1], plan) if one.is_own]
    assert own.reason == ""
    np.testing.assert_array_equal(own.advantage, trees[1].advantage)
    np.testing.assert_array_equal(own.value, trees[1].value)


def test_a_credit_of_ones_own_stands_at_the_front() -> None:
    config = PRESETS["treerpo-tiny"].config
    credit = config.credit.model_copy(update={"filter": config.credit.filter.model_copy(update={"tau": 0.2})})
    own = credit_plan(RunConfig(**(dict(config) | {"credit": credit})))
    found = compare(credit_tree(tree_of(T1), credit), own)
    assert (found[0].name, found[0].is_own) == (OWN, True)
    assert sum(one.is_own for one in found) == 1
