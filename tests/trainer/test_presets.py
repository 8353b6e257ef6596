"""Every preset trains the tiny reasoner for real: five optimiser steps, weights that move, packed that is
flat."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trainer.checkpoint import list_checkpoints
from trainer.config import RunConfig
from trainer.events import Event, Metrics, PackingChecked, TreeSampled
from trainer.loop import train
from trainer.metrics import METRICS
from trainer.presets import PRESETS, find_preset
from trainer.tree import CreditState, RolloutTree

TINY = [slug for slug, preset in PRESETS.items() if preset.scale == "tiny"]
STEPS = 5


def small(slug: str) -> RunConfig:
    """The preset on three problems of three operations a step."""
    values = PRESETS[slug].config.model_dump(mode="json")
    values["training"] |= {"steps": STEPS, "problems_per_step": 3, "warmup_steps": 0}
    values["data"]["operations"] = 3
    values["evaluation"] |= {"problems": 2, "every_steps": 0}
    values["checkpoint"]["every_steps"] = 0
    values["recording"]["trees_per_step"] = 2
    if values["credit"]["filter"]["kind"] == "zero_variance":
        values["credit"]["filter"]["resample_rounds"] = 1
    return RunConfig.model_validate(values)


@pytest.mark.parametrize("slug", TINY)
def test_a_preset_trains_the_policy(slug: str, tmp_path: Path) -> None:
    config = small(slug)
    events: list[Event] = []
    outcome = train(config, emit=events.append, should_stop=lambda: False, run_dir=tmp_path)
    assert (outcome.outcome, outcome.step) == ("succeeded", STEPS)
    steps = [e.values for e in events if isinstance(e, Metrics) and "policy/loss" in e.values]
    assert len(steps) == STEPS
    applied = [values for values in steps if values["policy/grad_norm"] > 0]
    assert len(applied) >= 3, "hardly a step had anything to learn from"
    for values in steps:
        assert values["policy/skipped_updates"] == 0
        assert set(values) <= set(METRICS)
    assert all(values["policy/logprob_gap"] < 1e-3 for values in steps)
    checks = [e for e in events if isinstance(e, PackingChecked)]
    assert len(checks) == 1
    assert checks[0].gradient_difference < 1e-4
    assert checks[0].packed_tokens <= checks[0].flat_tokens
    started = next(e for e in events if e.kind == "started")
    assert outcome.weights_sha256 != started.weights_sha256
    trees = [RolloutTree.from_payload(e.payload) for e in events if isinstance(e, TreeSampled)]
    credited = [tree for tree in trees if (tree.credit_state == CreditState.CREDITED).any()]
    assert bool(credited) == (config.objective.kind == "policy")
    assert all(math.isfinite(tree.value[0]) for tree in trees)


def test_presets_are_found_however_they_are_written() -> None:
    assert find_preset("TreeRPO").slug == "treerpo"
    assert find_preset("dr_grpo").slug == "dr-grpo"
    assert find_preset("Dr. GRPO").slug == "dr-grpo"
    assert find_preset("ReST-MCTS*").slug == "rest-mcts"
    assert find_preset("step-GRPO+").slug == "step-grpo+-tiny"
    with pytest.raises(KeyError, match="there is no preset 'gpo'"):
        find_preset("gpo")


@pytest.mark.parametrize(
    ("slug", "numbers"),
    [
        # N, D, L; prompts; two updates; KL; entropy bonus
        ("treerpo", {"sampler.branching_per_depth": [8], "sampler.depth": 3,
                     "sampler.segment_tokens_per_depth": [384], "sampler.temperature": 0.6,
                     "credit.filter.tau": 0.1, "training.problems_per_step": 128,
                     "training.updates_per_step": 2, "objective.regularizer.beta": 0.001,
                     "objective.entropy_bonus": 0.001, "training.learning_rate": 1e-6}),
        ("grpo", {"sampler.group_size": 64, "sampler.max_tokens": 1024, "objective.regularizer.beta": 0.04,
                  "objective.aggregate": "sequence_mean"}),
        ("dr-grpo", {"sampler.group_size": 8, "objective.fixed_length": 3000, "credit.scale.kind": "none"}),
        ("dapo", {"sampler.group_size": 16, "sampler.max_tokens": 20480, "training.problems_per_step": 512,
                  "training.updates_per_step": 16, "objective.clip_low": 0.2, "objective.clip_high": 0.28,
                  "reward.shaping.max_tokens": 20480, "reward.shaping.buffer_tokens": 4096,
                  "reward.incorrect": -1, "credit.filter.equal": "verdict",
                  "credit.filter.resample_rounds": 10}),
        ("lite-ppo", {"sampler.group_size": 8, "training.problems_per_step": 128,
                      "sampler.max_tokens": 8192, "credit.scale.std_of": "raw", "credit.scale.eps": 1e-4}),
        ("rloo", {"reward.kl_coefficient": 0.03, "sampler.group_size": 4, "objective.ratio": "sequence"}),
        ("gspo", {"objective.clip_low": 3e-4, "objective.clip_high": 4e-4, "objective.ratio": "geometric",
                  "training.updates_per_step": 4}),
        ("treepo", {"sampler.depth": 14, "sampler.segment_tokens_per_depth": [512], "sampler.max_width": 16,
                    "sampler.branching_per_depth": [2], "sampler.repetition_window": 32,
                    "sampler.repetition_count": 8, "objective.clip_dual": 10, "objective.clip_high": 0.28,
                    "training.problems_per_step": 512, "training.weight_decay": 0.1,
                    "training.warmup_steps": 10, "reward.shaping.buffer_tokens": 512,
                    "credit.scale.eps": 1e-8, "credit.filter.resample_rounds": 2}),
        ("latr", {"sampler.min_probability": 0.25, "sampler.max_gap": 0.15, "sampler.windows": [20, 30, 50],
                  "sampler.threshold": 0.4, "sampler.tree_tokens": 512, "sampler.group_size": 8,
                  "training.problems_per_step": 256, "objective.regularizer.beta": 0.01}),
        ("treerl", {"sampler.trees": 6, "sampler.forks": 2, "sampler.rounds": 1, "sampler.continuations": 2,
                    "sampler.temperature": 1.2, "sampler.max_tokens": 8192, "credit.leaves.count": 16,
                    "training.problems_per_step": 16, "training.learning_rate": 1.5e-6,
                    "objective.regularizer.beta": 1e-4}),
        ("spo-tree", {"sampler.branching_per_depth": [6], "sampler.segment_tokens_per_depth": [600, 600, 648],
                      "objective.max_token_probability": 0.9, "credit.scale.count": "once",
                      "credit.scale.ddof": 0, "sampler.temperature": 0.6}),
        ("tree-grpo", {"sampler.trees": 2, "sampler.forks": 2, "sampler.rounds": 1, "credit.leaves.count": 3,
                       "objective.clip_dual": 3, "objective.regularizer.beta": 0.001,
                       "credit.baseline.eps": 1e-6, "objective.entropy_bonus": 0.001}),
        ("chord", {"objective.expert.peak": 0.9, "objective.expert.valley": 0.05,
                   "objective.expert.decay_steps": 200, "objective.expert.share": 0.2}),
        ("hbpo", {"sampler.budgets": [512, 1024, 2048, 2560]}),
        ("mcts-dpo", {"sampler.iterations": 64, "sampler.expand": 2, "sampler.depth": 3,
                      "sampler.segment_tokens": 128, "sampler.select.length_power": 1.25,
                      "objective.beta": 0.1, "objective.max_pairs": 8}),
        ("rest-mcts", {"sampler.iterations": 50, "sampler.expand": 3, "sampler.select.weight": 0.7,
                       "sampler.select.roll_share": 0.5, "sampler.select.stop_value": 0.9}),
    ],
)  # fmt: skip
def test_the_papers_numbers(slug: str, numbers: dict[str, object]) -> None:
    values = PRESETS[slug].config.model_dump(mode="json")
    for path, expected in numbers.items():
        here = values
        for part in path.split("."):
            here = here[part]
        assert here == expected, path


def test_both_scales_compute_the_same_credit_and_doubt_only_what_they_have() -> None:
    for slug, preset in PRESETS.items():
        tiny = PRESETS[f"{preset.algorithm}-tiny"]
        assert preset.config.credit == tiny.config.credit, slug
    assert "objective.regularizer.beta" in PRESETS["grpo"].unverified
    assert "objective.regularizer.beta" not in PRESETS["grpo-tiny"].unverified


def test_every_algorithm_of_the_list_has_a_tiny_preset() -> None:
    wanted = (
        "treerpo grpo dr-grpo dapo rloo lite-ppo gspo opmd asymre treepo latr treerl spo-tree tree-grpo "
        "treeadv "
        "chord hbpo mcts-dpo rest-mcts step-grpo step-grpo+"
    )
    assert {f"{slug}-tiny" for slug in wanted.split()} <= set(TINY)


# What each holds between steps beside the weights: further problems (dapo), annealing (latr), the expert's
# weight
# (chord), a choice of leaves (treerl), a value head (rest-mcts), a reference model (mcts-dpo).
RESUMED = ("dapo", "latr", "chord", "treerl", "rest-mcts", "mcts-dpo", "step-grpo+")


@pytest.mark.parametrize("slug", [f"{slug}-tiny" for slug in RESUMED])
def test_a_resumed_run_ends_with_the_weights_of_the_unbroken_one(slug: str, tmp_path: Path) -> None:
    values = small(slug).model_dump(mode="json")
    values["training"]["steps"] = 4
    config = RunConfig.model_validate(values)
    values["training"]["steps"] = 2
    half = RunConfig.model_validate(values)

    def run(wanted: RunConfig, folder: str, resume: Path | None = None) -> str:
        outcome = train(
            wanted,
            emit=lambda _event: None,
            should_stop=lambda: False,
            run_dir=tmp_path / folder,
            resume=resume,
        )
        return outcome.weights_sha256

    whole = run(config, "whole")
    run(half, "parts")
    assert run(config, "parts", list_checkpoints(tmp_path / "parts")[-1]) == whole
