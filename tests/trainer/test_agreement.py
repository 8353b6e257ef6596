"""An engine that does not sample from the policy is found out before the first step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from trainer.data import Problem, load_data
from trainer.events import Occupancy
from trainer.policy import Policy
from trainer.sampling.agreement import EngineMismatchError, check_against_policy
from trainer.sampling.decoder import CachedDecoder
from trainer.sampling.engine import SamplingPlan
from trainer.sampling.local_engine import LocalEngine
from trainer.schema.data import ChainData


def problems() -> list[Problem]:
    return load_data(ChainData(operations=3), seed=5, evaluation_problems=1).training.batch(1, 3)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_the_local_engine_agrees_to_the_last_digits(tiny_reasoner: Policy, temperature: float) -> None:
    gap = check_against_policy(LocalEngine(tiny_reasoner), tiny_reasoner, problems(), temperature=temperature)
    assert 0 < gap < 2e-5


def test_an_engine_that_does_not_follow_the_policy_is_refused(tiny_reasoner: Policy) -> None:
    policy = copy.copy(tiny_reasoner)
    policy.model = copy.deepcopy(tiny_reasoner.model)
    engine = LocalEngine(policy)
    check_against_policy(engine, policy, problems())
    with torch.no_grad():
        policy.model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    engine.sync()
    check_against_policy(engine, policy, problems())
    with torch.no_grad():
        policy.model.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    with pytest.raises(EngineMismatchError, match=r"token \d+ of an answer to problem chain-3-train"):
        check_against_policy(engine, policy, problems())


def test_a_gap_that_is_no_number_is_refused(tiny_reasoner: Policy) -> None:
    policy = copy.copy(tiny_reasoner)
    engine = LocalEngine(tiny_reasoner)
    policy.model = copy.deepcopy(tiny_reasoner.model)
    policy.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(EngineMismatchError, match="nan in the policy"):
        check_against_policy(engine, policy, problems())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_values_are_those_of_the_head_on_the_normed_state(
    random_model: Callable[..., Any], tiny_reasoner: Policy, kind: str
) -> None:
    policy = Policy(random_model(kind, 420), tiny_reasoner.tokenizer, tiny_reasoner.end_ids)
    decoder = CachedDecoder(policy.model)
    tokens, lengths = torch.arange(5, 17).view(2, 6), torch.tensor([6, 6])
    hidden = decoder.prefill(tokens, lengths, decoder.empty_cache(2, 6))
    with pytest.raises(ValueError, match="no value head"):
        decoder.values(hidden)
    policy.add_value_head(3)
    assert policy.value_head is not None
    with torch.no_grad():
        policy.value_head.weight.mul_(2000)
        policy.value_head.bias.fill_(0.3)
    decoder.sync(policy.value_head)
    state = policy.model.model(input_ids=tokens).last_hidden_state[:, -1]
    expected = torch.sigmoid(policy.value_head(state))[:, 0]
    assert expected.std() > 0.01
    torch.testing.assert_close(decoder.values(hidden), expected.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_rows", [1024, 5])
def test_the_local_engine_tells_what_it_is_at(tiny_reasoner: Policy, max_rows: int) -> None:
    """Trees [2, 2] whose first segments are cut after 6 tokens; at most `max_rows` are written at once."""
    engine = LocalEngine(tiny_reasoner, max_rows=max_rows)
    seen: list[Occupancy] = []

    def look(_done: int, _total: int) -> None:
        found = engine.occupancy()
        assert found is not None
        seen.append(found)

    plan = SamplingPlan((2, 2), (6, 10), split_at_newline=False, temperature=1.0)
    trees = engine.sample(problems(), plan, seed=0, step=0, should_stop=lambda: False, on_progress=look)
    assert max(one.running for one in seen) <= max_rows
    assert max(one.running + one.waiting for one in seen) >= min(2 * len(trees), max_rows)
    assert any(one.waiting for one in seen) == (max_rows == 5)
    prompts = sum(int(tree.token_counts()[0]) for tree in trees)
    inner = [node for tree in trees for node in np.flatnonzero(~tree.is_leaf())[1:]]
    # Two segments below each prompt, two behind each inner segment; a prompt is read once, and a segment's
    # last token once more where others follow it.
    prefix = 2 * prompts + sum(
        2 * (int(tree.token_counts()[0]) + int(tree.token_counts()[node]))
        for tree in trees
        for node in np.flatnonzero(~tree.is_leaf())[1:]
    )
    figures = engine.figures()
    assert figures["engine/cached_share"] == pytest.approx(1 - (prompts + len(inner)) / prefix)
    assert figures["engine/most_read_again"] == 1
    assert 0 < figures["engine/kv_use"] < 0.1
    assert 1 <= figures["engine/sequences"] <= min(max_rows, 4 * len(trees))
