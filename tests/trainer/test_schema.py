"""Which parts go together: every rule refuses with its reason, and what is allowed is allowed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from trainer.config import SCHEMA_VERSION, RunConfig, stored_config
from trainer.presets import PRESETS
from trainer.schema.credit import CreditConfig
from trainer.schema.objective import PolicyObjective
from trainer.schema.reward import BudgetShaping, OverlongShaping, RewardConfig
from trainer.schema.sampler import (
    FlatSampler,
    ForkTreeSampler,
    LookaheadSampler,
    SearchTreeSampler,
    SegmentTreeSampler,
)

PROMPT = {
    "backup": "leaf_mean",
    "baseline": {"kind": "group_mean", "group": "prompt"},
    "scale": {"kind": "none"},
    "spread": "trajectory",
    "filter": {"kind": "none"},
}
NODE = {
    "backup": "leaf_mean",
    "baseline": {"kind": "group_mean", "group": "siblings"},
    "scale": {"kind": "none"},
    "spread": "node",
    "filter": {"kind": "none"},
}


@pytest.mark.parametrize(
    ("credit", "sentence"),
    [
        (NODE | {"scale": {"kind": "bernoulli_variance"}}, "Set the filter to `range`"),
        (
            NODE
            | {
                "baseline": {"kind": "group_mean", "group": "siblings", "shift": -0.1},
                "scale": {"kind": "bernoulli_variance"},
                "filter": {"kind": "range"},
            },
            "group_mean without shift",
        ),
        (NODE | {"baseline": {"kind": "parent_value"}, "filter": {"kind": "range"}}, "compares with none"),
        (NODE | {"baseline": {"kind": "root_and_parent"}, "scale": {"kind": "group_std"}}, "needs one group"),
        (
            PROMPT | {"baseline": {"kind": "tree_and_prompt"}, "scale": {"kind": "group_std"}},
            "needs one group",
        ),
        (NODE | {"baseline": {"kind": "state"}, "scale": {"kind": "batch_whiten"}}, "has its own scale"),
        (
            NODE
            | {
                "baseline": {"kind": "root_and_parent", "form": "code"},
                "scale": {"kind": "inverse_sqrt_leaves"},
            },
            "divides by the root of the leaves itself",
        ),
        (PROMPT | {"baseline": {"kind": "log_avg_exp"}, "spread": "node"}, "compares leaves"),
        (PROMPT | {"spread": "node"}, "spread node with baseline group prompt is not defined"),
        (NODE | {"spread": "trajectory"}, "spread trajectory with baseline group siblings is not defined"),
        (NODE | {"baseline": {"kind": "parent_value"}, "spread": "trajectory"}, "Use spread node"),
        (NODE | {"baseline": {"kind": "state"}, "spread": "leaf_mean"}, "Use spread node"),
        (PROMPT | {"scale": {"kind": "batch_whiten", "count": "once"}}, "or count flat"),
    ],
)
def test_credit_parts_that_do_not_go_together(credit: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        CreditConfig.model_validate(credit)


def config(slug: str, **changes: Any) -> RunConfig:
    values = PRESETS[slug].config.model_dump(mode="json")
    return RunConfig.model_validate(values | changes)


@pytest.mark.parametrize(
    ("slug", "changes", "sentence"),
    [
        (
            "treerpo-tiny",
            {"reward": {"incorrect": -1}},
            "needs rewards from 0 to 1, and reward gives -1 to 1",
        ),
        (
            "treerpo-tiny",
            {"reward": {"shaping": {"kind": "overlong", "max_tokens": 96, "buffer_tokens": 24}}},
            "bernoulli_variance needs rewards from 0 to 1",
        ),
        ("treerpo-tiny", {"reward": {"kl_coefficient": 0.1}}, "less a KL term"),
        ("rest-mcts-tiny", {"reward": {"incorrect": -1}}, "quality needs rewards 0 and 1"),
        ("rest-mcts-tiny", {"reward": {"kl_coefficient": 0.1}}, "without KL in the reward"),
        ("hbpo-tiny", {"sampler": {"kind": "flat"}}, "go by token budgets"),
        ("hbpo-tiny", {"reward": {}}, "go by token budgets"),
        ("grpo-tiny", {"credit": PROMPT | {"backup": "visit_weighted"}}, "sampler flat makes none"),
        (
            "mcts-dpo-tiny",
            {"sampler": {"kind": "search_tree", "evaluator": "value_head"}},
            "needs a value head that is trained",
        ),
        (
            "step-grpo-tiny",
            {
                "sampler": {"kind": "flat", "budgets": [10, 20]},
                "reward": {"shaping": {"kind": "budget", "max_tokens": 96}},
            },
            "needs a baseline that compares answers",
        ),
        ("grpo-tiny", {"objective": {"kind": "preference"}}, "Set credit.baseline to none"),
        ("mcts-dpo-tiny", {"objective": {"kind": "policy"}}, "needs advantages"),
        (
            "grpo-tiny",
            {"objective": {"kind": "policy", "segment_weight": "answers"}},
            "belongs to credit.spread node",
        ),
    ],
)
def test_sections_that_do_not_go_together(slug: str, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        config(slug, **changes)


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        ({"ratio": "none"}, "nothing to clip"),
        ({"ratio": "sequence", "clip": "one_side"}, "single tokens"),
        ({"clip_dual": 0.5}, "more than 1"),
    ],
)
def test_objectives_that_are_not_defined(objective: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        PolicyObjective.model_validate(objective)


@pytest.mark.parametrize(
    ("sampler", "values", "sentence"),
    [
        (FlatSampler, {"group_size": 9, "budgets": [10, 20]}, "2 equal budget groups"),
        (FlatSampler, {"group_size": 2, "budgets": [10, 20]}, "two answers or more"),
        (FlatSampler, {"budgets": [10, 20], "budget_sentence": "be short"}, "no {budget}"),
        (FlatSampler, {"budgets": [10, 20], "merge": "newline"}, "cannot be merged"),
        (SegmentTreeSampler, {"fallback": "random"}, "need a width"),
        (SegmentTreeSampler, {"max_width": 8, "root_branching_max": 2}, "less than the root's branching 4"),
        (SegmentTreeSampler, {"branching_per_depth": [1]}, "no two siblings"),
        (SegmentTreeSampler, {"branching_per_depth": [64]}, "nodes per tree"),
    ],
)
def test_samplers_that_are_not_defined(sampler: Any, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        sampler.model_validate(values)


def test_rewards_that_are_not_defined() -> None:
    with pytest.raises(ValidationError, match=r"more than reward\.incorrect"):
        RewardConfig(correct=0, incorrect=0)
    with pytest.raises(ValidationError, match="smaller than max_tokens"):
        OverlongShaping(max_tokens=8, buffer_tokens=8)


def test_bounds_of_rewards() -> None:
    assert RewardConfig().bounds == (0, 1)
    assert RewardConfig(incorrect=-1, shaping=OverlongShaping(factor=0.5)).bounds == (-1.5, 1)
    assert RewardConfig(shaping=BudgetShaping(max_tokens=100, beta=2, alpha=0.01)).bounds == (-1, 2)


def test_bounds_of_trees() -> None:
    tree = SegmentTreeSampler().bounds  # 4, 2, 2 of 16, 16, 64 tokens
    assert (tree.nodes, tree.leaves, tree.tokens, tree.flat_tokens, tree.answer_tokens) == (
        28,
        16,
        1216,
        1536,
        96,
    )
    capped = SegmentTreeSampler(
        depth=14, branching_per_depth=(2,), segment_tokens_per_depth=(512,), max_width=16
    ).bounds
    assert (capped.nodes, capped.leaves, capped.tokens) == (190, 16, 97280)
    assert ForkTreeSampler(trees=6, rounds=1, forks=2, continuations=2).bounds.leaves == 30  # TreeRL's
    assert ForkTreeSampler(trees=2, rounds=1, forks=2, continuations=1).bounds.leaves == 6  # Tree-GRPO's
    assert FlatSampler(group_size=8, max_tokens=10).bounds.tokens == 80
    assert LookaheadSampler(group_size=8).bounds.leaves == 8
    assert SearchTreeSampler().bounds.answer_tokens == 2 * 16 + 64


def test_a_config_of_version_1_means_what_it_meant() -> None:
    old = {
        "schema_version": 1,
        "preset": "grpo-tiny",
        "credit": {
            "backup": "leaf_mean",
            "group": "prompt",
            "scale": {"kind": "group_std", "ddof": 1, "eps": 1e-4},
            "spread": "trajectory",
            "filter": {"kind": "none"},
        },
        "objective": {"clip_low": 0.2, "clip_high": 0.3, "aggregate": "token_mean"},
    }
    found = stored_config(old)
    assert found.schema_version == SCHEMA_VERSION
    assert found.credit == PRESETS["grpo-tiny"].config.credit
    assert found.objective == PolicyObjective(clip_high=0.3)
    assert stored_config(found.model_dump(mode="json")) == found


@pytest.mark.parametrize("slug", PRESETS)
def test_every_preset_is_whole_and_says_where_it_comes_from(slug: str) -> None:
    preset = PRESETS[slug]
    assert preset.config.preset == slug
    assert preset.formula
    assert preset.source.startswith(("arXiv:", "ours"))
    values = preset.config.model_dump(mode="json")
    for path in preset.unverified:
        here: Any = values
        for part in path.split("."):
            assert part in here, f"{slug} calls {path} unverified, which its config does not have"
            here = here[part]
