"""One step off policy: two threads change no number, a resumed run is the unbroken one, a stop is heard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.trainer.test_resume import HALF, WHOLE, Story, config_of
from trainer.checkpoint import list_checkpoints
from trainer.config import RunConfig
from trainer.config_file import config_to_yaml
from trainer.events import Event, LogLine, Metrics, Progress, TreeSampled
from trainer.loop import train
from trainer.overlap import FILE, Ahead, Sample, packed, unpacked
from trainer.sampling.local_engine import LocalEngine
from trainer.tree import RolloutTree

CORRECTED = {"importance": {"kind": "truncated"}}


def overlapped(slug: str = "treerpo-tiny", seed: int = 0, steps: int = WHOLE, **more: Any) -> RunConfig:
    sections = {"training": {"max_staleness": 1}, "objective": CORRECTED, **more}
    return config_of(slug, seed, steps, **{name: dict(own) for name, own in sections.items()})


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same schedule in one thread: the next batch is sampled before the step trains."""

    def begin(own: Ahead, step: int, sample: Sample) -> None:
        if step not in own.batches and own._under_way is None:
            batch: Future[Any] = Future()
            batch.set_result(own._work(step, sample))
            own._under_way = step, batch

    monkeypatch.setattr(Ahead, "begin", begin)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return Story(overlapped(), tmp_path_factory.mktemp("whole"))


@pytest.mark.usefixtures("in_turn")
def test_whether_they_run_at_once_changes_no_number(whole: Story, tmp_path: Path) -> None:
    in_turn = Story(overlapped(), tmp_path / "in turn")
    assert in_turn.digest() == whole.digest()
    on_policy = Story(config_of("treerpo-tiny", 0, objective=CORRECTED), tmp_path / "on policy")
    assert on_policy.digest() != in_turn.digest()


def test_a_step_trains_on_what_the_policy_before_its_last_update_sampled(whole: Story) -> None:
    versions = {
        e.step: RolloutTree.from_payload(e.payload).policy_version
        for e in whole.events
        if isinstance(e, TreeSampled)
    }
    assert versions == {1: 0, 2: 0, 3: 1, 4: 2}
    metrics = {e.step: e.values for e in whole.events if isinstance(e, Metrics) and "policy/loss" in e.values}
    assert [metrics[step]["sampling/staleness"] for step in (1, 2, 3, 4)] == [0, 1, 1, 1]
    assert metrics[1]["importance/mean_weight"] == pytest.approx(1, abs=1e-4)
    assert all(metrics[step]["policy/logprob_gap"] > 1e-3 for step in (2, 3, 4))
    assert all(0 <= metrics[step]["speed/hidden_share"] <= 1 for step in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("slug", "more"),
    [
        ("treerpo-tiny", {}),
        ("grpo-tiny", {"model": {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}}),
        ("dapo-tiny", {"training": {"max_staleness": 1, "updates_per_step": 2}}),
        ("rest-mcts-tiny", {"objective": {}}),
    ],
)
def test_a_resumed_run_is_the_unbroken_one(slug: str, more: dict[str, Any], tmp_path: Path) -> None:
    config = overlapped(slug, 3, **more)
    whole = Story(config, tmp_path)
    (half,) = [path for path in list_checkpoints(tmp_path) if path.name == f"step-{HALF}"]
    assert Story(config, tmp_path, half).digest() == whole.digest()
    if slug == "treerpo-tiny":  # without the batch in flight it is another run
        without_batch(half)
        assert Story(config, tmp_path, half).digest() != whole.digest()


def without_batch(checkpoint: Path) -> None:
    (checkpoint / FILE).unlink()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["files"][FILE]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def moment(phase: str, step: int) -> Callable[[list[Event]], bool]:
    return lambda events: any(isinstance(e, Progress) and (e.phase, e.step) == (phase, step) for e in events)


@pytest.mark.parametrize(
    "is_reached",
    [moment("sampling", 1), moment("sampling", 3), moment("verifying", 4)],
)
def test_a_stop_is_heard_in_both_threads_and_costs_nothing(
    is_reached: Callable[[list[Event]], bool], whole: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.loop.PROGRESS_SECONDS", 0.0)
    events: list[Event] = []
    stopped = train(
        overlapped(),
        emit=events.append,
        should_stop=lambda: is_reached(events),
        run_dir=tmp_path / "parts",
    )
    assert stopped.outcome == "stopped"
    assert not [one for one in threading.enumerate() if one.name.startswith("sampler")]
    last = list_checkpoints(tmp_path / "parts")[-1]
    assert Story(overlapped(), tmp_path / "parts", last).digest() == whole.digest()


@pytest.mark.parametrize("plan", ["sampling:17", "gradient:5"])
def test_killed_in_either_thread_it_ends_as_the_unbroken_run(plan: str, tmp_path: Path) -> None:
    config = overlapped("treerpo-tiny", 5)
    whole = Story(config, tmp_path / "whole")
    (tmp_path / "run.yaml").write_text(config_to_yaml(config))
    died = subprocess.run(
        [sys.executable, "-m", "tests.resume.mortal_trainer", plan, "run.yaml", "--output", "parts"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
        capture_output=True,
    )
    assert died.returncode == -9
    (last,) = list_checkpoints(tmp_path / "parts")  # the batch in flight was sampled in a process that died
    resumed = Story(config, tmp_path / "parts", last)
    assert resumed.digest() == whole.digest()
    for name in ("optimiser.safetensors", "model/model.safetensors"):
        ends = [tmp_path / part / "checkpoints" / f"step-{WHOLE}" / name for part in ("whole", "parts")]
        assert len({sha256(end.read_bytes()).hexdigest() for end in ends}) == 1


# ---- what goes wrong beside training


def failing(monkeypatch: pytest.MonkeyPatch, step: int, error: Exception, times: int = 1) -> None:
    """The engine fails when it samples that step's trees."""
    sample, left = LocalEngine.sample, times

    def sometimes(own: LocalEngine, *args: Any, **more: Any) -> Any:
        nonlocal left
        if more["step"] == step and left and threading.current_thread() is not threading.main_thread():
            left -= 1
            raise error
        return sample(own, *args, **more)

    monkeypatch.setattr(LocalEngine, "sample", sometimes)


def test_trees_that_are_not_finite_are_skipped_in_their_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 3, FloatingPointError("logits"))
    whole = Story(overlapped(), tmp_path / "whole")
    skipped = {e.step: e.values["policy/skipped_updates"] for e in whole.events if is_step(e)}
    assert skipped == {1: 0, 2: 0, 3: 1, 4: 1}
    (half,) = [path for path in list_checkpoints(tmp_path / "whole") if path.name == f"step-{HALF}"]
    # The engine would not fail again: that the trees are not finite is a part of the checkpoint.
    assert Story(overlapped(), tmp_path / "whole", half).digest() == whole.digest()


def is_step(event: Event) -> Any:
    return isinstance(event, Metrics) and "policy/skipped_updates" in event.values


def test_memory_that_runs_out_beside_training_is_asked_for_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 3, torch.OutOfMemoryError("CUDA out of memory."))
    again = Story(overlapped(), tmp_path)
    assert (again.outcome.outcome, again.outcome.step) == ("succeeded", WHOLE)
    said = [e.message for e in again.events if isinstance(e, LogLine) and "out of memory" in e.message]
    assert len(said) == 1
    assert "while sampling" in said[0]


def test_an_engine_that_fails_beside_training_ends_the_run_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 3, ValueError("The engine died."))
    with pytest.raises(ValueError, match="The engine died"):
        Story(overlapped(), tmp_path)
    assert not [one for one in threading.enumerate() if one.name.startswith("sampler")]


def test_the_run_ends_with_its_tokens_and_samples_nothing_beyond(tmp_path: Path) -> None:
    story = Story(overlapped(steps=9, training={"max_staleness": 1, "max_sampled_tokens": 1}), tmp_path)
    assert story.outcome.step == 1
    assert not (list_checkpoints(tmp_path)[-1] / FILE).exists()


# ---- the batch in flight


def test_a_batch_comes_back_as_it_was(tmp_path: Path) -> None:
    Story(overlapped("dapo-tiny", 1, HALF + 1), tmp_path)
    (half,) = [path for path in list_checkpoints(tmp_path) if path.name == f"step-{HALF}"]
    content = (half / FILE).read_bytes()
    batch = unpacked(content)
    assert batch.step == HALF + 1
    assert len(batch.rollouts.trees) == len(batch.rollouts.problems) > 0
    assert packed(batch) == content
    with pytest.raises(ValueError, match="cannot be read"):
        unpacked(content[:-1])


def test_on_policy_nothing_is_begun_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Ahead, "begin", begin)
    Story(config_of("treerpo-tiny", 0), tmp_path)
    assert not list(tmp_path.rglob(FILE))


@pytest.mark.parametrize("ratio", ["token", "sequence", "geometric"])
def test_old_samples_need_a_correction(ratio: str) -> None:
    with pytest.raises(ValidationError, match=r"Set objective\.importance truncated or masked"):
        overlapped("grpo-tiny", objective={"ratio": ratio})
    overlapped("opmd-tiny", objective={})  # without a ratio there is nothing to correct
    overlapped("mcts-dpo-tiny", objective={})
