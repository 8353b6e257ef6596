from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch

from tests.trainer.trees import T1, T2, credit_tree, tree_of
from trainer.optim import Optimiser, UpdateStopped
from trainer.packing import pack
from trainer.policy import Policy
from trainer.presets import PRESETS
from trainer.schema.credit import CreditConfig
from trainer.schema.objective import PolicyObjective
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


def recording(policy: Policy, training: TrainingConfig) -> tuple[Optimiser, list[torch.Tensor]]:
    """An optimiser that notes the gradients it would step along, and where it notes them."""
    optimiser = Optimiser(policy, training)
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
    optimiser, seen = recording(policy, training)
    batch = pack(trees, config.spread, aggregate)
    result = optimiser.update(
        batch,
        PolicyObjective(aggregate=aggregate),
        step=1,
        temperature=1.0,
        should_stop=lambda: False,
    )
    assert result.is_applied
    assert result.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert result.clip_fraction > 0.1
    largest = max(float(g.abs().max()) for g in gradients)
    for got, gradient in zip(seen, gradients, strict=True):
        assert float((got - gradient).abs().max()) < 1e-5 * largest


def update(policy: Policy, optimiser: Optimiser, stop: bool = False) -> Any:
    return optimiser.update(
        pack(forest(TREERPO), "node", "token_mean"),
        PolicyObjective(),
        step=1,
        temperature=1.0,
        should_stop=lambda: stop,
    )


def test_an_update_that_is_not_finite_leaves_the_weights_alone(policy: Policy) -> None:
    optimiser = Optimiser(policy, TrainingConfig())
    tree = forest(TREERPO)[0]
    tree.logprobs[-3:] = -np.inf
    tree.logprobs[-6:] = -np.inf
    batch = pack([tree], "node", "token_mean")
    batch.old_logprobs[:] = -np.inf
    before = policy.weights_sha256()
    result = optimiser.update(batch, PolicyObjective(), step=1, temperature=1.0, should_stop=lambda: False)
    assert not result.is_finite
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
    batch = pack([credit_tree(tree_of([[1, 1]]), TREERPO)], "node", "token_mean")
    result = Optimiser(policy, TrainingConfig()).update(
        batch, PolicyObjective(), step=1, temperature=1.0, should_stop=lambda: False
    )
    assert result.is_finite
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
