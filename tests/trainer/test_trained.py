"""What is told of the loss is what the gradient does: shares of the pull against autograd."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.trainer.trees import credit_tree, tree_of
from trainer.clipping import Clip, clips_of
from trainer.loss_weights import pull, weigh
from trainer.losses import LossTensors, policy_loss, preference_loss, supervised_loss
from trainer.packing import pack
from trainer.presets import PRESETS
from trainer.schema.objective import (
    NoRegularizer,
    Objective,
    PolicyObjective,
    PreferenceObjective,
    SupervisedObjective,
)
from trainer.tree import RolloutTree, Verdict

NESTED = [[[1, 0], 1], [0, [1, 0, 0]], 1, 0]
TOKENS = [1, 4, 2, 3, 5, 1, 2, 2, 6, 1, 3, 2, 4]


def forest(slug: str) -> list[RolloutTree]:
    """Two trees of uneven lengths with merged and cut-off answers, and visits."""
    trees = []
    for nested, name in ((NESTED, "p"), ([[1, 0], 0], "q")):
        tree = tree_of(nested, problem_id=name, tokens_per_segment=TOKENS[: 13 if name == "p" else 4])
        leaf = tree.is_leaf()
        verdict = tree.verdict.copy()
        verdict[-1] = Verdict.TRUNCATED
        tree = dataclasses.replace(
            tree,
            copies=np.where(leaf, 1 + np.arange(tree.n_nodes) % 3, 0).astype(np.int32),
            visits=(1 + np.arange(tree.n_nodes)[::-1] % 4).astype(np.int32),
            verdict=verdict,
        )
        trees.append(credit_tree(tree, PRESETS[slug].config.credit))
    return trees


def by_autograd(trees: list[RolloutTree], objective: Objective, spread: str) -> np.ndarray:
    """Sizes of the gradients at the tokens' logprobs, the policy being the one that sampled, summed over the
    segments of all trees.
    """
    known = [tree.logprobs.astype(np.float64) for tree in trees]
    found = [np.zeros(len(tree.tokens)) for tree in trees]
    items = isinstance(objective, PolicyObjective) and objective.ratio in ("sequence", "geometric")
    weights = weigh(trees, objective, spread)
    for batch in pack(weights, 10_000, with_items=items, old=known, reference=known):
        tokens = LossTensors.of(batch.loss, torch.device("cpu"), torch.float64)
        logprobs = tokens.old.clone().requires_grad_()
        if isinstance(objective, PolicyObjective):
            loss = policy_loss(logprobs, tokens, objective).loss
        elif isinstance(objective, PreferenceObjective):
            loss = preference_loss(logprobs, tokens, objective).loss
        else:
            loss = supervised_loss(logprobs, tokens).loss
        (gradient,) = torch.autograd.grad(loss, logprobs)
        for number, place, size in zip(batch.loss.tree, batch.loss.place, gradient.numpy(), strict=True):
            found[number][place] += size
    sums = []
    for tree, sizes in zip(trees, found, strict=True):
        node_of = np.repeat(np.arange(tree.n_nodes), tree.token_counts())
        sums.append(np.bincount(node_of, np.abs(sizes), minlength=tree.n_nodes))
    return np.concatenate(sums)


OBJECTIVES = [
    *(
        (slug, PolicyObjective(ratio=ratio, clip="none" if ratio == "none" else "both", aggregate=mean))
        for slug in ("treerpo-tiny", "grpo-tiny")
        for ratio in ("token", "sequence", "geometric", "none")
        for mean in ("token_mean", "sequence_mean", "fixed_length")
    ),
    ("treerpo-tiny", PolicyObjective(segment_weight="answers", aggregate="sequence_mean")),
    ("treeadv-tiny", PolicyObjective(segment_weight="answers")),
    ("grpo-tiny", PolicyObjective(mask_truncated=True, max_token_probability=0.7)),
    ("mcts-dpo-tiny", PreferenceObjective(smoothing="visits")),
    ("mcts-dpo-tiny", PreferenceObjective(smoothing="visits", length_power=1)),
    ("mcts-dpo-tiny", PreferenceObjective(loss="ipo", smoothing="visits", rejected="second")),
    ("mcts-dpo-tiny", SupervisedObjective(max_answers=2)),
]


@pytest.mark.parametrize(("slug", "objective"), OBJECTIVES)
def test_shares_of_the_pull_are_those_of_the_gradient(slug: str, objective: Objective) -> None:
    trees, spread = forest(slug), PRESETS[slug].config.credit.spread
    told = np.concatenate([pull(weights, objective) for weights in weigh(trees, objective, spread)])
    expected = by_autograd(trees, objective, spread)
    assert expected.sum() > 0
    np.testing.assert_allclose(told / told.sum(), expected / expected.sum(), atol=1e-9)
    if not isinstance(objective, PreferenceObjective):
        np.testing.assert_allclose(told, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("slug", ["dapo", "treerpo", "gspo", "rloo", "tree-grpo", "one_side"])
def test_what_is_recorded_as_clipped_is_what_the_loss_clips(slug: str) -> None:
    """Far from on-policy: tokens counted as clipped by the loss are those recorded, and a token without any
    gradient of its own was clipped.
    """
    preset = "grpo" if slug == "one_side" else slug
    config = PRESETS[preset].config
    assert isinstance(config.objective, PolicyObjective)
    changes = {"clip": "one_side"} if slug == "one_side" else {}
    objective = config.objective.model_copy(update={"regularizer": NoRegularizer(), **changes})
    trees = forest(preset)
    known = [tree.logprobs.astype(np.float64) for tree in trees]
    weights = weigh(trees, objective, config.credit.spread)
    rng = np.random.default_rng(0)
    away = [np.where(own.trains, rng.normal(0, 0.8, len(own.trains)), np.nan) for own in weights]
    clips = [clips_of(own, ratio, objective) for own, ratio in zip(weights, away, strict=True)]
    items = objective.ratio in ("sequence", "geometric")
    counted, gradients = 0.0, [np.zeros(len(tree.tokens)) for tree in trees]
    for batch in pack(weights, 10_000, with_items=items, old=known, reference=known):
        tokens = LossTensors.of(batch.loss, torch.device("cpu"), torch.float64)
        shift = [away[tree][place] for tree, place in zip(batch.loss.tree, batch.loss.place, strict=True)]
        logprobs = (tokens.old + torch.tensor(shift, dtype=torch.float64)).requires_grad_()
        part = policy_loss(logprobs, tokens, objective)
        counted += float(part.figures["clipped"])
        (gradient,) = torch.autograd.grad(part.loss, logprobs)
        for number, place, size in zip(batch.loss.tree, batch.loss.place, gradient.numpy(), strict=True):
            gradients[number][place] += size
    found = np.concatenate(clips)
    assert set(found.tolist()) > {0}
    assert counted
    if not items:
        assert counted == np.count_nonzero(found)
    pulls = np.concatenate(
        [
            (own.up - own.down)[np.repeat(np.arange(own.tree.n_nodes), own.tree.token_counts())]
            for own in weights
        ]
    )
    trains = np.concatenate([own.trains for own in weights]) & (pulls > 0)
    still = trains & (np.concatenate(gradients) == 0)
    assert still.any()
    assert (found[still] != Clip.NONE).all()
