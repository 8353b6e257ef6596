"""Two processes with an engine each are one process with one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.test_ranks import CLOSE, assert_same, case, events_of, furthest, one, two
from trainer.config import RunConfig


@pytest.mark.process
def test_two_processes_with_an_engine_each_are_one(tmp_path: Path) -> None:
    """Of an adapter, which is gathered and merged on its way to the engines."""
    engine = {"kind": "vllm", "kv_memory_mib": 16, "max_sequences": 64}
    config = RunConfig.model_validate(case("lora").model_dump(mode="json") | {"engine": engine})
    two({"lora": (config, [])}, tmp_path / "two")
    alone = one(config, tmp_path / "one")
    assert_same("lora", alone, events_of(tmp_path / "two", "lora"))
    last = f"checkpoints/step-{config.training.steps}"
    assert furthest(tmp_path / "one" / last, tmp_path / "two" / "lora" / last) < CLOSE
