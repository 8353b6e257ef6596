from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from tests.trainer.trees import T1, T2, credit_tree, tree_of
from trainer.optim import Optimiser, UpdateData, UpdateStopped
from trainer.policy import Policy
from trainer.presets import PRESETS
from trainer.schema.credit import CreditConfig
from trainer.schema.objective import K3Regularizer, PolicyObjective
from trainer.schema.training import TrainingConfig
from trainer.tree import CreditState, RolloutTree

TREERPO = PRESETS["treerpo-tiny"].config.credit
GRPO = PRESETS["grpo-tiny"].config.credit
Aggregate = Literal["token_mean", "sequence_mean"]


@pytest.fixture
def policy(random_model: Callable[..., Any], tiny_reasoner: Policy) -> Policy:
    model = copy.deepcopy(
        random_model("qwen2", 60, hidden_size=24, num_attention_heads=2, num_key_value_heads=1)
    )
    return Policy(model, tiny_reasoner.tokenizer, tiny_reasoner.end_ids)


def forest(config: CreditConfig) -> list[RolloutTree]:
    lengths = {6: [2, 1, 3, 2, 1, 4], 5: [3, 1, 2, 2, 1]}
    trees = [tree_of(nested, tokens_per_segment=lengths[count]) for nested, count in ((T1, 6), (T2, 5))]
    return [credit_tree(tree, config) for tree in trees]


def flat_loss(
    policy: Policy, trees: list[RolloutTree], config: CreditConfig, aggregate: Aggregate
) -> torch.Tensor:
    """The loss straight from its definition: every segment (or answer) on its own, min(r A, clip(r) A)."""
    terms, counts = [], []
    for tree in trees:
        for node in np.flatnonzero(tree.credit_state == CreditState.CREDITED).tolist():
            path = tree.path(node)
            ids = [
                int(t) for n in path for t in tree.tokens[tree.token_offsets[n] : tree.token_offsets[n + 1]]
            ]
            old = np.concatenate(
                [tree.logprobs[tree.token_offsets[n] : tree.token_offsets[n + 1]] for n in path]
            )
            start = sum(int(tree.token_counts()[n]) for n in path[: -1 if config.spread == "node" else 1])
            logits = policy.model(input_ids=torch.tensor([ids])).logits[0]
            new = logits.log_softmax(-1)[torch.arange(start - 1, len(ids) - 1), torch.tensor(ids[start:])]
            ratio = (new - torch.from_numpy(old[start:])).exp()
            a = float(tree.advantage[node])
            gain = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
            terms.append(gain.sum() / (1 if aggregate == "token_mean" else len(gain)))
            counts.append(len(gain))
    return -torch.stack(terms).sum() / (sum(counts) if aggregate == "token_mean" else len(counts))


def sampled_data(optimiser: Optimiser, trees: list[RolloutTree]) -> UpdateData:
    """One update whose old logprobs are the sampler's, here random ones."""
    (data,) = optimiser.data([trees], [], 1)
    return replace(data, old=[tree.logprobs.astype(np.float64) for tree in trees])


def recording(
    policy: Policy, training: TrainingConfig, objective: PolicyObjective | None = None, spread: str = "node"
) -> tuple[Optimiser, list[torch.Tensor]]:
    """An optimiser that notes the gradients it would step along, and where it notes them."""
    optimiser = Optimiser(policy, training, objective, spread)
    seen: list[torch.Tensor] = []

    def step() -> None:
        seen.extend(p.grad.clone() for p in policy.model.parameters())

    optimiser.adamw.step = step  # type: ignore[method-assign,assignment]
    return optimiser, seen


@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("config", [TREERPO, GRPO])
@pytest.mark.parametrize("microbatch_tokens", [64, 10_000])
def test_packed_loss_and_gradient_equal_the_flattened_ones(
    policy: Policy, config: CreditConfig, aggregate: Aggregate, microbatch_tokens: int
) -> None:
    # The trees' logprobs are random, so the ratios are far from 1 and many are clipped.
    trees = forest(config)
    expected = flat_loss(policy, trees, config, aggregate)
    gradients = torch.autograd.grad(expected, list(policy.model.parameters()))
    norm = torch.nn.utils.get_total_norm(gradients)

    training = TrainingConfig(microbatch_tokens=microbatch_tokens, max_grad_norm=1000)
    optimiser, seen = recording(policy, training, PolicyObjective(aggregate=aggregate), config.spread)
    result = optimiser.update(sampled_data(optimiser, trees), step=1, should_stop=lambda: False)
    assert result.is_applied
    assert result.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert result.clip_fraction > 0.1
    largest = max(float(g.abs().max()) for g in gradients)
    for got, gradient in zip(seen, gradients, strict=True):
        assert float((got - gradient).abs().max()) < 1e-5 * largest


def update(policy: Policy, optimiser: Optimiser, stop: bool = False) -> Any:
    data = sampled_data(optimiser, forest(TREERPO))
    return optimiser.update(data, step=1, should_stop=lambda: stop)


def test_an_update_that_is_not_finite_leaves_the_weights_alone(policy: Policy) -> None:
    optimiser = Optimiser(policy, TrainingConfig())
    tree = forest(TREERPO)[0]
    data = sampled_data(optimiser, [tree])
    assert data.old is not None
    data.old[0][:] = -np.inf
    before = policy.weights_sha256()
    result = optimiser.update(data, step=1, should_stop=lambda: False)
    assert result.not_finite is not None
    assert not result.is_applied
    assert policy.weights_sha256() == before
    assert update(policy, optimiser).is_applied
    assert policy.weights_sha256() != before


def test_a_stop_leaves_the_weights_alone(policy: Policy) -> None:
    before = policy.weights_sha256()
    with pytest.raises(UpdateStopped):
        update(policy, Optimiser(policy, TrainingConfig()), stop=True)
    assert policy.weights_sha256() == before
    assert all(p.grad is None for p in policy.model.parameters())


def test_a_batch_without_credit_is_no_update(policy: Policy) -> None:
    before = policy.weights_sha256()
    optimiser = Optimiser(policy, TrainingConfig())
    (data,) = optimiser.data([[credit_tree(tree_of([[1, 1]]), TREERPO)]], [], 1)
    result = optimiser.update(data, step=1, should_stop=lambda: False)
    assert result.not_finite is None
    assert not result.is_applied
    assert result.trained_tokens == 0
    assert policy.weights_sha256() == before


def test_learning_rate_rises_linearly_and_stays(policy: Policy) -> None:
    rate = Optimiser(policy, TrainingConfig(learning_rate=1e-3, warmup_steps=4)).learning_rate
    assert [rate(step) for step in (1, 2, 4, 5, 100)] == pytest.approx([2.5e-4, 5e-4, 1e-3, 1e-3, 1e-3])
    assert Optimiser(policy, TrainingConfig(learning_rate=1e-3)).learning_rate(1) == 1e-3


def test_an_update_steps_at_the_learning_rate_of_its_step(policy: Policy) -> None:
    optimiser = Optimiser(policy, TrainingConfig(learning_rate=1e-3, warmup_steps=4))
    before = [p.detach().clone() for p in policy.model.parameters()]
    assert update(policy, optimiser).learning_rate == pytest.approx(2.5e-4)
    # AdamW's first step moves nearly every weight by exactly its learning rate.
    moved = torch.cat(
        [(b - p.detach()).abs().flatten() for b, p in zip(before, policy.model.parameters(), strict=True)]
    )
    assert float(moved.max()) == pytest.approx(2.5e-4, rel=1e-2)


def test_gradient_is_clipped_to_its_limit(policy: Policy) -> None:
    optimiser, seen = recording(policy, TrainingConfig(max_grad_norm=1e-3))
    result = update(policy, optimiser)
    assert result.grad_norm > 1e-2
    assert float(torch.nn.utils.get_total_norm(seen)) == pytest.approx(1e-3, rel=1e-3)


def test_a_gap_that_is_not_a_number_stays_one(policy: Policy) -> None:
    optimiser = Optimiser(policy, TrainingConfig())
    trees = forest(TREERPO)
    (data,) = optimiser.data([trees], [], 1)
    result, _ = optimiser.gradient(data, lambda: False)
    assert result.logprob_gap > 0
    trees[0].logprobs[:] = np.nan
    (data,) = optimiser.data([trees], [], 1)
    result, _ = optimiser.gradient(data, lambda: False)
    assert math.isnan(result.logprob_gap)


def test_a_kl_term_without_a_reference_is_refused(policy: Policy) -> None:
    optimiser = Optimiser(policy, TrainingConfig(), PolicyObjective(regularizer=K3Regularizer()))
    with pytest.raises(ValueError, match="reference model"):
        optimiser.data([forest(TREERPO)], [], 1)


def test_log_ratios_to_the_reference_are_summed_over_answers(policy: Policy) -> None:
    optimiser = Optimiser(policy, TrainingConfig(), reference=policy)
    tree = forest(GRPO)[0]
    (ratios,) = optimiser.leaf_log_ratios([tree])
    leaf = int(np.flatnonzero(tree.is_leaf())[1])
    path = tree.path(leaf)
    ids = np.concatenate([tree.tokens[tree.token_offsets[n] : tree.token_offsets[n + 1]] for n in path])
    old = np.concatenate([tree.logprobs[tree.token_offsets[n] : tree.token_offsets[n + 1]] for n in path])
    start = int(tree.token_counts()[0])
    columns = torch.arange(start, len(ids))
    row = torch.from_numpy(ids.astype(np.int64))[None]
    with torch.no_grad():
        known = policy.logprobs(row, torch.zeros_like(columns), columns, 1.0)
    assert ratios[leaf] == pytest.approx(float(old[start:].sum() - known.sum()), abs=1e-4)
    assert (ratios[~tree.is_leaf()] == 0).all()


def test_a_reference_that_gives_no_number_gives_no_kl(policy: Policy) -> None:
    broken = copy.deepcopy(policy.model)
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    reference = Policy(broken, policy.tokenizer, policy.end_ids)
    tree = forest(GRPO)[0]
    (ratios,) = Optimiser(policy, TrainingConfig(), reference=reference).leaf_log_ratios([tree])
    assert np.isnan(ratios[tree.is_leaf()]).all()


@pytest.mark.parametrize("layout", ["packed", "flat"])
@pytest.mark.parametrize("ratio", ["token", "geometric"])
def test_a_trained_token_is_counted_once_however_often_it_is_computed(
    policy: Policy, layout: str, ratio: Literal["token", "geometric"]
) -> None:
    trees = forest(GRPO)
    counted = []
    for most in (10, 10_000):  # 10 is below what a run may ask for, so that these small trees are split
        training = TrainingConfig().model_copy(update={"microbatch_tokens": most})
        optimiser = Optimiser(policy, training, PolicyObjective(ratio=ratio), "trajectory")
        (data,) = optimiser.data([trees], [], 1)
        result, _ = optimiser.gradient(data, lambda: False, layout=layout)
        counted.append(result.trained_tokens)
    assert counted == [sum(int(tree.token_counts()[1:].sum()) for tree in trees)] * 2
