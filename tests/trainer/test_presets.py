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
    assert outcome.weights_sha256 != started.weights_sha256  # type: ignore[union-attr]
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
