"""vLLM in processes of its own samples what vLLM in the trainer's process samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.test_main import finish, start
from tests.trainer.test_ranks import CLOSE, assert_same, case, furthest, one, trees
from tests.vllm.test_vllm_ranks import ENGINE
from trainer.config import RunConfig
from trainer.config_file import config_to_yaml


@pytest.mark.process
def test_an_engine_of_its_own_is_the_engine_in_the_trainer(tmp_path: Path) -> None:
    """Of an adapter, which is merged on its way; with evaluations between the batches."""
    config = RunConfig.model_validate(case("lora").model_dump(mode="json") | {"engine": ENGINE})
    alone = one(config, tmp_path / "one")
    (tmp_path / "run.yaml").write_text(config_to_yaml(config))
    beside = start(
        tmp_path / "run.yaml", "--output", str(tmp_path / "beside"), "--set", "resources.engine_processes=1"
    )
    status, events, errors = finish(beside)
    assert status == 0, errors
    assert_same("lora", alone, events)
    for tree, other in zip(trees(events), trees(alone), strict=True):
        assert abs(tree.logprobs - other.logprobs).max() < CLOSE
    assert [(e.engine, "vllm" in e.versions) for e in events if e.kind == "started"] == [("vllm", True)]
    last = f"checkpoints/step-{config.training.steps}"
    assert furthest(tmp_path / "one" / last, tmp_path / "beside" / last) < CLOSE
