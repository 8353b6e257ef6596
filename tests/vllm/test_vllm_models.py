"""The vLLM engine on several models, each with an engine of its own; there is one at a time in a process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.trainer.test_samplers import problems
from tests.vllm.conftest import KV_MEMORY_MIB
from tests.vllm.test_vllm_engine import moved
from trainer.policy import Policy
from trainer.sampling import vllm_engine
from trainer.sampling.agreement import EngineMismatchError, check_against_policy
from trainer.sampling.engine import EngineError
from trainer.sampling.vllm_engine import VllmEngine
from trainer.schema.engine import VllmEngineChoice


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_other_architectures(policy: Policy, random_model: Callable[..., Any], kind: str) -> None:
    tied = kind == "qwen3"
    model = random_model(kind, len(policy.tokenizer), hidden_size=128, tie_word_embeddings=tied)
    other = Policy(model, policy.tokenizer, policy.end_ids)
    found = VllmEngine(other, VllmEngineChoice(kv_memory_mib=KV_MEMORY_MIB, max_sequences=8))
    try:
        assert 0 < check_against_policy(found, other, problems(2)) < 1e-4
        moved(other)
        found.sync()
        assert 0 < check_against_policy(found, other, problems(2), temperature=0.7) < 1e-4
    finally:
        found.close()


def test_without_packing_the_tied_head_again_its_logits_are_the_old_ones(
    policy: Policy, random_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why `_pack_tied` is there. When this no longer fails, vLLM does it by itself."""
    model = random_model("llama", len(policy.tokenizer), hidden_size=128, tie_word_embeddings=True)
    other = Policy(model, policy.tokenizer, policy.end_ids)
    with monkeypatch.context() as without:
        without.setattr(vllm_engine, "_pack_tied", lambda _worker: None)
        found = VllmEngine(other, VllmEngineChoice(kv_memory_mib=KV_MEMORY_MIB, max_sequences=8))
        found.sync()
        with pytest.raises(EngineMismatchError, match="vllm engine does not sample from the policy"):
            check_against_policy(found, other, problems(2))
    try:
        found.sync()
        assert 0 < check_against_policy(found, other, problems(2)) < 1e-4
    finally:
        found.close()


def test_what_vllm_cannot_compute_is_told_at_the_start(
    policy: Policy, random_model: Callable[..., Any]
) -> None:
    """Its CPU build has no attention for heads of 24, and says so in the first step."""
    model = random_model("llama", len(policy.tokenizer), hidden_size=96, head_dim=24)
    other = Policy(model, policy.tokenizer, policy.end_ids)
    with pytest.raises(EngineError, match=r"knows this model and cannot compute .*head_dim=24.* Set engine"):
        VllmEngine(other, VllmEngineChoice(kv_memory_mib=KV_MEMORY_MIB, max_sequences=8))


def test_memory_for_less_than_one_sequence_is_refused_with_what_is_enough(
    policy: Policy, random_model: Callable[..., Any]
) -> None:
    model = random_model("llama", len(policy.tokenizer), hidden_size=128, max_position_embeddings=65536)
    other = Policy(model, policy.tokenizer, policy.end_ids)
    with pytest.raises(
        EngineError, match=r"sequence of the model's 65,536 positions.* Set engine.kv_memory_mib \d+ or"
    ) as told:
        VllmEngine(other, VllmEngineChoice(kv_memory_mib=KV_MEMORY_MIB, max_sequences=8))
    enough = int(str(told.value).partition("Set engine.kv_memory_mib ")[2].partition(" ")[0])
    VllmEngine(other, VllmEngineChoice(kv_memory_mib=enough, max_sequences=8)).close()
    # Room is asked for what the run may write, not for all that the model could look at.
    little = VllmEngine(
        other, VllmEngineChoice(kv_memory_mib=KV_MEMORY_MIB, max_sequences=8), most_positions=100
    )
    try:
        assert 0 < check_against_policy(little, other, problems(2)) < 1e-4
        longer = [replace(problem, prompt=problem.prompt * 9) for problem in problems(1)]
        with pytest.raises(ValueError, match=r"a prompt of \d+ tokens .* do not fit this run's 100 pos"):
            check_against_policy(little, other, longer)
    finally:
        little.close()


def test_more_memory_than_there_is_is_refused_in_words(policy: Policy) -> None:
    with pytest.raises(EngineError, match=r"did not start with 4194304 MiB of key-value memory.*Change"):
        VllmEngine(policy, VllmEngineChoice(kv_memory_mib=4_194_304))
