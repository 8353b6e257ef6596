"""Every estimator against trees worked by hand and against its limits. Against a slow version of itself, in
every combination of parts: `test_credit_parts.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.trees import (
    T1,
    T2,
    Nested,
    credit_tree,
    nested_trees,
    tree_of,
)
from trainer.config import RunConfig
from trainer.credit import CreditPlan, RewardRangeError, credit_of, credit_plan, credit_trees, selected_leaves
from trainer.explanation import explain as explain_with
from trainer.presets import PRESETS
from trainer.schema.credit import (
    AncestorMeanBaseline,
    BatchStdScale,
    BatchWhitenScale,
    BudgetBaseline,
    CreditConfig,
    GroupMeanBaseline,
    GroupStdScale,
    InverseSqrtLeavesScale,
    LeaveOneOutBaseline,
    LogAvgExpBaseline,
    NoBaseline,
    NoFilter,
    NonzeroFilter,
    NoScale,
    ParentValueBaseline,
    RootAndParentBaseline,
    SomeLeaves,
    StateBaseline,
    TreeAndPromptBaseline,
    ZeroVarianceFilter,
)
from trainer.schema.reward import BudgetShaping
from trainer.tree import CreditState, FinishReason, RolloutTree, Verdict

NAN = math.nan
# T1: root -> A, B; A -> a1 (1), a2 (0); B -> b1 (0), b2 (0). Breadth-first: A B a1 a2 b1 b2.
# T2: root -> a (leaf, 1), b; b -> c (0), d (1), e (0). Breadth-first: a b c d e.


def credit(**parts: Any) -> CreditConfig:
    base: dict[str, Any] = {
        "backup": "leaf_mean", "scale": NoScale(), "spread": "trajectory", "filter": NoFilter(),
    }  # fmt: skip
    return CreditConfig(**(base | parts))


GRPO_0 = credit(baseline=GroupMeanBaseline(group="prompt"), scale=GroupStdScale(ddof=0, eps=0))
TREEPO = credit(baseline=AncestorMeanBaseline())
WHITENED = credit(baseline=AncestorMeanBaseline(), scale=BatchWhitenScale(eps=0))
TREERL = credit(baseline=RootAndParentBaseline(), scale=InverseSqrtLeavesScale(), spread="node")
TREERL_CODE = credit(baseline=RootAndParentBaseline(form="code"), spread="node")
SPO = credit(backup="child_mean", baseline=ParentValueBaseline(), spread="node", filter=NonzeroFilter())
TREEADV = credit(
    baseline=GroupMeanBaseline(group="prompt"), scale=GroupStdScale(ddof=0, eps=0), spread="leaf_mean"
)
STEP = credit(baseline=StateBaseline(global_term=False), spread="node")
STEP_PLUS = credit(baseline=StateBaseline(global_term=True), spread="node")


def advantages(nested: Nested, config: CreditConfig, **tree: Any) -> list[float]:
    return credit_tree(tree_of(nested, **tree), config).advantage[1:].tolist()


def check(found: list[float], expected: list[float]) -> None:
    assert found == pytest.approx(expected, abs=1e-4, nan_ok=True)


# ---------------------------------------------------------------------------------------- worked examples


def test_treepo_by_hand() -> None:
    # a1: (1 - .25 + 1 - .5) / 2 = .625; b1: (0 - .25 + 0 - 0) / 2 = -.125.
    check(advantages(T1, TREEPO), [NAN, NAN, 0.625, -0.375, -0.125, -0.125])
    # a is a leaf at depth 1: one level. d: (1 - .5 + 1 - .3333) / 2.
    check(advantages(T2, TREEPO), [0.5, NAN, -0.4167, 0.5833, -0.4167])


def test_treepo_weighted_by_size() -> None:
    # a1: (4 (1 - .25) + 2 (1 - .5)) / 6 = .6667.
    config = credit(baseline=AncestorMeanBaseline(weights="size"))
    check(advantages(T1, config), [NAN, NAN, 0.6667, -0.3333, -0.1667, -0.1667])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # One token per answer: inner segments empty, four tokens, Bessel.
        ([0, 0, 1, 1, 1, 1], [1.4434, -0.8660, -0.2887, -0.2887]),
        ([0, 0, 1, 1, 2, 4], [2.3606, -1.0730, -0.2146, -0.2146]),
        # Many tokens: n - 1 is n.
        ([0, 0, 9000, 9000, 9000, 9000], [1.6667, -1.0, -0.3333, -0.3333]),
    ],
)
def test_treepo_whitened_counts_tokens(counts: list[int], expected: list[float]) -> None:
    check(advantages(T1, WHITENED, tokens_per_segment=counts)[2:], expected)


def test_whitening_is_over_the_whole_batch_and_counts_shared_tokens_per_answer() -> None:
    trees = credit_trees([tree_of(T1), tree_of(T2)], CreditPlan(WHITENED))
    raw = [x for nested in (T1, T2) for x in advantages(nested, TREEPO) if not math.isnan(x)]
    weights = [4, 4, 4, 4, 2, 4, 4, 4]  # two tokens per segment, whole paths
    mean = np.average(raw, weights=weights)
    std = math.sqrt(np.dot(weights, (np.array(raw) - mean) ** 2) / (sum(weights) - 1))
    found = [x for tree in trees for x in tree.advantage.tolist() if not math.isnan(x)]
    check(found, [(x - mean) / std for x in raw])
    assert trees[0].batch_mean == pytest.approx(mean)
    assert trees[1].batch_std == pytest.approx(std)


def test_treerl_paper_by_hand() -> None:
    # A: (.25 + .25) / sqrt 2; a1: (1 - .25) + (1 - .5).
    check(advantages(T1, TREERL), [0.3536, -0.3536, 1.25, -0.75, -0.25, -0.25])
    check(advantages(T2, TREERL), [1.0, -0.1925, -0.8333, 1.1667, -0.8333])


def test_treerl_code_by_hand() -> None:
    # a1: leave-one-out 1; A: .6667 / sqrt 2 / 2 = .2357; (1 - .2357) + 1.
    check(advantages(T1, TREERL_CODE), [0.4714, -0.4714, 1.7643, -0.9024, -0.4310, -0.4310])
    check(advantages(T2, TREERL_CODE), [1.3333, -0.2566, -1.2050, 1.4616, -1.2050])


def test_spo_tree_drops_edges_without_advantage() -> None:
    found = credit_tree(tree_of(T1), SPO)
    check(found.advantage[1:].tolist(), [0.25, -0.25, 0.5, -0.5, NAN, NAN])
    assert found.credit_state[5:].tolist() == [CreditState.DROPPED_BY_FILTER] * 2


def test_d_treerpo_by_hand() -> None:
    # Less the mean of the others: A .5 - 0; a 1 - 1/3; c 0 - (1 + 0) / 2.
    config = PRESETS["d-treerpo-tiny"].config.credit
    check(advantages(T1, config), [0.5, -0.5, 1, -1, 0, 0])
    check(advantages(T2, config), [0.6667, -0.6667, -0.5, 1, -0.5])


def test_treeadv_gives_segments_the_mean_of_their_leaves() -> None:
    check(advantages(T1, TREEADV), [0.5774, -0.5774, 1.7321, -0.5774, -0.5774, -0.5774])


FLAT: Nested = [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GRPO_0, [1.7321, -0.5774, -0.5774, -0.5774]),
        (
            credit(baseline=GroupMeanBaseline(group="prompt"), scale=GroupStdScale(ddof=1, eps=0)),
            [1.5, -0.5, -0.5, -0.5],
        ),
        (
            credit(baseline=GroupMeanBaseline(group="prompt"), scale=GroupStdScale(ddof=1, eps=1e-4)),
            [1.4997, -0.49990, -0.49990, -0.49990],
        ),
        (credit(baseline=GroupMeanBaseline(group="prompt")), [0.75, -0.25, -0.25, -0.25]),
        (credit(baseline=LeaveOneOutBaseline(group="prompt")), [1, -1 / 3, -1 / 3, -1 / 3]),
        (credit(baseline=GroupMeanBaseline(group="prompt", shift=-0.1)), [0.85, -0.15, -0.15, -0.15]),
        # log((e + 3) / 4) = .35746
        (credit(baseline=LogAvgExpBaseline(tau=1.0)), [0.64254, -0.35746, -0.35746, -0.35746]),
    ],
)
def test_flat_group_by_hand(config: CreditConfig, expected: list[float]) -> None:
    check(advantages(FLAT, config), expected)


@pytest.mark.parametrize(
    ("ddof", "expected"), [(1, [1.4031, -0.4677, 0.4677, -1.4031]), (0, [1.5, -0.5, 0.5, -1.5])]
)
def test_lite_ppo_divides_by_the_deviation_of_the_batch(ddof: int, expected: list[float]) -> None:
    config = credit(baseline=GroupMeanBaseline(group="prompt"), scale=BatchStdScale(ddof=ddof, eps=0))
    first, second = credit_trees([tree_of([1, 0, 0, 0]), tree_of([1, 1, 1, 0])], CreditPlan(config))
    check(first.advantage[1:].tolist(), [expected[0], *[expected[1]] * 3])
    check(second.advantage[1:].tolist(), [*[expected[2]] * 3, expected[3]])


def test_lite_ppo_may_take_the_deviation_of_centred_rewards() -> None:
    config = credit(
        baseline=GroupMeanBaseline(group="prompt"), scale=BatchStdScale(std_of="centred", ddof=0, eps=0)
    )
    first, _ = credit_trees([tree_of([1, 0, 0, 0]), tree_of([1, 1, 1, 0])], CreditPlan(config))
    # Centred: .75, -.25 x3, .25 x3, -.75: variance (2 (9 + 3) / 16) / 8 = .1875.
    check(first.advantage[1:2].tolist(), [0.75 / math.sqrt(0.1875)])


def test_tree_grpo_by_hand() -> None:
    # Two trees [1,0,0] and [1,1,0]; inter +-.9129, intra 1.1547, -.5774 and .5774, -1.1547 (n - 1).
    tree = replace(tree_of([1, 0, 0, 1, 1, 0]), subgroup=np.array([0, 0, 0, 0, 1, 1, 1], np.int32))
    config = credit(baseline=TreeAndPromptBaseline(eps=0))
    check(
        credit_tree(tree, config).advantage[1:].tolist(), [2.0676, -1.4902, -1.4902, 1.4902, 1.4902, -2.0676]
    )


def test_treerpo_scale() -> None:
    treerpo = PRESETS["treerpo-tiny"].config.credit
    check(advantages([1, *[0] * 7], treerpo), [8.0, *[-1.1429] * 7])
    close: Nested = [[1] * 49 + [0] * 51, [1] * 49 + [0] * 51, [1] * 51 + [0] * 49, [1] * 51 + [0] * 49]
    found = credit_tree(tree_of(close), treerpo)
    assert found.credit_state[1:5].tolist() == [CreditState.DROPPED_BY_FILTER] * 4  # range .02 <= tau
    loose = treerpo.model_copy(update={"filter": treerpo.filter.model_copy(update={"tau": 0.01})})
    check(credit_tree(tree_of(close), loose).advantage[1:5].tolist(), [-0.04, -0.04, 0.04, 0.04])


def test_quality_by_hand() -> None:
    # root -> u, w (wrong); u -> x (right), y (wrong). m: root 3, u 2, x 1, y 2, w 3.
    config = credit(backup="quality", baseline=NoBaseline(), spread="node")
    found = credit_tree(tree_of([[1, 0], 0]), config)
    check(found.value.tolist(), [0.0, 0.5, 0.0, 1.0, 0.25])
    assert set(found.credit_state[1:].tolist()) == {CreditState.NO_ADVANTAGE}
    assert np.isnan(found.advantage).all()


def test_quality_without_a_correct_leaf_is_zero() -> None:
    config = credit(backup="quality", baseline=NoBaseline(), spread="node")
    assert credit_tree(tree_of([[0, 0], 0]), config).value.tolist() == [0.0] * 5


def test_visit_weighted_values() -> None:
    tree = replace(tree_of([[1, 0], 0]), visits=np.array([9, 6, 3, 5, 0], np.int32))
    config = credit(backup="visit_weighted", baseline=NoBaseline(), spread="node")
    # u: (5 * 1 + 1 * 0) / 6 (0 visits count as 1); root: (6 * 5/6 + 3 * 0) / 9.
    check(credit_tree(tree, config).value.tolist(), [5 / 9, 5 / 6, 0, 1, 0])


def merged_example() -> RolloutTree:
    """Rollouts ab -> 1, ab -> 1, ac -> 0, de -> 0 as a trie. Breadth-first: a d b c e."""
    tree = tree_of([[1, 0], [0]])
    return replace(tree, copies=np.array([0, 0, 0, 2, 1, 1], np.int32))


def test_step_grpo_by_hand() -> None:
    found = credit_tree(merged_example(), STEP)
    # V(a) = 2/3, V(d) = 0, mu .5, sd .288675; below a: mu .6667, sd .4714. e has no siblings.
    check(found.advantage[1:].tolist(), [0.5772, -1.7315, 0.7070, -1.4139, NAN])
    assert found.credit_state[5] == CreditState.ONLY_CHILD
    plus = credit_tree(merged_example(), STEP_PLUS)
    check(
        plus.advantage[1:].tolist(),
        [0.5772 + 0.3333, -1.7315 - 0.9998, 0.7070 + 0.9998, -1.4139 - 0.9998, -0.9998],
    )


def test_hbpo_by_hand() -> None:
    # Budgets 10 and 20 of L = 40, beta 1: f(b) = cos(pi b / 80) = .92388, .70711. Rewards as they are.
    tree = tree_of([[1, 0], [1, 1]])
    finish = tree.finish.copy()
    finish[1:3] = FinishReason.GIVEN
    tree = replace(tree, finish=finish, subgroup=np.array([0, 0, 1, 0, 0, 1, 1], np.int32))
    config = credit(baseline=BudgetBaseline(ddof=0, eps=0))
    shaping = BudgetShaping(max_tokens=40, beta=1.0, alpha=0.0)
    found = credit_tree(tree, config, budget=shaping, budgets=(10, 20))
    z = [(r - 0.75) / math.sqrt(0.1875) for r in (1, 0, 1, 1)]
    offsets = [0.5 - 0.92388, 0.5 - 0.92388, 1 - 0.70711, 1 - 0.70711]
    check(found.advantage[3:].tolist(), [a + b for a, b in zip(z, offsets, strict=True)])
    assert found.credit_state[1:3].tolist() == [CreditState.GIVEN] * 2


# ---------------------------------------------------------------------------------------- degenerate cases


@pytest.mark.parametrize("reward", [0, 1])
def test_all_equal_rewards(reward: int) -> None:
    nested: Nested = [[reward, reward], [reward, reward]]
    assert np.isnan(advantages(nested, PRESETS["treerpo-tiny"].config.credit)).all()
    rejecting = credit(baseline=AncestorMeanBaseline(), filter=ZeroVarianceFilter())
    rejected = credit_tree(tree_of(nested), rejecting)
    assert set(rejected.credit_state[3:].tolist()) == {CreditState.DROPPED_BY_FILTER}
    for config in (GRPO_0, TREERL, TREERL_CODE, credit(baseline=TreeAndPromptBaseline()), TREEPO):
        assert [x for x in advantages(nested, config) if not math.isnan(x)] == pytest.approx(
            [0.0] * 4, abs=0
        ) or all(x == 0 for x in advantages(nested, config) if not math.isnan(x))
    asymre = credit(baseline=GroupMeanBaseline(group="prompt", shift=-0.1))
    check(advantages(nested, asymre)[2:], [0.1] * 4)


def test_a_group_of_one() -> None:
    assert np.isnan(advantages([1], GRPO_0)).all()
    check(advantages([1], credit(baseline=LeaveOneOutBaseline(group="prompt", single="reward"))), [1.0])
    check(
        advantages([1], credit(baseline=GroupMeanBaseline(group="prompt", shift=-0.1, single="reward"))),
        [1.0],
    )
    check(advantages([1], credit(baseline=TreeAndPromptBaseline(eps=0))), [2.0])
    check(advantages([1], TREEPO), [0.0])


def test_a_chain_node_counts_its_group_twice_in_treepo() -> None:
    # root -> x -> [1, 0], y (0): for 1 under x the root's mean is 1/3 and x's .5. With a chain node c between
    # x and its leaves, .5 counts twice.
    check(advantages([[1, 0], 0], TREEPO)[2:], [(2 / 3 + 0.5) / 2, (-1 / 3 - 0.5) / 2])
    check(advantages([[[1, 0]], 0], TREEPO)[3:], [(2 / 3 + 0.5 + 0.5) / 3, (-1 / 3 - 0.5 - 0.5) / 3])


def test_errors_have_no_credit_and_enter_no_mean() -> None:
    for config in (GRPO_0, TREEPO, TREERL, STEP_PLUS, credit(baseline=LeaveOneOutBaseline(group="prompt"))):
        with_error, without = credit_tree(tree_of([1, 0, NAN]), config), credit_tree(tree_of([1, 0]), config)
        assert math.isnan(with_error.advantage[3])
        assert with_error.credit_state[3] == CreditState.NO_REWARD
        assert with_error.advantage[1:3].tolist() == pytest.approx(without.advantage[1:3].tolist())


def test_quality_and_variance_refuse_rewards_out_of_range() -> None:
    config = credit(backup="quality", baseline=NoBaseline(), spread="node")
    with pytest.raises(RewardRangeError, match=r"node 1\.2.*-1"):
        credit_tree(tree_of([[1, -1], 0]), config)


# ---------------------------------------------------------------------------------------- limits


@given(st.lists(st.sampled_from([0, 1]), min_size=2, max_size=8))
def test_depth_one_limits(rewards: list[int]) -> None:
    flat: Nested = list(rewards)
    group_mean = credit(baseline=GroupMeanBaseline(group="prompt"))
    dr_grpo = advantages(flat, group_mean)
    check(advantages(flat, TREEPO), dr_grpo)  # one ancestor, the root
    parent = credit(backup="child_mean", baseline=ParentValueBaseline(), spread="node")
    check(advantages(flat, parent), dr_grpo)
    n = len(rewards)
    check(
        advantages(flat, credit(baseline=LeaveOneOutBaseline(group="prompt"))),
        [a * n / (n - 1) for a in dr_grpo],
    )
    # TreeRPO of depth one is GRPO with mu (1 - mu) for its root.
    if 0 < sum(rewards) < n:
        mu = sum(rewards) / n
        treerpo = advantages(flat, PRESETS["treerpo-tiny"].config.credit)
        check([a * math.sqrt(mu * (1 - mu)) for a in treerpo], advantages(flat, GRPO_0))


@given(nested_trees(allow_errors=False))
def test_treeadv_weighted_by_leaves_is_what_broadcasting_does(nested: Nested) -> None:
    tree = tree_of(nested)
    mean, leaf = credit_tree(tree, TREEADV).advantage, credit_tree(tree, GRPO_0).advantage
    sums = tree.sum_over_leaves(np.nan_to_num(leaf))
    inner = np.isfinite(mean)
    assert (mean * tree.leaf_counts())[inner] == pytest.approx(sums[inner], abs=1e-9)


LEAF_BASED = {
    "grpo": GRPO_0,
    "rloo": credit(baseline=LeaveOneOutBaseline(group="prompt")),
    "log_avg_exp": credit(baseline=LogAvgExpBaseline(tau=0.7)),
    "batch": credit(baseline=GroupMeanBaseline(group="prompt"), scale=BatchStdScale()),
    "whiten": credit(baseline=GroupMeanBaseline(group="prompt"), scale=BatchWhitenScale()),
    "prompt z": credit(baseline=TreeAndPromptBaseline(parts="prompt")),
}


@pytest.mark.parametrize("config", LEAF_BASED.values(), ids=LEAF_BASED)
@given(st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(1, 3)), min_size=2, max_size=5))
def test_merged_answers_get_what_unmerged_ones_get(
    config: CreditConfig, answers: list[tuple[int, int]]
) -> None:
    merged = tree_of([reward for reward, _ in answers])
    merged = replace(merged, copies=np.array([0, *(n for _, n in answers)], np.int32))
    apart = credit_tree(tree_of([reward for reward, n in answers for _ in range(n)]), config)
    together = credit_tree(merged, config)
    first = np.cumsum([1, *(n for _, n in answers)])[:-1]
    check(together.advantage[1:].tolist(), apart.advantage[first].tolist())


# ---------------------------------------------------------------------------------------- invariances


CONFIGS = {
    **LEAF_BASED,
    "treepo": WHITENED,
    "treepo size": credit(baseline=AncestorMeanBaseline(weights="size")),
    "ancestors by node": credit(backup="child_mean", baseline=AncestorMeanBaseline(), spread="node"),
    "treerl": TREERL,
    "treerl code": TREERL_CODE,
    "spo": credit(
        backup="child_mean",
        baseline=ParentValueBaseline(),
        scale=BatchWhitenScale(count="once"),
        spread="node",
        filter=NonzeroFilter(),
    ),
    "spo grpo": credit(
        backup="child_mean",
        baseline=ParentValueBaseline(),
        scale=GroupStdScale(ddof=0, eps=1e-8),
        spread="node",
    ),
    "treeadv": TREEADV,
    "treerpo": PRESETS["treerpo-tiny"].config.credit,
    "d-treerpo": PRESETS["d-treerpo-tiny"].config.credit,
    "tree-grpo": credit(baseline=TreeAndPromptBaseline()),
    "step": STEP,
    "step+": STEP_PLUS,
    "zero variance": credit(baseline=GroupMeanBaseline(group="prompt"), filter=ZeroVarianceFilter()),
}  # fmt: skip


def reordered(nested: Nested) -> Nested:
    return [reordered(child) for child in reversed(nested)] if isinstance(nested, list) else nested


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@settings(max_examples=25)
@given(nested_trees(max_leaves=12))
def test_order_of_siblings_does_not_matter(config: CreditConfig, nested: Nested) -> None:
    here, there = credit_tree(tree_of(nested), config), credit_tree(tree_of(reordered(nested)), config)
    counts = here.child_counts()
    for node in range(1, here.n_nodes):
        # The same node of the mirrored tree: every child number counted from the other end.
        numbers = [int(n) for n in here.name(node).split(".")]
        path = here.path(node)
        mirrored = [int(counts[p]) - n + 1 for p, n in zip(path[:-1], numbers, strict=True)]
        other = there.find(".".join(map(str, mirrored)))
        assert there.advantage[other] == pytest.approx(here.advantage[node], abs=1e-9, nan_ok=True)
        assert there.credit_state[other] == here.credit_state[node]


# ---------------------------------------------------------------------------------------- leaves


def test_some_leaves_train_and_one_of_them_is_correct() -> None:
    config = credit(
        baseline=RootAndParentBaseline(),
        scale=InverseSqrtLeavesScale(),
        spread="node",
        leaves=SomeLeaves(count=2),
    )
    for number in range(20):
        tree = tree_of([[0, 0, 0], [0, 0, 1]], problem_id=f"p{number}")
        plan = CreditPlan(config, seed=3)
        chosen = selected_leaves(tree, plan)
        assert chosen.sum() == 2
        assert (tree.verdict[chosen] == Verdict.CORRECT).any()
        assert (chosen == selected_leaves(tree, plan)).all()
        found = credit_trees([tree], plan)[0]
        trains = tree.sum_over_leaves(chosen.astype(float)) > 0
        assert (found.credit_state[1:][~trains[1:]] == CreditState.NOT_SELECTED).all()
        # Values use all leaves: what trains is what trains without a selection.
        full = credit_tree(tree, config.model_copy(update={"leaves": TREERL.leaves}))
        assert found.advantage[trains][1:] == pytest.approx(full.advantage[trains][1:])


def test_leaves_per_tree() -> None:
    tree = replace(tree_of([1, 0, 0, 1, 1, 0]), subgroup=np.array([0, 0, 0, 0, 1, 1, 1], np.int32))
    config = credit(
        baseline=TreeAndPromptBaseline(), leaves=SomeLeaves(count=2, per="tree", keep_correct=False)
    )
    chosen = selected_leaves(tree, CreditPlan(config))
    assert [int(chosen[1:4].sum()), int(chosen[4:].sum())] == [2, 2]


# ---------------------------------------------------------------------------------------- words


@pytest.mark.parametrize("slug", PRESETS)
@settings(max_examples=10, deadline=None)
@given(nested_trees(max_leaves=8))
def test_every_preset_explains_every_node_by_the_numbers_that_trained_it(slug: str, nested: Nested) -> None:
    plan = credit_plan(PRESETS[slug].config)
    tree = tree_of(nested)
    if plan.budgets:
        tree = replace(tree, subgroup=(np.arange(tree.n_nodes) % len(plan.budgets)).astype(np.int32))
    (tree,) = credit_trees([tree], plan)
    for node in range(tree.n_nodes):
        told = explain_with(tree, node, plan)
        assert told.advantage == pytest.approx(float(tree.advantage[node]), abs=1e-9, nan_ok=True)
        assert told.value == pytest.approx(float(tree.value[node]), abs=1e-9, nan_ok=True)
        assert (told.numbers != "") == (told.state is CreditState.CREDITED)
        assert (told.reason == "") == (told.state is CreditState.CREDITED)
        assert told.formula


def test_a_stored_tree_is_credited_again_by_the_batch_figures_it_remembers() -> None:
    plan = CreditPlan(WHITENED)
    trees = credit_trees([tree_of(T1), tree_of(T2)], plan)
    for tree in trees:
        again = RolloutTree.from_payload(tree.to_payload())
        assert credit_of(again, plan).advantage == pytest.approx(tree.advantage, nan_ok=True)


def test_plan_of_a_run_takes_budgets_and_the_token_mask() -> None:
    assert credit_plan(PRESETS["hbpo-tiny"].config).budgets == (40, 50, 60, 70)
    assert credit_plan(PRESETS["spo-tree-tiny"].config).most_probability == 0.9
    assert credit_plan(RunConfig()).budget is None
