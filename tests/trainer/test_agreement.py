"""An engine that does not sample from the policy is found out before the first step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from trainer.data import Problem, load_data
from trainer.policy import Policy
from trainer.sampling.agreement import EngineMismatchError, check_against_policy
from trainer.sampling.decoder import CachedDecoder
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
    check_against_policy(engine, policy, problems())  # it takes the weights over first
    engine.sync = lambda: None
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
