"""A fork goes on from another run's checkpoint under another config, as far as the weights allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoint import CheckpointError, list_checkpoints
from trainer.config import RunConfig
from trainer.events import Event, Metrics
from trainer.loop import train
from trainer.presets import PRESETS


def config_of(steps: int, seed: int = 1, **training: Any) -> RunConfig:
    values = PRESETS["grpo-tiny"].config.model_dump(mode="json")
    values["seed"] = seed
    values["training"] |= {"steps": steps, "problems_per_step": 2, "warmup_steps": 0} | training
    values["data"]["operations"] = 3
    values["evaluation"] |= {"problems": 2, "every_steps": 0, "samples": 1}
    values["checkpoint"] |= {"every_steps": 1, "keep_last": 1, "keep_best": False}
    values["recording"]["trees_per_step"] = 0
    return RunConfig.model_validate(values)


def run(config: RunConfig, folder: Path, **more: Any) -> tuple[Any, list[Event]]:
    events: list[Event] = []
    return train(config, emit=events.append, should_stop=lambda: False, run_dir=folder, **more), events


def test_fork_goes_on_with_another_seed_and_rate_for_more_steps(tmp_path: Path) -> None:
    run(config_of(2), tmp_path / "parent")
    (saved,) = list_checkpoints(tmp_path / "parent")
    changed = config_of(4, seed=5, learning_rate=1e-4)
    with pytest.raises(CheckpointError, match="differ"):
        run(changed, tmp_path / "resumed", resume=saved)
    outcome, events = run(changed, tmp_path / "fork", resume=saved, is_fork=True)
    assert (outcome.outcome, outcome.step) == ("succeeded", 4)
    told = [
        event for event in events if isinstance(event, Metrics) and "policy/learning_rate" in event.values
    ]
    assert [(event.step, event.values["policy/learning_rate"]) for event in told] == [(3, 1e-4), (4, 1e-4)]
    # From its own checkpoint it goes on as any run.
    (own,) = list_checkpoints(tmp_path / "fork")
    run(config_of(5, seed=5, learning_rate=1e-4), tmp_path / "again", resume=own)


def test_fork_with_another_adapter_is_refused(tmp_path: Path) -> None:
    run(config_of(1), tmp_path / "parent")
    (saved,) = list_checkpoints(tmp_path / "parent")
    values = config_of(2).model_dump(mode="json")
    values["model"]["adapter"] = {"kind": "lora", "rank": 2}
    with pytest.raises(CheckpointError, match=r"model\.adapter"):
        run(RunConfig.model_validate(values), tmp_path / "fork", resume=saved, is_fork=True)
