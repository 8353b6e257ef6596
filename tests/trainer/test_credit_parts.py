"""Every combination of credit parts that the schema allows: against the slow version, in words, in any order,
merged and unmerged.
"""

from __future__ import annotations

import itertools
import math
import re
import time
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.trainer.slow_credit import SlowTree, slow_credit
from tests.trainer.trees import Nested, nested_trees, tree_of
from trainer.credit import CreditPlan, credit_of, credit_plan, credit_trees, selected_leaves
from trainer.explanation import explain, formula
from trainer.loss_weights import weigh
from trainer.presets import PRESETS
from trainer.schema.credit import CreditConfig, SomeLeaves
from trainer.schema.objective import PolicyObjective
from trainer.schema.reward import BudgetShaping
from trainer.tree import CreditState, FinishReason, RolloutTree, Verdict

BUDGETS: Final = (10, 20, 30, 40)
SHAPING: Final = BudgetShaping(max_tokens=50, beta=1.0, alpha=0.0)

BASELINES: Final[list[dict[str, Any]]] = [
    *(
        {"kind": "group_mean", "group": group, "shift": shift, "single": single}
        for group in ("siblings", "tree", "prompt")
        for shift in (0.0, -0.1)
        for single in ("none", "reward")
    ),
    *(
        {"kind": "leave_one_out", "group": group, "single": single}
        for group in ("siblings", "tree", "prompt")
        for single in ("none", "reward")
    ),
    {"kind": "log_avg_exp", "tau": 0.5},
    {"kind": "parent_value"},
    {"kind": "ancestor_mean", "weights": "uniform"},
    {"kind": "ancestor_mean", "weights": "size"},
    {"kind": "root_and_parent", "form": "paper"},
    {"kind": "root_and_parent", "form": "code"},
    *({"kind": "tree_and_prompt", "parts": parts} for parts in ("both", "tree", "prompt")),
    {"kind": "state", "global_term": True},
    {"kind": "state", "global_term": False},
    {"kind": "budget"},
    {"kind": "none"},
]
SCALES: Final[list[dict[str, Any]]] = [
    {"kind": "none"},
    {"kind": "group_std", "ddof": 1, "eps": 1e-4},
    {"kind": "group_std", "ddof": 0, "eps": 0.0},
    {"kind": "batch_std", "std_of": "raw", "ddof": 1},
    {"kind": "batch_std", "std_of": "centred", "ddof": 0, "eps": 0.0},
    {"kind": "bernoulli_variance"},
    {"kind": "inverse_sqrt_leaves"},
    {"kind": "batch_whiten", "count": "flat", "ddof": 1},
    {"kind": "batch_whiten", "count": "once", "ddof": 0, "eps": 0.0},
]
FILTERS: Final[list[dict[str, Any]]] = [
    {"kind": "none"},
    {"kind": "range", "tau": 0.1},
    {"kind": "zero_variance", "equal": "reward"},
    {"kind": "zero_variance", "equal": "verdict"},
    {"kind": "nonzero"},
]
LEAVES: Final[list[dict[str, Any]]] = [
    {"kind": "all"},
    {"kind": "some", "count": 2, "per": "prompt", "keep_correct": True},
    {"kind": "some", "count": 1, "per": "tree", "keep_correct": False},
]


def valid_configs() -> list[CreditConfig]:
    """All that the schema does not refuse. Backup and leaves go with everything."""
    found = []
    for baseline, scale, spread, rule in itertools.product(
        BASELINES, SCALES, ("node", "trajectory", "leaf_mean"), FILTERS
    ):
        try:
            found.append(
                CreditConfig.model_validate(
                    {"baseline": baseline, "scale": scale, "spread": spread, "filter": rule}
                )
            )
        except ValidationError:
            continue
    return found


CONFIGS: Final = valid_configs()
BY_BASELINE: Final = {
    kind: [config for config in CONFIGS if config.baseline.kind == kind]
    for kind in sorted({config.baseline.kind for config in CONFIGS})
}


@st.composite
def configs(draw: st.DrawFn) -> CreditConfig:
    # Every baseline as often as any other, however many combinations it has.
    config = draw(st.sampled_from(BY_BASELINE[draw(st.sampled_from(sorted(BY_BASELINE)))]))
    return CreditConfig.model_validate(
        config.model_dump()
        | {
            "backup": draw(st.sampled_from(["child_mean", "leaf_mean", "visit_weighted", "quality"])),
            "leaves": draw(st.sampled_from(LEAVES)),
        }
    )


@st.composite
def trees(draw: st.DrawFn, max_leaves: int = 9) -> RolloutTree:
    """With verifier errors, answers that were given up, merged answers, a forest, given text and visits."""
    nested = draw(nested_trees(max_leaves=max_leaves))
    name = f"p{draw(st.integers(0, 99))}"
    plain = tree_of(nested, problem_id=name)
    n, leaf = plain.n_nodes, plain.is_leaf()
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    top = plain.parent == 0
    finish, reward, verdict = plain.finish.copy(), plain.reward.copy(), plain.verdict.copy()
    finish[top & ~leaf & (rng.random(n) < 0.3)] = FinishReason.GIVEN
    given_up = leaf & np.isfinite(reward) & (rng.random(n) < 0.1)
    finish[given_up], reward[given_up], verdict[given_up] = FinishReason.PRUNED, math.nan, Verdict.NONE
    subgroup = np.zeros(n, np.int32)
    for node in range(1, n):
        subgroup[node] = rng.integers(len(BUDGETS)) if top[node] else subgroup[plain.parent[node]]
    return replace(
        plain,
        finish=finish,
        reward=reward,
        verdict=verdict,
        subgroup=subgroup,
        copies=np.where(leaf, rng.choice([1, 1, 2, 3], n), 0).astype(np.int32),
        visits=rng.integers(0, 5, n).astype(np.int32),
    )


def plan_of(config: CreditConfig, most_probability: float = 1.0) -> CreditPlan:
    return CreditPlan(config, budget=SHAPING, budgets=BUDGETS, most_probability=most_probability, seed=1)


def test_there_are_many_combinations_and_every_part_is_in_one() -> None:
    assert len(CONFIGS) > 200
    for part, choices in (("baseline", BASELINES), ("scale", SCALES), ("filter", FILTERS)):
        used = {getattr(config, part).kind for config in CONFIGS}
        assert used == {choice["kind"] for choice in choices}
    assert {config.spread for config in CONFIGS} == {"node", "trajectory", "leaf_mean"}


@settings(max_examples=250, deadline=None)
@given(configs(), st.lists(trees(), min_size=1, max_size=3), st.sampled_from([1.0, 0.6]))
def test_fast_equals_slow(config: CreditConfig, batch: list[RolloutTree], most_probability: float) -> None:
    plan = plan_of(config, most_probability)
    expected = slow_credit(batch, plan, [selected_leaves(tree, plan) for tree in batch])
    for tree, before, own in zip(credit_trees(batch, plan), batch, expected, strict=True):
        found = {n: float(a) for n, a in enumerate(tree.advantage) if not math.isnan(a)}
        assert found.keys() == own.keys()
        assert found == pytest.approx(own, abs=1e-7, rel=1e-7)
        assert set(np.flatnonzero(tree.credit_state == CreditState.CREDITED)) == set(found)
        slow = SlowTree(before, plan, selected_leaves(before, plan))
        values = [slow.value(node) for node in range(tree.n_nodes)]
        assert tree.value.tolist() == pytest.approx(values, abs=1e-9, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(configs(), st.lists(trees(), min_size=2, max_size=4))
def test_order_of_trees_in_a_batch_does_not_matter(config: CreditConfig, batch: list[RolloutTree]) -> None:
    here = credit_trees(batch, plan_of(config))
    there = credit_trees(batch[::-1], plan_of(config))[::-1]
    for one, other in zip(here, there, strict=True):
        assert one.advantage.tolist() == pytest.approx(other.advantage.tolist(), abs=1e-9, nan_ok=True)
        assert one.credit_state.tolist() == other.credit_state.tolist()


@settings(max_examples=150, deadline=None)
@given(configs(), trees())
def test_order_of_siblings_does_not_matter(config: CreditConfig, tree: RolloutTree) -> None:
    if config.leaves.kind == "some":  # a choice by lot
        return
    other, order = mirrored(tree)
    (here,), (there,) = (credit_trees([one], plan_of(config)) for one in (tree, other))
    assert there.advantage.tolist() == pytest.approx(here.advantage[order].tolist(), abs=1e-9, nan_ok=True)
    assert there.value.tolist() == pytest.approx(here.value[order].tolist(), abs=1e-9, nan_ok=True)
    assert there.credit_state.tolist() == here.credit_state[order].tolist()


def mirrored(tree: RolloutTree) -> tuple[RolloutTree, list[int]]:
    """The tree with the last child first, everywhere; and which node each of its nodes was."""
    order = [0]
    for node in order:
        order.extend(np.flatnonzero(tree.parent == node)[::-1].tolist())
    place = {node: index for index, node in enumerate(order)}
    offsets = tree.token_offsets
    tokens = np.concatenate([np.arange(offsets[node], offsets[node + 1]) for node in order])
    nodes = (
        "finish",
        "verdict",
        "copies",
        "subgroup",
        "visits",
        "reward",
        "value",
        "advantage",
        "credit_state",
    )
    moved = replace(
        tree,
        parent=np.array([-1, *(place[int(tree.parent[node])] for node in order[1:])], np.int32),
        token_offsets=np.concatenate(([0], np.cumsum(tree.token_counts()[order]))),
        **{name: getattr(tree, name)[order] for name in nodes},
        **{name: getattr(tree, name)[tokens] for name in ("tokens", "logprobs", "entropies")},
    )
    return moved, order


@settings(max_examples=150, deadline=None)
@given(configs(), trees())
def test_no_credit_is_never_a_number_and_says_why(config: CreditConfig, tree: RolloutTree) -> None:
    (found,) = credit_trees([tree], plan_of(config))
    state = found.credit_state
    assert np.isnan(found.advantage[state != CreditState.CREDITED]).all()
    assert state[0] == CreditState.NONE
    assert (state[tree.finish == FinishReason.GIVEN] == CreditState.GIVEN).all()
    unscored = tree.is_leaf() & ~np.isfinite(tree.reward)
    allowed = (CreditState.NO_ADVANTAGE,) if config.baseline.kind == "none" else (CreditState.NO_REWARD,)
    assert set(state[unscored].tolist()) <= set(allowed)
    assert not np.isfinite(found.value[unscored]).any()


# ---------------------------------------------------------------------------------------- in words


@settings(max_examples=200, deadline=None)
@given(configs(), st.lists(trees(), min_size=1, max_size=2))
def test_words_are_the_numbers_that_trained(config: CreditConfig, batch: list[RolloutTree]) -> None:
    plan = plan_of(config)
    tree = credit_trees(batch, plan)[0]
    assert formula(config)
    for node in range(tree.n_nodes):
        told = explain(tree, node, plan)
        assert told.advantage == pytest.approx(float(tree.advantage[node]), abs=1e-9, nan_ok=True)
        assert told.value == pytest.approx(float(tree.value[node]), abs=1e-9, nan_ok=True)
        assert told.state == tree.credit_state[node]
        assert (told.numbers != "") == (told.reason == "") == (told.state is CreditState.CREDITED)
        if told.value_numbers:
            checked(told.value_numbers, float(tree.value[node]))
        if told.numbers:
            # Figures have four decimals, and a small divisor makes their rounding large.
            divisor = float(credit_of(tree, plan).divisor[node])
            checked(told.numbers, float(tree.advantage[node]), slack=1e-3 / divisor)
        if told.filter.startswith("Kept"):
            assert told.state is not CreditState.DROPPED_BY_FILTER
        if told.filter.startswith("Dropped") and tree.is_leaf()[node]:
            assert told.state is not CreditState.CREDITED


def checked(line: str, expected: float, slack: float = 0.0) -> None:
    """`A = (0.5 − 0.25) / 0.2 = 1.25`: the middle, worked out, is the right side, and what is expected."""
    _, *work, result = line.split(" = ")
    assert number(result) == pytest.approx(expected, abs=6e-5), line
    for middle in work:
        if "…" in middle:  # a long group is not written out
            continue
        divisors = [float(found) for found in re.findall(r"/ \(?([0-9.]+)", middle)]
        slack = max([slack, *(1e-3 / divisor for divisor in divisors if divisor)])
        assert Arithmetic(middle).value == pytest.approx(expected, abs=2e-3 + slack, rel=1e-2), line


def number(text: str) -> float:
    return float(text.replace("−", "-"))


class Arithmetic:
    """The value of a sum of products, brackets, means, roots, cosines and maxima."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = re.findall(r"\d+\.?\d*(?:e[−-]\d+)?|mean|max|cos|π|√|[-−+×·/(),\[\]]", text)
        self.at = 0
        self.value = self.total()
        assert self.at == len(self.tokens), (text, self.tokens[self.at :])

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1]

    def total(self) -> float:
        value = self.product()
        while self.peek() in ("+", "−", "-"):
            value += self.product() if self.take() == "+" else -self.product()
        return value

    def product(self) -> float:
        value = self.factor()
        while self.peek() in ("×", "·", "/"):
            value = value * self.factor() if self.take() in ("×", "·") else value / self.factor()
        return value

    def factor(self) -> float:
        word = self.take()
        if word in ("−", "-"):
            return -self.factor()
        if word == "√":
            return math.sqrt(self.factor())
        if word == "π":
            return math.pi
        if word == "cos":
            return math.cos(self.factor())
        if word in ("(", "["):
            value = self.total()
            self.take()
            return value
        if word == "max":
            return max(value for value, _ in self.arguments())
        if word == "mean":
            terms = self.arguments()
            return math.fsum(v * w for v, w in terms) / math.fsum(w for _, w in terms)
        return number(word)

    def arguments(self) -> list[tuple[float, float]]:
        """Terms in brackets, and how often each counts: `3 × 0.5` three times."""
        self.take()
        found = []
        while True:
            weight = 1.0
            if self.peek(1) == "×":
                weight = number(self.take())
                self.take()
            found.append((self.total(), weight))
            if self.take() == ")":
                return found


# ---------------------------------------------------------------------------------------- merged answers


OF_ANSWERS: Final = [
    config
    for config in CONFIGS
    if config.spread == "trajectory"
    and config.baseline.kind not in ("ancestor_mean", "budget", "none")
    and config.scale.kind != "inverse_sqrt_leaves"
]
OF_SIBLINGS: Final = [
    config
    for config in CONFIGS
    if config.spread == "node"
    and config.baseline.kind not in ("state", "none")
    and config.scale.kind not in ("inverse_sqrt_leaves", "batch_whiten")
    and not (config.baseline.kind == "root_and_parent" and config.baseline.form == "code")
]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(OF_ANSWERS),
    st.lists(st.text("ab", min_size=1, max_size=3).map(lambda letters: f"{letters}.")),
)
def test_a_trie_gives_every_answer_what_it_gets_alone(config: CreditConfig, answers: list[str]) -> None:
    """Equal answers have equal rewards; one letter is one segment of two tokens."""
    answers = answers or ["a."]
    plan = plan_of(config.model_copy(update={"backup": "leaf_mean"}))
    reward = {answer: hash_bit(answer) for answer in answers}
    star = tree_of([reward[a] for a in answers], tokens_per_segment=[2 * len(a) for a in answers])
    (alone,) = credit_trees([star], plan)
    prefixes = sorted({a[:k] for a in answers for k in range(1, len(a) + 1)}, key=lambda p: (len(p), p))
    parent = [-1, *(1 + prefixes.index(p[:-1]) if p[:-1] else 0 for p in prefixes)]
    trie = tree_in(parent, [reward.get(p, math.nan) for p in prefixes])
    copies = np.array([0, *(answers.count(p) for p in prefixes)], np.int32)
    (together,) = credit_trees([replace(trie, copies=copies)], plan)
    for place, answer in enumerate(answers):
        node = 1 + prefixes.index(answer)
        assert together.advantage[node] == pytest.approx(alone.advantage[1 + place], abs=1e-7, nan_ok=True)
        assert together.credit_state[node] == alone.credit_state[1 + place]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(OF_SIBLINGS),
    st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(1, 3)), min_size=1, max_size=5),
)
def test_merged_siblings_get_what_unmerged_ones_get(
    config: CreditConfig, answers: list[tuple[int, int]]
) -> None:
    plan = plan_of(config)
    merged = replace(
        tree_of([reward for reward, _ in answers]), copies=np.array([0, *(n for _, n in answers)], np.int32)
    )
    (together,) = credit_trees([merged], plan)
    (apart,) = credit_trees([tree_of([reward for reward, n in answers for _ in range(n)])], plan)
    first = np.cumsum([1, *(n for _, n in answers)])[:-1]
    assert together.advantage[1:] == pytest.approx(apart.advantage[first], abs=1e-9, nan_ok=True)
    assert together.value[0] == pytest.approx(apart.value[0])


def hash_bit(text: str) -> int:
    return sum(text.encode()) % 2


def tree_in(parent: list[int], rewards: list[float]) -> RolloutTree:
    """A tree by its parents, breadth-first; rewards of all nodes but the root, NaN of inner ones."""

    def below(node: int) -> Nested:
        children = [i for i, above in enumerate(parent) if above == node]
        return [below(child) for child in children] if children else rewards[node - 1]

    return tree_of(below(0))


# ---------------------------------------------------------------------------------------- degenerate numbers


def test_eps_alone_never_divides() -> None:
    """All answers equal, or a single one: nothing is blown up by a deviation of 0."""
    trees = [tree_of(nested) for nested in ([1, 1, 1], [[1, 1], [1]], [1], [[[1]]])]
    for config in CONFIGS:
        for tree in trees:
            found = credit_trees([tree], plan_of(config))[0].advantage
            assert (np.abs(found[np.isfinite(found)]) < 10).all(), config  # 1 / eps is 10,000 and more


def test_a_group_of_one_with_its_reward_is_not_divided_by_eps() -> None:
    config = CreditConfig.model_validate(
        {
            "backup": "leaf_mean",
            "baseline": {"kind": "group_mean", "group": "prompt", "single": "reward"},
            "scale": {"kind": "group_std", "eps": 1e-6},
            "spread": "trajectory",
            "filter": {"kind": "none"},
        }
    )
    (found,) = credit_trees([tree_of([1])], CreditPlan(config))
    assert found.advantage[1] == pytest.approx(1.0, abs=1e-5)  # verl: mean 0, deviation 1


def test_a_tree_that_remembers_no_batch_is_not_scaled_by_a_guess() -> None:
    for scale in ("batch_std", "batch_whiten"):
        config = next(config for config in CONFIGS if config.scale.kind == scale)
        with pytest.raises(ValueError, match=f"{scale} needs figures of the whole batch"):
            credit_of(tree_of([1, 0]), plan_of(config))


def test_a_range_of_just_tau_is_dropped_whatever_rounding_says() -> None:
    assert 0.4 - 0.3 > 0.1
    config = CreditConfig()  # TreeRPO
    tens = [[1] * 4 + [0] * 6, [1] * 3 + [0] * 7]
    (found,) = credit_trees([tree_of(tens)], CreditPlan(config))
    assert found.credit_state[1:3].tolist() == [CreditState.DROPPED_BY_FILTER] * 2
    assert explain(found, 1, CreditPlan(config)).filter.startswith("Dropped")


def test_answers_are_compared_by_reward_whatever_the_backup() -> None:
    # Quality of T1: V(b1) is not its reward; GRPO compares rewards.
    config = CreditConfig.model_validate(
        {
            "backup": "quality",
            "baseline": {"kind": "group_mean", "group": "prompt"},
            "scale": {"kind": "none"},
            "spread": "trajectory",
            "filter": {"kind": "none"},
        }
    )
    (found,) = credit_trees([tree_of([[1, 0], [0, 0]])], CreditPlan(config))
    assert found.advantage[3:].tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_what_a_search_gave_up_has_no_value_by_any_backup() -> None:
    tree = tree_of([[1, 0], [0, 0], 0])
    finish, reward = tree.finish.copy(), tree.reward.copy()
    for node in (4, 6, 7):  # one of two below node 1; both below node 2
        finish[node], reward[node] = FinishReason.PRUNED, math.nan
    tree = replace(tree, finish=finish, reward=reward)
    for backup in ("child_mean", "leaf_mean", "visit_weighted", "quality"):
        config = CreditConfig.model_validate(
            {
                "backup": backup,
                "baseline": {"kind": "none"},
                "scale": {"kind": "none"},
                "filter": {"kind": "none"},
            }
        )
        value = credit_trees([tree], CreditPlan(config))[0].value
        assert np.flatnonzero(np.isfinite(value)).tolist() == [0, 1, 3, 5]


# ---------------------------------------------------------------------------------------- speed


def test_a_step_of_the_tiny_reasoner_is_credited_at_once() -> None:
    """48 trees of 28 nodes: under 10 ms of CPU here; the bound leaves room for slower machines."""
    nested = [[[1, 0], [0, 0]], [[1, 1], [0, 1]], [[0, 0], [0, 0]], [[1, 0], [1, 0]]]
    batch = [tree_of(nested, problem_id=f"p{number}") for number in range(48)]
    for slug in ("treerpo-tiny", "treepo-tiny", "tree-grpo-tiny", "treerl-tiny"):
        plan = credit_plan(PRESETS[slug].config)
        best = math.inf
        for _ in range(5):
            start = time.process_time()
            credit_trees(batch, plan)
            best = min(best, time.process_time() - start)
        assert best < 0.05, slug


# ---------------------------------------------------------------------------------------- what trains


def test_an_answer_that_was_left_out_does_not_count_in_the_loss() -> None:
    """TreeRL trains 16 of 30 answers: a shared segment counts once for each of those through it."""
    config = CreditConfig.model_validate(
        {
            "backup": "leaf_mean",
            "baseline": {"kind": "root_and_parent"},
            "scale": {"kind": "inverse_sqrt_leaves"},
            "filter": {"kind": "none"},
            "leaves": SomeLeaves(count=3).model_dump(),
        }
    )
    for number in range(12):
        tree = tree_of([[1, 0, 0], [0, 1], math.nan], problem_id=f"p{number}")
        plan = CreditPlan(config, seed=number)
        (found,) = credit_trees([tree], plan)
        chosen = selected_leaves(tree, plan)
        (weights,) = weigh([found], PolicyObjective(segment_weight="answers"), "node")
        through = tree.sum_over_leaves(chosen.astype(float))
        tokens = float((through * tree.token_counts())[1:].sum())
        assert weights.held[1:] == pytest.approx(through[1:] / tokens)
