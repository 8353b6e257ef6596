"""Importance correction against its definition: weights by hand, gradients from written-out answers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.trainer.trees import T1, T2, credit_tree, tree_of
from trainer.clipping import clips_of
from trainer.importance import corrected
from trainer.loss_weights import every_answer, pull, weigh
from trainer.optim import Optimiser, UpdateResult
from trainer.policy import Policy
from trainer.presets import PRESETS
from trainer.schema.objective import (
    Importance,
    K3Regularizer,
    MaskedImportance,
    NoImportance,
    PolicyObjective,
    TruncatedImportance,
)
from trainer.schema.training import TrainingConfig
from trainer.tree import CreditState, RolloutTree

TREERPO = PRESETS["treerpo-tiny"].config.credit
GRPO = PRESETS["grpo-tiny"].config.credit


@pytest.fixture
def policy(random_model: Callable[..., Any], tiny_reasoner: Policy) -> Policy:
    model = copy.deepcopy(
        random_model("qwen2", 60, hidden_size=24, num_attention_heads=2, num_key_value_heads=1)
    )
    return Policy(model, tiny_reasoner.tokenizer, tiny_reasoner.end_ids)


# ---- weights by hand: one prompt, two answers of two tokens, sampled at probabilities 1/2 each


def two_answers(spread: str) -> Any:
    tree = credit_tree(tree_of([1, 0]), GRPO if spread == "trajectory" else TREERPO)
    tree.logprobs[3:] = math.log(0.5)
    (own,) = weigh([tree], PolicyObjective(), spread)
    return own


OLD = np.log([1, 1, 1, 0.75, 0.5, 0.1, 2.0])  # rho: 1.5, 1 of the first answer; .2, 4 of the second


@pytest.mark.parametrize(
    ("importance", "weights", "cut"),
    [
        (TruncatedImportance(cap=2), [1.5, 1, 0.2, 2], 1 / 4),
        (MaskedImportance(low=0.5, high=5), [1.5, 1, 0, 4], 1 / 4),
        (MaskedImportance(low=0.2, high=1.4), [0, 1, 0.2, 0], 1 / 2),
    ],
)
def test_weights_of_tokens(importance: Importance, weights: list[float], cut: float) -> None:
    found = corrected([two_answers("node")], [OLD], importance)
    assert found.weights[0].correction == pytest.approx([1, 1, 1, *weights])
    total, squares = sum(weights), sum(w * w for w in weights)
    assert found.figures == pytest.approx(
        {
            "importance/mean_weight": total / 4,
            "importance/cut_share": cut,
            "importance/effective_share": total**2 / (4 * squares),
        }
    )


@pytest.mark.parametrize(
    ("importance", "weights"),
    [
        (TruncatedImportance(level="sequence", cap=1.25), [1.25, 0.8]),  # 1.5 x 1 and .2 x 4
        (MaskedImportance(level="sequence", low=0.5, high=1.25), [0, 0.8]),
    ],
)
@pytest.mark.parametrize("spread", ["node", "trajectory"])
def test_weights_of_answers(importance: Importance, weights: list[float], spread: str) -> None:
    own = two_answers(spread)
    found = corrected([own], [OLD], importance)
    assert found.weights[0].advantage == pytest.approx(own.advantage * weights)
    assert found.weights[0].held == pytest.approx(own.held)  # what a regularizer weighs by
    assert found.figures["importance/cut_share"] == 0.5


def test_a_token_that_does_not_train_is_not_weighed() -> None:
    old = OLD.copy()
    old[5:] = np.nan
    found = corrected([two_answers("node")], [old], TruncatedImportance())
    assert found.weights[0].correction == pytest.approx([1, 1, 1, 1.5, 1, 1, 1])
    assert found.figures["importance/mean_weight"] == pytest.approx(1.25)


def test_what_is_recorded_knows_the_weights() -> None:
    own = two_answers("node")
    (masked,) = corrected([own], [OLD], MaskedImportance(low=0.5, high=5)).weights
    objective = PolicyObjective()
    assert pull(masked, objective)[1:] == pytest.approx(pull(own, objective)[1:] * [1.25, 2])
    far = np.where(own.trains, 3.0, np.nan)  # every ratio is e^3
    up = int(np.argmax(own.advantage))
    assert clips_of(own, far, objective)[3 + 2 * up :][:2].all()
    (gone,) = corrected([own], [np.where(own.trains, -99.0, np.nan)], MaskedImportance()).weights
    assert not clips_of(gone, far, objective).any()  # nothing pushes there any more


# ---- gradients from the definition


def forest(policy: Policy, config: Any) -> list[RolloutTree]:
    """Trees whose sampler was about 40 % off the policy in every token."""
    lengths = {6: [2, 1, 3, 2, 1, 4], 5: [3, 1, 2, 2, 1]}
    trees = [credit_tree(tree_of(n, tokens_per_segment=lengths[c]), config) for n, c in ((T1, 6), (T2, 5))]
    known = Optimiser(policy, TrainingConfig()).logprobs(policy, [every_answer(tree) for tree in trees])
    noise = np.random.default_rng(3)
    return [
        replace(
            tree,
            logprobs=np.where(np.isnan(own), 0, own + 0.4 * noise.standard_normal(len(own))).astype("f4"),
        )
        for tree, own in zip(trees, known, strict=True)
    ]


def written_out(
    policy: Policy, trees: list[RolloutTree], config: Any, objective: PolicyObjective
) -> torch.Tensor:
    """- mean over tokens of w A log pi (whose gradient is that of w A r at r = 1), every item on its own."""
    importance = objective.importance
    assert importance.kind != "none"
    terms, count = [], 0
    for tree in trees:
        for node in np.flatnonzero(tree.credit_state == CreditState.CREDITED).tolist():
            path = tree.path(node)
            parts = [slice(tree.token_offsets[n], tree.token_offsets[n + 1]) for n in path]
            ids = np.concatenate([tree.tokens[part] for part in parts]).astype(np.int64)
            sampled = torch.from_numpy(np.concatenate([tree.logprobs[part] for part in parts]))
            start = sum(int(tree.token_counts()[n]) for n in path[: -1 if config.spread == "node" else 1])
            logits = policy.model(input_ids=torch.from_numpy(ids)[None]).logits[0]
            places = torch.arange(start - 1, len(ids) - 1)
            new = logits.log_softmax(-1)[places, torch.from_numpy(ids[start:])]
            rho = (new.detach() - sampled[start:]).exp()
            if importance.level == "sequence":
                rho = rho.prod().expand(len(new))
            if importance.kind == "truncated":
                weight = rho.clamp(max=importance.cap)
            else:
                weight = torch.where((rho >= importance.low) & (rho <= importance.high), rho, 0.0)
            terms.append((weight * float(tree.advantage[node]) * new).sum())
            count += len(new)
    return -torch.stack(terms).sum() / count


@pytest.mark.parametrize("layout", ["packed", "flat"])
@pytest.mark.parametrize("config", [TREERPO, GRPO])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["truncated", "masked"])
def test_the_gradient_is_that_of_the_definition(
    policy: Policy, kind: str, level: str, config: Any, layout: str
) -> None:
    cut = {"cap": 1.2} if kind == "truncated" else {"low": 0.8, "high": 1.5}
    objective = PolicyObjective.model_validate({"importance": {"kind": kind, "level": level, **cut}})
    trees = forest(policy, config)
    expected = torch.autograd.grad(
        written_out(policy, trees, config, objective), list(policy.model.parameters())
    )
    found, result = gradient(policy, trees, objective, config.spread, layout=layout)
    assert 0 < result.figures["importance/cut_share"] < 1
    assert result.figures["importance/effective_share"] < 0.99
    largest = max(float(one.abs().max()) for one in expected)
    for got, one in zip(found, expected, strict=True):
        assert float((got - one).abs().max()) < 1e-5 * largest


def gradient(
    policy: Policy, trees: list[RolloutTree], objective: PolicyObjective, spread: str, **more: Any
) -> tuple[list[torch.Tensor], UpdateResult]:
    optimiser = Optimiser(policy, TrainingConfig(), objective, spread, reference=policy)
    (data,) = optimiser.data([trees], [], 1)
    result, _ = optimiser.gradient(data, lambda: False, **more)
    return [p.grad.clone() for p in policy.model.parameters()], result


@pytest.mark.parametrize("ratio", ["token", "sequence", "geometric", "none"])
@pytest.mark.parametrize("cut", [TruncatedImportance(level="sequence"), MaskedImportance(level="sequence")])
def test_where_the_logprobs_agree_nothing_changes(policy: Policy, ratio: Any, cut: Importance) -> None:
    """To the last bit: every weight is exactly 1, and a regularizer is not weighed at all."""
    trees = forest(policy, GRPO)
    clip = "none" if ratio == "none" else "both"
    plain = PolicyObjective(ratio=ratio, clip=clip, regularizer=K3Regularizer(beta=0.1))
    weights = weigh(trees, plain, "trajectory")
    known = Optimiser(policy, TrainingConfig(), plain).logprobs(policy, weights)
    # Half-way numbers of the engine cannot equal those of the policy: the policy says them in its precision.
    agreeing = [
        replace(tree, logprobs=np.where(np.isnan(own), 0, own).astype("f4"))
        for tree, own in zip(trees, known, strict=True)
    ]
    before, without = gradient(policy, agreeing, plain, "trajectory")
    objective = plain.model_copy(update={"importance": cut})
    after, result = gradient(policy, agreeing, objective, "trajectory")
    assert result.figures["importance/mean_weight"] == 1
    assert result.figures["importance/effective_share"] == 1
    assert result.loss == without.loss
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_without_correction_there_are_no_weights(policy: Policy) -> None:
    own = two_answers("node")
    assert corrected([own], [OLD], NoImportance()).weights == [own]
    _, result = gradient(policy, forest(policy, TREERPO), PolicyObjective(), "node")
    assert not any(name.startswith("importance/") for name in result.figures)


@pytest.mark.parametrize("ratio", ["sequence", "geometric"])
def test_weights_of_tokens_do_not_go_with_ratios_of_answers(ratio: str) -> None:
    with pytest.raises(ValidationError, match=r"Set importance\.level sequence"):
        PolicyObjective.model_validate({"ratio": ratio, "importance": {"kind": "truncated"}})
