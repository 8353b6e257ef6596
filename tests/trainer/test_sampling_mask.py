"""Top-k and top-p: what a token was drawn from is what it is trained as, whatever becomes of the policy."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import TopKLogitsWarper, TopPLogitsWarper

import trainer.payload
import trainer.policy
from tests.trainer.chance import chi_square
from tests.trainer.test_loop import Run, small
from tests.trainer.test_packing import (
    GRPO,
    POLICY_OBJECTIVES,
    VOCABULARY,
    assert_equal,
    gradient,
    policy_of,
    some_trees,
)
from tests.trainer.trees import credit_tree
from trainer.config import RunConfig
from trainer.config_file import ConfigError
from trainer.events import Metrics, PackingChecked, TreeSampled
from trainer.optim import Optimiser
from trainer.policy import _of_kept
from trainer.presets import PRESETS
from trainer.sampling.engine import Cut
from trainer.sampling.local_engine import CUT_OFF, choose, cut_off
from trainer.schema.objective import PolicyObjective
from trainer.schema.training import TrainingConfig
from trainer.tree import CreditState, Kept, RolloutTree

OVERLAP = ("training.max_staleness=1", "objective.importance={kind: truncated}")
FIVE = torch.tensor([[0.5, 0.3, 0.15, 0.04, 0.01]]).log()


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        (Cut(3), [0, 1, 2]),
        (Cut(3, 0.85), [0, 1, 2]),  # of .95 the first two have .8 / .95 = .842
        (Cut(3, 0.84), [0, 1]),
        (Cut(5, 0.79), [0, 1]),
        (Cut(5, 1e-9), [0]),
        (Cut(512), [0, 1, 2, 3, 4]),
    ],
)
def test_by_hand(cut: Cut, kept: list[int]) -> None:
    left, ids = cut_off(FIVE, cut, 1.0)
    assert [token for token in ids[0].tolist() if token >= 0] == kept
    shares = left[0].softmax(-1)
    np.testing.assert_allclose(shares[kept], (FIVE[0].exp() / FIVE[0].exp()[kept].sum())[kept], atol=1e-6)
    assert shares[[token for token in range(5) if token not in kept]].sum() == 0


def test_what_is_put_there_is_kept_too() -> None:
    left, ids = cut_off(FIVE.repeat(3, 1), Cut(2), 1.0, forced=torch.tensor([4, 1, -1]))
    assert ids.tolist() == [[0, 1, 4], [0, 1, -1], [0, 1, -1]]
    token, logprob, _ = choose(left, torch.full((3,), 0.5), 1.0, forced=torch.tensor([4, 1, -1]))
    assert token[:2].tolist() == [4, 1]
    assert logprob[0].exp() == pytest.approx(0.01 / 0.81)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_as_transformers_cuts_off(temperature: float) -> None:
    logits = 3 * torch.randn(200, 97, generator=torch.Generator().manual_seed(1))
    for top_k, top_p in ((97, 0.9), (20, 0.7), (5, 1.0), (60, 1.0), (1, 0.5)):
        left, ids = cut_off(logits, Cut(top_k, top_p), temperature)
        none = torch.zeros(1)
        peer = TopPLogitsWarper(top_p)(none, TopKLogitsWarper(top_k)(none, logits / temperature))
        assert torch.equal(left > CUT_OFF / 2, peer > -torch.inf)
        assert torch.equal((left > CUT_OFF / 2).sum(1), (ids >= 0).sum(1))


def test_tokens_come_as_often_as_what_is_left_says() -> None:
    left, _ = cut_off(FIVE, Cut(4, 0.95), 0.8)
    draws = torch.from_numpy(np.random.default_rng(3).random(20_000))
    tokens, logprobs, _ = choose(left.repeat(len(draws), 1), draws, 0.8)
    shares = (left[0] / 0.8).softmax(-1).tolist()
    assert chi_square(Counter(tokens.tolist()), dict(enumerate(shares))) > 0.01
    np.testing.assert_allclose(logprobs.exp(), np.array(shares)[tokens.numpy()], atol=1e-6)


# ---------------------------------------------------------------------------------------------- training


def test_gradient_of_what_is_kept() -> None:
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, dtype=torch.float64, generator=chance, requires_grad=True)
    of, chosen = torch.tensor([0, 1, 1, 2]), torch.tensor([2, 0, 6, 5])
    kept = torch.tensor([[2, 4, -1], [0, -1, -1], [6, 0, 3], [-1, -1, -1]])
    assert torch.autograd.gradcheck(lambda x: _of_kept(x, of, chosen, kept), (logits,))
    logprobs, entropies = _of_kept(logits, of, chosen, kept)
    for number, row in enumerate(kept.tolist()):
        ids = [token for token in row if token >= 0] or list(range(7))
        part = logits[of[number], ids].log_softmax(-1)
        assert logprobs[number].item() == pytest.approx(part[ids.index(int(chosen[number]))].item())
        assert entropies[number].item() == pytest.approx(-(part.exp() * part).sum().item())


def masked(tree: RolloutTree) -> RolloutTree:
    """The tree as if each of its tokens had been drawn from itself and up to three others, and the last ones
    of its first segment from all.
    """
    chance = np.random.default_rng(2)
    first, last = tree.token_offsets[[1, 2]].tolist()
    rows = np.full((len(tree.tokens), 4), -1, np.int32)
    for place in [first, *range(last, len(tree.tokens))]:
        others = chance.permutation(np.setdiff1d(np.arange(VOCABULARY), tree.tokens[place]))
        count = int(chance.integers(1, 5))
        rows[place, :count] = chance.permutation([tree.tokens[place], *others[: count - 1]])
    return replace(tree, kept=Kept.of_rows(rows))


@pytest.mark.parametrize("name", ["ppo", "gspo", "kl", "entropy"])
def test_packed_is_flat_and_neither_is_what_it_is_without_the_mask(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    policy, reference = policy_of(), policy_of("llama")
    plain = [credit_tree(tree, GRPO) for tree in some_trees()]
    trees = [masked(tree) for tree in plain[:2]] + plain[2:]  # one batch may have both kinds
    found = [
        gradient(policy, reference, trees, POLICY_OBJECTIVES[name], "trajectory", layout)
        for layout in ("packed", "flat")
    ]
    assert_equal(*found)
    monkeypatch.setattr(trainer.policy, "LOGITS_AT_ONCE", 5 * VOCABULARY)
    parts = gradient(policy, reference, trees, POLICY_OBJECTIVES[name], "trajectory", "packed")
    assert_equal(parts, found[0])
    unmasked = gradient(policy, reference, plain, POLICY_OBJECTIVES[name], "trajectory", "packed")
    assert math.dist([float(g.norm()) for g in unmasked[0]], [float(g.norm()) for g in parts[0]]) > 1e-3


def test_by_the_definition_on_written_out_answers() -> None:
    """The ratio's two policies are both cut off to what each token was drawn from."""
    policy = policy_of()
    tree = masked(credit_tree(some_trees()[1], GRPO))
    assert tree.kept is not None
    kept = np.split(tree.kept.tokens, np.cumsum(tree.kept.counts)[:-1])
    optimiser = Optimiser(policy, TrainingConfig(), PolicyObjective(), "trajectory")
    data = optimiser.data([[tree]], [], 1)[0]
    data = replace(data, old=[known + 0.1 for known in optimiser.logprobs(policy, data.weights)])
    result, _ = optimiser.gradient(data, lambda: False)
    packed = [p.grad.clone() for p in policy.model.parameters()]
    optimiser.adamw.zero_grad()
    terms, count = [], 0
    for leaf in np.flatnonzero(tree.credit_state == CreditState.CREDITED).tolist():
        places = [
            place
            for node in tree.path(leaf)
            for place in range(tree.token_offsets[node], tree.token_offsets[node + 1])
        ]
        logits = policy.model(input_ids=torch.tensor([tree.tokens[places].tolist()])).logits[0]
        for before, place in enumerate(places[1:]):
            if place < tree.token_offsets[1]:
                continue
            ids = kept[place].tolist() or list(range(VOCABULARY))
            logprob = logits[before, ids].log_softmax(-1)[ids.index(tree.tokens[place])]
            ratio = (logprob - (logprob.detach() + 0.1)).exp()
            clipped = ratio.clamp(0.8, 1.2)
            advantage = float(tree.advantage[leaf])
            for _ in range(int(tree.copies[leaf])):
                terms.append(torch.minimum(ratio * advantage, clipped * advantage))
                count += 1
    loss = -torch.stack(terms).sum() / count
    assert result.loss == pytest.approx(loss.item(), abs=1e-7)
    loss.backward()
    assert_equal((packed, 0.0), ([p.grad.clone() for p in policy.model.parameters()], 0.0))


CUT = ("sampler.top_k=4", "sampler.top_p=0.9")


@pytest.mark.parametrize("more", [(), ("training.updates_per_step=2",), OVERLAP], ids=["one", "two", "ahead"])
def test_a_run_is_trained_as_what_it_drew_from(tmp_path: Path, more: tuple[str, ...]) -> None:
    run = Run(tmp_path, small(*CUT, *more))
    assert run.outcome.outcome == "succeeded"
    steps = [event.values for event in run.of(Metrics) if "policy/logprob_gap" in event.values]
    assert len(steps) == 4
    if more != OVERLAP:  # there the weights have moved since
        assert all(0 < values["policy/logprob_gap"] < 1e-4 for values in steps)
    (checked,) = run.of(PackingChecked)
    assert checked.gradient_difference < 1e-5
    for event in run.of(TreeSampled):
        assert RolloutTree.from_payload(event.payload).kept is None  # nothing to look at
    resumed = Run(tmp_path, small(*CUT, *more), resume=tmp_path / "checkpoints" / "step-2")
    assert resumed.outcome.weights_sha256 == run.outcome.weights_sha256


@pytest.mark.parametrize("in_parts", [False, True])
def test_it_travels_with_the_tree(monkeypatch: pytest.MonkeyPatch, in_parts: bool) -> None:
    tree = masked(some_trees()[0])
    if in_parts:  # of a large tree what is kept would be more than is read of one part
        monkeypatch.setattr(trainer.payload, "CHUNK_TOKENS", 5)
        payload = tree.to_payload()
        parts = trainer.payload._index(lambda start, stop: payload[start:stop])
        assert parts is not None
        assert len(parts) == 1 + 2 * math.ceil(len(tree.tokens) / 5)
    assert tree.kept is not None
    back = RolloutTree.from_payload(tree.to_payload()).kept
    assert back is not None
    assert back.counts.tolist() == tree.kept.counts.tolist()
    assert back.tokens.tolist() == tree.kept.tokens.tolist()
    with pytest.raises(ValueError, match="kept must have a count"):
        replace(tree, kept=Kept(tree.kept.counts, tree.kept.tokens[:-1]))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("sampler.top_p=0.9",), "top_p 0.9 needs top_k"),
        (("sampler.top_k=1000",), "512"),
        (("sampler.min_p=0.1",), "Leave min_p out"),
    ],
)
def test_what_cannot_be_is_refused(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        small(*overrides)


def test_pairs_are_not_trained_on_a_part_of_the_policy() -> None:
    values = PRESETS["mcts-dpo-tiny"].config.model_dump(mode="json")
    with pytest.raises(ValidationError, match="objective preference trains all of it"):
        RunConfig.model_validate(values | {"sampler": values["sampler"] | {"top_k": 4}})
