"""On a machine with two NVIDIA GPUs: an engine with a GPU of its own samples from the policy on the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainer.test_main import finish, start
from tests.trainer.test_ranks import case
from trainer.config_file import config_to_yaml
from trainer.events import Metrics
from trainer.sampling.agreement import TOLERANCE

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="not two GPUs")]


def test_weights_go_from_one_gpu_to_the_other(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(config_to_yaml(case("treerpo")))
    own = ("resources.queue=gpu.2", "resources.engine_processes=1", "engine.agreement_every_steps=1")
    run = start(
        tmp_path / "run.yaml",
        *("--output", str(tmp_path / "run")),
        *(part for one in own for part in ("--set", one)),
    )
    status, events, errors = finish(run)
    assert status == 0, errors
    assert {event.device for event in events if event.kind == "started"} == {"cuda:0"}
    gaps = [event.values.get("engine/logprob_gap") for event in events if isinstance(event, Metrics)]
    compared = [gap for gap in gaps if gap is not None]
    assert len(compared) == 3  # before the first step, and after each
    assert max(compared) < TOLERANCE
