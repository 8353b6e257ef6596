"""Whole runs with the vLLM engine: they learn what runs with the local engine learn, and go on exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.trainer.test_loop import Run, small
from trainer.checkpoint import CheckpointError, list_checkpoints
from trainer.events import Metrics, Started
from trainer.metrics import METRICS
from trainer.policy import resolve_model
from trainer.sampling.vllm_engine import _Core

VLLM = ("engine.kind=vllm", "engine.kv_memory_mib=16", "engine.max_sequences=64")
COMPARED = ("reward/mean", "tree/unique_tokens", "eval/pass1_sampled", "policy/entropy", "policy/loss")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("vllm"), small(*VLLM))


def test_a_run_learns_what_it_learns_with_the_local_engine(unbroken: Run, tmp_path: Path) -> None:
    local = Run(tmp_path, small())
    assert unbroken.outcome.outcome == "succeeded"
    (started,) = unbroken.of(Started)
    assert started.engine == "vllm"
    assert "vllm" in started.versions
    mine, own = unbroken.metrics(), local.metrics()
    assert mine.keys() == own.keys()
    for at, values in own.items():
        for name in (
            "reward/mean",
            "tree/unique_tokens",
            "eval/pass1_sampled",
            "policy/entropy",
            "policy/loss",
        ):
            if name in values:
                assert mine[at][name] == pytest.approx(values[name], abs=1e-3), (at, name)
    for (step, is_evaluation), values in mine.items():
        if not is_evaluation:
            # Weights have moved step - 1 times; the engine still samples from the policy.
            assert 0 < values["policy/logprob_gap"] < 1e-4, step
            assert 0 < values["engine/most_read_again"] <= 32


def test_a_model_of_many_positions_starts_with_room_for_what_the_run_may_write(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(resolve_model("tiny-reasoner"), model)
    shape = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(shape | {"max_position_embeddings": 2**15}))
    assert 2**15 * 768 > 16 * 2**20  # bytes of one such sequence, and of engine.kv_memory_mib
    run = Run(tmp_path / "run", small(*VLLM, "training.steps=1", f"model.path={model}"))
    assert run.outcome.outcome == "succeeded"


def test_its_own_metrics_are_documented(unbroken: Run) -> None:
    seen = {name for e in unbroken.events if isinstance(e, Metrics) for name in e.values}
    assert seen == {m.name for m in METRICS.values() if m.only_with in ("", "engine vllm")}


def test_a_resumed_run_ends_as_the_unbroken_one(unbroken: Run, tmp_path: Path) -> None:
    def after_two(events: list[object]) -> bool:
        return any(isinstance(e, Metrics) and e.step == 2 and "eval/pass1_greedy" in e.values for e in events)

    first = Run(tmp_path, small(*VLLM), stop_when=after_two)
    assert first.outcome.outcome == "stopped"
    (checkpoint,) = list_checkpoints(tmp_path)[-1:]
    second = Run(tmp_path, small(*VLLM), resume=checkpoint)
    assert second.outcome.weights_sha256 == unbroken.outcome.weights_sha256
    ends = {at: values for at, values in unbroken.metrics().items() if at[0] > 2}
    assert {at: values for at, values in second.metrics().items() if at[0] > 2} == ends
    # Memory may change on the way; whose arithmetic it is may not.
    Run(tmp_path, small(*VLLM, "engine.kv_memory_mib=32"), resume=checkpoint)
    with pytest.raises(CheckpointError, match=r"engine\.kind"):
        Run(tmp_path, small(), resume=checkpoint)


def test_a_run_whose_engine_sleeps_while_it_trains_is_the_same_run(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = []
    own = _Core.sleep
    monkeypatch.setattr(_Core, "sleep", lambda core: slept.append(own(core)))
    run = Run(tmp_path, small(*VLLM, "engine.sleep_while_training=true"))
    assert run.outcome.weights_sha256 == unbroken.outcome.weights_sha256
    assert run.metrics() == unbroken.metrics()
    assert len(slept) == run.outcome.step


def test_one_step_off_policy_it_goes_on_exactly_too(tmp_path: Path) -> None:
    config = small(*VLLM, "training.max_staleness=1", "objective.importance={kind: truncated}")
    whole = Run(tmp_path, config)
    steps = [e.values for e in whole.of(Metrics) if "policy/loss" in e.values]
    assert [values["sampling/staleness"] for values in steps] == [0, 1, 1, 1]
    (half,) = [path for path in list_checkpoints(tmp_path) if path.name == "step-2"]
    resumed = Run(tmp_path, config, resume=half)
    assert resumed.outcome.weights_sha256 == whole.outcome.weights_sha256
