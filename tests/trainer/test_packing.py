"""Packed and flat are one loss: for every objective, on any tree, whatever the ratios are."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import trainer.attention
import trainer.policy
from tests.trainer.trees import T1, T2, Nested, credit_tree, nested_trees, tree_of
from trainer.attention import BlockLayout, subtree_ends, use_path_attention
from trainer.config import RunConfig
from trainer.credit import credit_plan, credit_trees
from trainer.loss_weights import (
    count_trained,
    expert_share,
    expert_weights,
    preference_pairs,
    trained_tokens,
    weigh,
)
from trainer.optim import Optimiser
from trainer.packing import flatten, pack, trained_nodes, without_idle_items
from trainer.policy import ChosenLogprobs, Policy
from trainer.presets import PRESETS
from trainer.schema.objective import (
    ExpertMix,
    ForwardKlRegularizer,
    K3Regularizer,
    Objective,
    PolicyObjective,
    PreferenceObjective,
    SquaredLogRatioRegularizer,
    SupervisedObjective,
)
from trainer.schema.training import TrainingConfig
from trainer.tree import CreditState, FinishReason, RolloutTree, Verdict

TREERPO = PRESETS["treerpo-tiny"].config.credit
GRPO = PRESETS["grpo-tiny"].config.credit
STEP = PRESETS["step-grpo+-tiny"].config.credit
SEARCH = PRESETS["mcts-dpo-tiny"].config.credit
QUALITY = PRESETS["rest-mcts-tiny"].config.credit
VOCABULARY = 50
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


class _Tokenizer:
    """Only what a policy asks of a tokenizer when nothing is written or read."""

    is_fast = True


def policy_of(kind: str = "llama", dtype: torch.dtype = torch.float64) -> Policy:
    """A random model in float64, so that equal means equal to many digits."""
    torch.manual_seed(0)
    make = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
    }[kind]
    policy = object.__new__(Policy)
    policy.model = make().to(dtype).eval()
    policy.value_head = None
    policy._before, policy._after = [], []
    policy.adapter, policy.is_half = None, False
    use_path_attention(policy.model)
    policy.tokenizer = _Tokenizer()
    policy.end_ids = frozenset([1])
    return policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return policy_of()


@pytest.fixture(scope="module")
def reference() -> Policy:
    other = policy_of()
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return other


def gradient(
    policy: Policy,
    reference: Policy,
    trees: list[RolloutTree],
    objective: Objective,
    spread: str,
    layout: str,
    *,
    most_tokens: int = 10_000,
    off_policy: bool = True,
) -> tuple[list[torch.Tensor], float]:
    """Gradient and loss of one update, against old logprobs that are not the policy's."""
    training = TrainingConfig(microbatch_tokens=max(most_tokens, 64))
    optimiser = Optimiser(policy, training, objective, spread, reference=reference)
    data = optimiser.data([trees], [], 1)[0]
    if off_policy and isinstance(objective, PolicyObjective):
        rng = np.random.default_rng(0)
        own = optimiser.logprobs(policy, data.weights)
        data = replace(data, old=[known + rng.normal(0, 0.4, len(known)) for known in own])
    result, _ = optimiser.gradient(data, lambda: False, layout=layout)
    found = [
        torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in policy.named_parameters().values()
    ]
    optimiser.adamw.zero_grad(set_to_none=True)
    return found, result.loss


def assert_equal(left: tuple[list[torch.Tensor], float], right: tuple[list[torch.Tensor], float]) -> None:
    norm = math.sqrt(sum(float(g.square().sum()) for g in right[0]))
    away = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(left[0], right[0], strict=True)))
    assert norm > 1e-9
    # transformers' norms and rotary angles are float32 inside; a wrong weight or a wrong neighbour is 1e-2.
    assert away <= 3e-7 * norm
    assert left[1] == pytest.approx(right[1], abs=3e-7, rel=3e-7)


def some_trees() -> list[RolloutTree]:
    """Uneven ones: chains, early leaves, merged answers, a given segment, an error."""
    deep: Nested = [[[1, 0], [[0, 1]]], 0, [1, [0, 0, 1]], math.nan]
    made = [tree_of(T1, tokens_per_segment=3), tree_of(T2, tokens_per_segment=[2, 5, 1, 4, 3]), tree_of(deep)]
    copies = made[1].copies.copy()
    copies[4] = 3
    made[1] = replace(made[1], copies=copies)
    finish = made[2].finish.copy()
    finish[1] = FinishReason.GIVEN
    made[2] = replace(made[2], finish=finish)
    cut = made[0].verdict.copy()
    cut[-1] = Verdict.TRUNCATED
    made[0] = replace(made[0], verdict=cut)
    return made


POLICY_OBJECTIVES = {
    "ppo": PolicyObjective(),
    "clip higher, dual": PolicyObjective(clip_high=0.28, clip_dual=1.5),
    "sequence mean": PolicyObjective(aggregate="sequence_mean"),
    "fixed length": PolicyObjective(aggregate="fixed_length", fixed_length=20),
    "reinforce": PolicyObjective(ratio="none", clip="none"),
    "one side": PolicyObjective(ratio="none", clip="one_side"),
    "one side, ratio": PolicyObjective(clip="one_side"),
    "no clip": PolicyObjective(clip="none"),
    "rloo": PolicyObjective(ratio="sequence", aggregate="sequence_mean"),
    "gspo": PolicyObjective(ratio="geometric", clip_low=0.1, clip_high=0.1, aggregate="sequence_mean"),
    "gspo, token mean": PolicyObjective(ratio="geometric"),
    "kl": PolicyObjective(regularizer=K3Regularizer(beta=0.3)),
    "opmd": PolicyObjective(ratio="none", clip="none", regularizer=SquaredLogRatioRegularizer(beta=0.5)),
    "forward kl": PolicyObjective(regularizer=ForwardKlRegularizer(beta=0.5)),
    "entropy": PolicyObjective(entropy_bonus=0.2),
    "token mask": PolicyObjective(max_token_probability=0.6),
    "truncated": PolicyObjective(mask_truncated=True),
}
SPREADS = {
    "trajectory": (GRPO, "trajectory"),
    "node": (TREERPO, "node"),
    "leaf mean": (GRPO.model_copy(update={"spread": "leaf_mean"}), "leaf_mean"),
}


@pytest.mark.parametrize("objective", POLICY_OBJECTIVES.values(), ids=POLICY_OBJECTIVES)
@pytest.mark.parametrize(("credit", "spread"), SPREADS.values(), ids=SPREADS)
def test_packed_is_flat_for_every_policy_objective(
    policy: Policy, reference: Policy, objective: PolicyObjective, credit: Any, spread: str
) -> None:
    trees = [credit_tree(tree, credit) for tree in some_trees()]
    found = {
        layout: gradient(policy, reference, trees, objective, spread, layout) for layout in ("packed", "flat")
    }
    assert_equal(found["packed"], found["flat"])


@pytest.mark.parametrize("name", ["ppo", "entropy"])
def test_logits_made_in_parts_are_the_same(
    policy: Policy, reference: Policy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = [credit_tree(tree, GRPO) for tree in some_trees()]
    at_once = gradient(policy, reference, trees, POLICY_OBJECTIVES[name], "trajectory", "packed")
    rows: list[int] = []
    policy.model.lm_head.register_forward_hook(lambda _m, given, _out: rows.append(len(given[0])))
    monkeypatch.setattr(trainer.policy, "LOGITS_AT_ONCE", 5 * policy.model.config.vocab_size)
    try:
        assert_equal(
            gradient(policy, reference, trees, POLICY_OBJECTIVES[name], "trajectory", "packed"), at_once
        )
    finally:
        policy.model.lm_head._forward_hooks.clear()
    assert len(rows) > 4
    assert max(rows) == 5


def test_block_attention_sees_ones_own_path(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU computes long rows with, here without its compiler and forwards alone."""
    trees = [credit_tree(tree, GRPO) for tree in some_trees()]
    optimiser = Optimiser(policy, TrainingConfig(microbatch_tokens=64), PolicyObjective(), "trajectory")
    weights = optimiser.data([trees], [], 1)[0].weights
    gathered = optimiser.logprobs(policy, weights)
    monkeypatch.setattr(trainer.attention, "FLEX_LENGTH", 16)
    monkeypatch.setattr(trainer.attention, "FLEX_BLOCK", 8)
    monkeypatch.setattr(trainer.policy, "layout_of", BlockLayout.of)
    in_blocks = optimiser.logprobs(policy, weights)
    for left, right in zip(in_blocks, gathered, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)
    assert sum(np.isfinite(known).sum() for known in gathered) > 50


@pytest.mark.parametrize("block", [4, 16])
def test_blocks_are_those_that_the_rule_asks_for(
    policy: Policy, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against torch's own construction, which asks the rule for every pair."""
    monkeypatch.setattr(trainer.attention, "FLEX_LENGTH", 64)
    monkeypatch.setattr(trainer.attention, "FLEX_BLOCK", block)
    deep = [[[1, 0], [0, [1, 0]]], 1, [0, [[1, 1], 0]]]
    tree = credit_tree(tree_of(deep, tokens_per_segment=7), GRPO)
    optimiser = Optimiser(policy, TrainingConfig(), PolicyObjective(), "trajectory")
    (batch,) = pack(optimiser.data([[tree]], [], 1)[0].weights, 4096)
    ours = BlockLayout.of(batch.runs, torch.device("cpu"))
    asked = create_block_mask(
        ours.mask.mask_mod, None, None, ours.length, ours.length, "cpu", BLOCK_SIZE=block
    )
    assert torch.equal(ours.mask.to_dense(), asked.to_dense())
    for mask in (ours.mask, asked):
        assert mask.full_kv_num_blocks is not None
    assert torch.equal(ours.mask.kv_num_blocks, asked.kv_num_blocks)
    assert torch.equal(ours.mask.full_kv_num_blocks, asked.full_kv_num_blocks)
    if block == 4:
        assert int(ours.mask.full_kv_num_blocks.sum()) > 10


def test_gradient_of_chosen_logprobs() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 7, generator=rng, dtype=torch.float64, requires_grad=True)
    of, chosen = (
        torch.tensor([0, 2, 2, 2, 3]),
        torch.tensor([6, 1, 1, 5, 0]),
    )  # a place without, a token twice
    assert torch.autograd.gradcheck(lambda x: ChosenLogprobs.apply(x, of, chosen), (logits,))
    assert torch.equal(
        ChosenLogprobs.apply(logits, of, chosen), logits[of, chosen] - logits.logsumexp(-1)[of]
    )


def test_packed_is_flat_for_segments_counted_per_answer(policy: Policy, reference: Policy) -> None:
    trees = [credit_tree(tree, STEP) for tree in some_trees()]
    objective = PolicyObjective(segment_weight="answers")
    assert_equal(
        gradient(policy, reference, trees, objective, "node", "packed"),
        gradient(policy, reference, trees, objective, "node", "flat"),
    )


@pytest.mark.parametrize(
    "objective",
    [
        PreferenceObjective(),
        PreferenceObjective(loss="ipo", smoothing="none", rejected="second"),
        PreferenceObjective(length_power=0.7),
    ],
)
def test_packed_is_flat_for_pairs(policy: Policy, reference: Policy, objective: PreferenceObjective) -> None:
    trees = [
        replace(tree, visits=np.arange(tree.n_nodes, dtype=np.int32)[::-1].copy()) for tree in some_trees()
    ]
    trees = [credit_tree(tree, SEARCH) for tree in trees]
    assert_equal(
        gradient(policy, reference, trees, objective, "node", "packed"),
        gradient(policy, reference, trees, objective, "node", "flat"),
    )


def test_packed_is_flat_for_supervision_and_values(reference: Policy) -> None:
    policy = policy_of()
    head = torch.nn.Linear(32, 1).double()
    policy.value_head = head
    trees = [credit_tree(tree, QUALITY) for tree in some_trees()]
    objective = SupervisedObjective(max_answers=2)
    packed = gradient(policy, reference, trees, objective, "node", "packed")
    assert_equal(packed, gradient(policy, reference, trees, objective, "node", "flat"))
    assert float(packed[0][-2].abs().sum()) > 0  # the head's weight has a gradient


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_packed_is_flat_for_every_supported_model(kind: str) -> None:
    policy = policy_of(kind)
    trees = [credit_tree(tree, GRPO) for tree in some_trees()]
    assert_equal(
        gradient(policy, policy, trees, PolicyObjective(), "trajectory", "packed"),
        gradient(policy, policy, trees, PolicyObjective(), "trajectory", "flat"),
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(nested_trees(max_leaves=10), min_size=1, max_size=3), st.integers(0, 6), st.booleans())
def test_packed_is_flat_for_any_trees(batch: list[Nested], extra: int, is_node: bool) -> None:
    policy = policy_of()
    credit, spread = (TREERPO, "node") if is_node else (GRPO, "trajectory")
    trees = [credit_tree(tree_of(nested, tokens_per_segment=1 + extra), credit) for nested in batch]
    packed = gradient(policy, policy, trees, PolicyObjective(), spread, "packed")
    flat = gradient(policy, policy, trees, PolicyObjective(), spread, "flat")
    if all(float(g.abs().sum()) < 1e-9 for g in flat[0]):
        assert all(float(g.abs().sum()) < 1e-7 for g in packed[0])
    else:
        assert_equal(packed, flat)


# ---------------------------------------------------------------------------------- against the definition


def own_logprobs(policy: Policy, tokens: list[int]) -> torch.Tensor:
    """[T - 1] of each token given all before it, by the plain model on one row."""
    logits = policy.model(input_ids=torch.tensor([tokens])).logits[0]
    return logits[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


def by_definition(
    policy: Policy, tree: RolloutTree, objective: PolicyObjective, old_shift: float
) -> torch.Tensor:
    """PPO over the written-out answers: mean over all their tokens, one answer at a time."""
    terms, count = [], 0
    for leaf in np.flatnonzero(tree.credit_state == CreditState.CREDITED).tolist():
        path = tree.path(leaf)
        tokens = [
            int(t) for n in path for t in tree.tokens[tree.token_offsets[n] : tree.token_offsets[n + 1]]
        ]
        prompt = int(tree.token_counts()[0])
        logprobs = own_logprobs(policy, tokens)[prompt - 1 :]
        ratio = (logprobs - (logprobs.detach() + old_shift)).exp()
        advantage = float(tree.advantage[leaf])
        clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
        for _ in range(int(tree.copies[leaf])):
            terms.append(torch.minimum(ratio * advantage, clipped * advantage).sum())
            count += len(ratio)
    return -torch.stack(terms).sum() / count


@pytest.mark.parametrize("shift", [0.0, 0.5, -0.5])
def test_the_loss_is_the_mean_over_written_out_answers(policy: Policy, shift: float) -> None:
    tree = credit_tree(some_trees()[1], GRPO)
    objective = PolicyObjective()
    optimiser = Optimiser(policy, TrainingConfig(), objective, "trajectory")
    data = optimiser.data([[tree]], [], 1)[0]
    data = replace(data, old=[known + shift for known in optimiser.logprobs(policy, data.weights)])
    result, _ = optimiser.gradient(data, lambda: False)
    packed = [p.grad.clone() for p in policy.model.parameters()]
    optimiser.adamw.zero_grad()
    loss = by_definition(policy, tree, objective, shift)
    assert result.loss == pytest.approx(float(loss), abs=1e-7)
    loss.backward()
    assert_equal((packed, 0.0), ([p.grad.clone() for p in policy.model.parameters()], 0.0))
    optimiser.adamw.zero_grad()


# ---------------------------------------------------------------------------------- invariances


def test_splitting_into_micro_batches_and_trees_changes_nothing(policy: Policy, reference: Policy) -> None:
    trees = [credit_tree(tree, GRPO) for tree in some_trees()]
    for objective in (POLICY_OBJECTIVES["ppo"], POLICY_OBJECTIVES["gspo"], POLICY_OBJECTIVES["kl"]):
        whole = gradient(policy, reference, trees, objective, "trajectory", "packed")
        weights = weigh(trees, objective, "trajectory")
        for most in (12, 20, 40):
            batches = pack(weights, most, with_items=True)
            assert len(batches) > 1
            optimiser = Optimiser(policy, TrainingConfig(), objective, "trajectory", reference=reference)
            object.__setattr__(optimiser._config, "microbatch_tokens", most)  # below what a run may ask for
            data = optimiser.data([trees], [], 1)[0]
            rng = np.random.default_rng(0)
            own = optimiser.logprobs(policy, data.weights)
            data = replace(data, old=[known + rng.normal(0, 0.4, len(known)) for known in own])
            result, _ = optimiser.gradient(data, lambda: False)
            found = [p.grad.clone() for p in policy.model.parameters()]
            optimiser.adamw.zero_grad()
            assert_equal((found, result.loss), whole)


@settings(max_examples=60)
@given(nested_trees(max_leaves=12), st.booleans(), st.integers(6, 60))
def test_every_trained_token_is_weighed_exactly_once(nested: Nested, is_node: bool, most: int) -> None:
    credit, spread = (TREERPO, "node") if is_node else (GRPO, "trajectory")
    tree = credit_tree(tree_of(nested), credit)
    (weights,) = weigh([tree], PolicyObjective(), spread)
    weights = without_idle_items(weights, keeps_regularized=False)
    batches = pack([weights], most)
    seen = Counter(
        place
        for batch in batches
        for place, held in zip(batch.loss.place.tolist(), batch.loss.held.tolist(), strict=True)
        if held
    )
    trained = trained_nodes(weights)
    expected = [
        place
        for node in np.flatnonzero(trained).tolist()
        for place in range(int(tree.token_offsets[node]), int(tree.token_offsets[node + 1]))
    ]
    assert seen == Counter(expected)
    for batch in batches:
        # Every source stands just before its target on the target's own path.
        assert (batch.positions[batch.target] == batch.positions[batch.source] + 1).all()
        assert (batch.tokens[batch.target] == tree.tokens[batch.loss.place]).all()


def test_a_batch_that_fits_holds_each_token_once_and_leaves_idle_branches_out() -> None:
    tree = credit_tree(tree_of(T1, tokens_per_segment=3), TREERPO)  # b1, b2 have no credit
    (weights,) = weigh([tree], PolicyObjective(), "node")
    (batch,) = pack([weights], 1000)
    assert len(batch.tokens) == 3 + 4 * 3  # prompt, A, B, a1, a2
    star = credit_tree(tree_of([1, 0, 0, 1], tokens_per_segment=3), GRPO)
    (batch,) = pack(weigh([star], PolicyObjective(), "trajectory"), 1000)
    assert len(batch.tokens) == 3 + 4 * 3  # the prompt once


@settings(max_examples=20, deadline=None)
@given(st.lists(nested_trees(max_leaves=10), min_size=1, max_size=3), st.integers(1, 5))
def test_the_rule_of_the_block_mask_is_ones_own_path(batch: list[Nested], tokens: int) -> None:
    # Key k is seen from q if and only if k is q's path: the GPU's rule against the runs' own parents.
    trees = [credit_tree(tree_of(nested, tokens_per_segment=tokens), GRPO) for nested in batch]
    for packed in pack(weigh(trees, PolicyObjective(), "trajectory"), 10_000):
        runs, n = packed.runs, len(packed.tokens)
        expected = np.zeros((n, n), np.bool_)
        for run in range(len(runs.start)):
            above = run
            while above >= 0:
                expected[runs.start[run] : runs.end[run], runs.start[above] : runs.end[above]] = True
                above = int(runs.parent[above])
        place = np.arange(n)
        expected &= place <= place[:, None]
        seen = (place <= place[:, None]) & (place[:, None] < subtree_ends(runs))
        assert (seen == expected).all()
        assert (seen.sum(1) == packed.positions + 1).all()


def test_nothing_to_train_is_no_batch() -> None:
    trees = [credit_tree(tree_of([[1, 1], [1, 1]]), TREERPO)]
    assert pack(weigh(trees, PolicyObjective(), "node"), 1000) == []
    assert flatten(weigh(trees, PolicyObjective(), "node"), 1000) == []


# ---------------------------------------------------------------------------------- weights by hand


def test_weights_of_a_shared_segment_are_the_sums_over_its_answers() -> None:
    # T1 by GRPO (n - 1, eps 1e-4): a1 +1.4997, the others -.4999; four answers of 4 tokens: w = 1/16.
    tree = credit_tree(tree_of(T1, tokens_per_segment=2), GRPO)
    (weights,) = weigh([tree], PolicyObjective(), "trajectory")
    assert weights.up[1:] == pytest.approx(np.array([1.4997, 0, 1.4997, 0, 0, 0]) / 16, abs=1e-5)
    assert weights.down[1:] == pytest.approx(
        -np.array([0.4999, 0.9998, 0, 0.4999, 0.4999, 0.4999]) / 16, abs=1e-5
    )
    assert weights.held[1:].tolist() == [2 / 16, 2 / 16, 1 / 16, 1 / 16, 1 / 16, 1 / 16]


@pytest.mark.parametrize(
    ("aggregate", "token", "whole"),
    [
        # Answers of 1, 2 and 3 tokens, the last one twice: 9 tokens, 4 answers.
        ("token_mean", [1 / 9, 1 / 9, 2 / 9], [1 / 9, 2 / 9, 6 / 9]),
        ("sequence_mean", [1 / 4, 1 / 8, 2 / 12], [1 / 4, 1 / 4, 2 / 4]),
        ("fixed_length", [1 / 40, 1 / 40, 2 / 40], [1 / 40, 2 / 40, 6 / 40]),
    ],
)
def test_normalisers_count_answers_written_out(
    aggregate: Any, token: list[float], whole: list[float]
) -> None:
    tree = tree_of([1, 0, 0], tokens_per_segment=[1, 2, 3])
    tree = replace(tree, copies=np.array([0, 1, 1, 2], np.int32))
    (weights,) = weigh(
        [credit_tree(tree, GRPO)], PolicyObjective(aggregate=aggregate, fixed_length=10), "trajectory"
    )
    assert weights.token.tolist() == pytest.approx(token)
    assert weights.whole.tolist() == pytest.approx(whole)


def test_step_grpo_weights_by_hand() -> None:
    # - sum n_c A(c) sum log pi / sum_{A != 0} n_c |c|: nodes a(3 answers) d(1) b(2) c(1) of 2 tokens; e has
    # no credit.
    tree = replace(tree_of([[1, 0], [0]]), copies=np.array([0, 0, 0, 2, 1, 1], np.int32))
    credit = PRESETS["step-grpo-tiny"].config.credit
    (weights,) = weigh([credit_tree(tree, credit)], PolicyObjective(segment_weight="answers"), "node")
    assert weights.end.tolist() == [1, 2, 3, 4]
    assert weights.token.tolist() == pytest.approx([3 / 14, 1 / 14, 2 / 14, 1 / 14])


def test_given_and_sure_tokens_do_not_train() -> None:
    tree = some_trees()[2]
    counts = count_trained(tree, trained_tokens(tree, 1.0))
    assert counts[0] == counts[1] == 0
    assert (counts[2:] == tree.token_counts()[2:]).all()
    masked = trained_tokens(tree, 0.5)
    assert (tree.logprobs[masked] < math.log(0.5)).all()
    assert masked.sum() < trained_tokens(tree, 1.0).sum()


def test_pairs_by_hand() -> None:
    # root: A (V .5, 7 visits), B (V 0, 2 visits); below A: 1 against 0.
    tree = replace(tree_of(T1), visits=np.array([9, 7, 2, 4, 3, 1, 1], np.int32))
    tree = credit_tree(tree, SEARCH.model_copy(update={"backup": "child_mean"}))
    first, second = preference_pairs(tree, PreferenceObjective())
    assert (first.chosen, first.rejected) == ((3,), (4,))  # the wider gap first
    assert first.smoothing == pytest.approx(1 - 1 / (1 + 3 / 4))
    assert (second.chosen, second.rejected) == ((1,), (2,))
    assert second.smoothing == pytest.approx(1 - 1 / (1 + 2 / 7))
    assert preference_pairs(tree, PreferenceObjective(min_gap=0.6)) == (first,)
    assert preference_pairs(tree, PreferenceObjective(max_pairs=1)) == (first,)


def test_an_only_child_goes_on_in_its_pair() -> None:
    tree = credit_tree(tree_of([[[1]], 0]), SEARCH.model_copy(update={"backup": "child_mean"}))
    (pair,) = preference_pairs(tree, PreferenceObjective())
    assert pair.chosen == (1, 3, 4)
    assert pair.rejected == (2,)


def test_experts_weigh_mu_over_all_their_tokens() -> None:
    trees = [tree_of([1], tokens_per_segment=3), tree_of([1], tokens_per_segment=5)]
    weights = expert_weights(trees, 0.4)
    assert [w.supervised[1] for w in weights] == pytest.approx([0.4 / 8, 0.4 / 8])


def test_mu_rises_then_falls_by_a_cosine() -> None:
    schedule = [expert_share(step, 0.8, 0.2, 2, 4) for step in range(1, 9)]
    assert schedule == pytest.approx(
        [
            0,
            0.4,
            0.8,
            0.2 + 0.6 * (1 + math.sqrt(0.5)) / 2,
            0.5,
            0.2 + 0.6 * (1 - math.sqrt(0.5)) / 2,
            0.2,
            0.2,
        ]
    )


# ---------------------------------------------------------------------------------- on-policy, mixing


def test_exactly_on_policy_the_old_pass_may_be_skipped(policy: Policy) -> None:
    trees = [credit_tree(tree, GRPO) for tree in some_trees()]
    optimiser = Optimiser(policy, TrainingConfig(), PolicyObjective(), "trajectory")
    skipped = optimiser.data([trees], [], 1)[0]
    assert skipped.old is None
    explicit = replace(skipped, old=optimiser.logprobs(policy, skipped.weights))
    found = []
    for data in (skipped, explicit):
        result, _ = optimiser.gradient(data, lambda: False)
        found.append(([p.grad.clone() for p in policy.model.parameters()], result.loss))
        optimiser.adamw.zero_grad()
    assert_equal(found[0], found[1])
    assert optimiser.data([trees, trees], [], 1)[1].old is not None


def test_an_expert_is_mixed_in_by_mu(policy: Policy) -> None:
    trees = [credit_tree(tree, GRPO) for tree in some_trees()]
    expert = tree_of([1], tokens_per_segment=4)
    mix = PolicyObjective(expert=ExpertMix(peak=0.25, valley=0.25, decay_steps=0))
    alone = gradient(policy, policy, trees, PolicyObjective(), "trajectory", "packed", off_policy=False)
    optimiser = Optimiser(policy, TrainingConfig(), mix, "trajectory")
    data = optimiser.data([trees], [expert], 1)[0]
    result, _ = optimiser.gradient(data, lambda: False)
    mixed = [p.grad.clone() for p in policy.model.parameters()]
    optimiser.adamw.zero_grad()
    tokens = [int(t) for t in expert.tokens]
    loss = -own_logprobs(policy, tokens)[2:].mean()  # three prompt tokens
    loss.backward()
    cloned = [p.grad.clone() for p in policy.model.parameters()]
    optimiser.adamw.zero_grad()
    expected = [0.75 * a + 0.25 * c for a, c in zip(alone[0], cloned, strict=True)]
    assert_equal((mixed, result.loss), (expected, 0.75 * alone[1] + 0.25 * float(loss)))
    assert result.figures["expert/mu"] == 0.25
    assert result.figures["expert/loss"] == pytest.approx(float(loss))


@pytest.mark.parametrize("slug", [slug for slug, preset in PRESETS.items() if preset.scale == "tiny"])
def test_every_preset_has_a_gradient_and_it_is_the_flat_one(slug: str, reference: Policy) -> None:
    config: RunConfig = PRESETS[slug].config
    policy = policy_of()
    policy.value_head = torch.nn.Linear(32, 1).double()
    trees = some_trees()
    plan = credit_plan(config)
    if plan.budgets:
        trees = [replace(t, subgroup=(np.arange(t.n_nodes) % 2).astype(np.int32)) for t in trees]
    if slug.startswith("rest"):
        trees = trees[:2]
    trees = credit_trees(trees, plan)
    assert_equal(
        gradient(policy, reference, trees, config.objective, config.credit.spread, "packed"),
        gradient(policy, reference, trees, config.objective, config.credit.spread, "flat"),
    )
