"""Two processes are one process with one engine: with an engine each, and with halves of a single one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.test_ranks import (
    CLOSE,
    assert_same,
    case,
    ends_of,
    events_of,
    furthest,
    numbers,
    one,
    two,
)
from trainer.config import RunConfig
from trainer.policy import Policy

ENGINE = {"kind": "vllm", "kv_memory_mib": 16, "max_sequences": 64}


@pytest.mark.process
def test_two_processes_with_an_engine_each_are_one(tmp_path: Path) -> None:
    """Of an adapter, which is gathered and merged on its way to the engines; also beside training."""
    values = case("lora").model_dump(mode="json") | {"engine": ENGINE}
    configs = {"lora": RunConfig.model_validate(values)}
    values["training"]["max_staleness"] = 1
    values["objective"]["importance"] = {"kind": "truncated"}
    configs["ahead"] = RunConfig.model_validate(values)
    two({name: (config, []) for name, config in configs.items()}, tmp_path / "two")
    for name, config in configs.items():
        alone = one(config, tmp_path / "one" / name)
        assert_same(name, alone, events_of(tmp_path / "two", name))
        last = f"checkpoints/step-{config.training.steps}"
        assert furthest(tmp_path / "one" / name / last, tmp_path / "two" / name / last) < CLOSE


@pytest.mark.process
def test_two_processes_with_half_an_engine_each_are_one(
    policy: Policy, random_model: Callable[..., Any], tmp_path: Path
) -> None:
    """There is one problem to evaluate, so that one of them has none of its own."""
    model = random_model("qwen2", len(policy.tokenizer), hidden_size=128, tie_word_embeddings=True)
    for parameter in model.parameters():
        parameter.data.mul_(0.2)  # small logits, of which rounding leaves more digits
    model.save_pretrained(tmp_path / "model")
    policy.tokenizer.save_pretrained(tmp_path / "model")
    # What it babbles is right where an s comes later in it than any e.
    rows = [json.dumps({"question": f"{number} + 1 = ", "answer": "#### s"}) for number in range(40)]
    (tmp_path / "problems.jsonl").write_text("\n".join(rows))
    values = case("treerpo").model_dump(mode="json")
    values["model"]["path"] = str(tmp_path / "model")
    values["data"] = {"kind": "jsonl", "path": str(tmp_path / "problems.jsonl")}
    values["verifier"] = {"kind": "regex", "pattern": "([es])"}
    values["evaluation"]["problems"] = 1
    config = RunConfig.model_validate(values | {"engine": ENGINE})
    values["resources"]["processes"] = 2
    split = RunConfig.model_validate(values | {"engine": ENGINE | {"tensor_parallel": 2}})
    two({"split": (split, []), "parted": (split, [])}, tmp_path / "two", breaks={"parted": {"parts": 40}})
    for end in ends_of(tmp_path / "two", "parted"):
        assert end["outcome"] == "EngineError"
        assert end["reason"].startswith(
            "The processes that are one engine (engine.tensor_parallel 2) chose different tokens: rank 1 "
            "parted from rank 0. "
        )
    alone = one(config, tmp_path / "one")
    assert min(value for (_, name), value in numbers(alone).items() if name == "policy/grad_norm") > 0
    assert_same("split", alone, events_of(tmp_path / "two", "split"))
    last = f"checkpoints/step-{config.training.steps}"
    assert furthest(tmp_path / "one" / last, tmp_path / "two" / "split" / last) < CLOSE
