"""What a run does when numbers, memory, disks, checkpoints or models go wrong."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.test_loop import Run, small
from trainer import loop, optim
from trainer.checkpoint import (
    CheckpointError,
    DamagedCheckpointError,
    DiskFullError,
    list_checkpoints,
    load_optimiser,
    model_folder,
    read_checkpoint,
)
from trainer.config import RunConfig
from trainer.events import (
    CheckpointSaved,
    Event,
    Finished,
    LogLine,
    Metrics,
    PackingChecked,
    Started,
    parse_line,
)
from trainer.guards import NotFinite, Size, is_full, told
from trainer.optim import Optimiser
from trainer.policy import load_policy
from trainer.rewards import shape_rewards
from trainer.sampling.local_engine import LocalEngine
from trainer.schema.training import TrainingConfig
from trainer.tree import RolloutTree


def tiny(*more: str) -> RunConfig:
    quick = (
        "training.problems_per_step=2",
        "evaluation={every_steps: 0, problems: 2}",
        "checkpoint.every_steps=1",
    )
    return small(*quick, "recording.trees_per_step=0", *more)


SMALL_BATCHES = tiny("training.steps=2", "training.microbatch_tokens=100")


def warnings(run: Run) -> list[str]:
    return [e.message for e in run.events if isinstance(e, LogLine) and e.level == "warning"]


def per_step(run: Run, name: str) -> list[float]:
    return [v[name] for (_, is_eval), v in sorted(run.metrics().items()) if not is_eval and name in v]


def state_of(checkpoint: Path) -> tuple[str, dict[str, bytes]]:
    """Weights and every tensor of the optimiser, bit for bit."""
    policy = load_policy(model_folder(checkpoint))
    optimiser = Optimiser(policy, TrainingConfig())
    load_optimiser(checkpoint, policy, optimiser)
    names = {id(own): name for name, own in policy.named_parameters().items()}
    found = {
        f"{names[id(own)]}/{part}": value.numpy().tobytes()
        for own, parts in optimiser.adamw.state.items()
        for part, value in parts.items()
    }
    return policy.weights_sha256(), found


# One undisturbed run each, for all tests that compare with it.


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    folder = tmp_path_factory.mktemp("three")
    return folder, Run(folder, tiny("training.steps=3"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("plain"), SMALL_BATCHES)


# ---- numbers that are none


def poison(kind: str, steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """From outside, in the step that is sampled for the n-th time."""
    monkeypatch.setattr("trainer.loop.check_packing", lambda *_: None)
    count = 0

    def now() -> bool:
        return count in steps

    def rewards(trees: list[RolloutTree], *rest: Any) -> list[RolloutTree]:
        nonlocal count
        count += 1
        shaped = shape_rewards(trees, *rest)
        if kind in ("reward", "infinite reward") and now():
            leaf = int(np.flatnonzero(np.isfinite(shaped[1].reward))[-1])
            shaped[1].reward[leaf] = math.nan if kind == "reward" else math.inf
        return shaped

    monkeypatch.setattr(loop, "shape_rewards", rewards)
    loss = Optimiser._loss

    def losses(own: Any, *args: Any, **more: Any) -> Any:
        part, gap, logprobs = loss(own, *args, **more)
        if now() and kind == "gradient":
            weight = own._policy.model.model.layers[0].mlp.up_proj.weight
            handle = weight.register_hook(lambda grad: handle.remove() or grad * math.inf)
        if now() and kind == "logprob":
            logprobs = logprobs.clone()
            logprobs[3] = math.nan
            part = optim.LossPart(part.loss * math.nan, part.figures)
        return part, gap, logprobs

    monkeypatch.setattr(Optimiser, "_loss", losses)
    sample = LocalEngine.sample

    def sampled(own: Any, problems: Any, plan: Any, **more: Any) -> Any:
        if kind == "sampling" and more["step"] in steps:
            raise FloatingPointError("The policy's logits are not finite: its weights have diverged.")
        return sample(own, problems, plan, **more)

    monkeypatch.setattr(LocalEngine, "sample", sampled)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("reward", "a reward is NaN (problem chain-3-train-1-3, answer "),
        ("infinite reward", "a reward is infinite (problem chain-3-train-1-3, answer "),
        ("logprob", "a logprob is NaN (problem chain-3-train-1-2, segment "),
        ("gradient", "the gradient norm is infinite (model.layers.0.mlp.up_proj.weight)"),
        ("sampling", "a logprob is NaN (while sampling: The policy's logits are not finite"),
    ],
)
def test_a_number_that_is_none_costs_one_step_and_leaves_every_bit(
    kind: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(kind, {2}, monkeypatch)
    run = Run(tmp_path, tiny("training.steps=3"))
    assert run.outcome.outcome == "succeeded"
    (warning,) = warnings(run)
    assert warning.startswith(f"Step 2: an update was skipped, {said}")
    assert per_step(run, "policy/skipped_updates") == [0, 1, 1]
    first, second, third = map(state_of, list_checkpoints(tmp_path))
    assert first == second
    assert third[0] != second[0]
    assert third[1] != second[1]


def test_three_in_a_row_end_the_run_with_its_last_good_state(
    three: tuple[Path, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison("reward", {2, 3, 4}, monkeypatch)
    run = Run(tmp_path, tiny("training.steps=9", "checkpoint={every_steps: 0, keep_last: 9}"))
    assert (run.outcome.outcome, run.outcome.step) == ("failed", 4)
    assert run.outcome.reason.startswith(
        "Reward became NaN at step 4, for the third update in a row (problem chain-3-train-1-7, answer "
    )
    assert "Last complete step: 4; last checkpoint: step 4." in run.outcome.reason
    assert "with a lower training.learning_rate" in run.outcome.reason
    (saved,) = list_checkpoints(tmp_path)
    assert state_of(saved) == state_of(list_checkpoints(three[0])[0])
    assert read_checkpoint(saved)[0].skipped_updates == 3


def test_a_step_that_had_nothing_to_train_on_is_no_sign_of_health(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison("reward", {1, 2, 4}, monkeypatch)
    gradient = Optimiser.gradient

    def nothing_in_step_3(own: Any, data: Any, *rest: Any, **more: Any) -> Any:
        result, norm = gradient(own, data, *rest, **more)
        own.asked = getattr(own, "asked", 0) + 1
        return (optim.replace(result, is_applied=False), 0.0) if own.asked == 1 else (result, norm)

    monkeypatch.setattr(Optimiser, "gradient", nothing_in_step_3)
    run = Run(tmp_path, tiny("training.steps=9"))
    assert (run.outcome.outcome, run.outcome.step) == ("failed", 4)


def test_no_checkpoint_is_made_of_weights_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply = Optimiser.apply

    def spoilt(own: Any, result: Any, norm: float, *, step: int) -> Any:
        done = apply(own, result, norm, step=step)
        if step == 2:
            next(iter(own._policy.named_parameters().values())).data[0, 0] = math.nan
        return done

    monkeypatch.setattr(Optimiser, "apply", spoilt)
    run = Run(tmp_path, tiny())
    assert run.outcome.outcome == "failed"
    assert (
        "no checkpoint was made of them. Last complete step: 2; last checkpoint: step 1."
        in run.outcome.reason
    )
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-1"]


# ---- memory


def short_of_memory(monkeypatch: pytest.MonkeyPatch, error: type[Exception], *calls: int) -> None:
    """At the n-th micro-batch, from 1; halfway through its backward pass there may be gradients already."""
    monkeypatch.setattr("trainer.loop.check_packing", lambda *_: None)
    loss, count = Optimiser._loss, 0

    def losses(own: Any, *args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count in calls:
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss(own, *args, **more)

    monkeypatch.setattr(Optimiser, "_loss", losses)


@pytest.mark.parametrize(("error", "place"), [(torch.OutOfMemoryError, "GPU"), (MemoryError, "host")])
def test_out_of_memory_once_halves_the_micro_batch_and_changes_nothing_else(
    error: type[Exception], place: str, plain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_memory(monkeypatch, error, 2)  # one micro-batch of the first step is done by then
    run = Run(tmp_path, SMALL_BATCHES)
    assert run.outcome.outcome == "succeeded"
    (said,) = warnings(run)
    told = re.fullmatch(
        rf"Step 1: out of memory \({place}\) while training with micro-batches of (\d+) tokens; going on "
        r"with micro-batches of (\d+) tokens\.",
        said,
    )
    assert told is not None, said
    assert int(told[2]) == int(told[1]) // 2 < 50  # of what there was, not of what the config allows
    for name in ("policy/loss", "policy/grad_norm", "policy/trained_tokens"):
        assert per_step(run, name) == pytest.approx(per_step(plain, name), rel=1e-4, abs=1e-6)


def test_out_of_memory_again_fails_with_the_sizes_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL_BATCHES
    short_of_memory(monkeypatch, torch.OutOfMemoryError, 1)
    whole = Run(tmp_path / "whole", config)
    short_of_memory(monkeypatch, torch.OutOfMemoryError, 1)
    Run(tmp_path / "part", tiny("training.steps=1", "training.microbatch_tokens=100"))
    (last,) = list_checkpoints(tmp_path / "part")
    short_of_memory(monkeypatch, torch.OutOfMemoryError)
    again = Run(tmp_path / "part", config, resume=last)
    assert again.outcome.weights_sha256 == whole.outcome.weights_sha256  # it goes on with the smaller ones
    short_of_memory(monkeypatch, torch.OutOfMemoryError, 1)
    with pytest.raises(RuntimeError) as failed:
        Run(tmp_path / "part", config, resume=last)
    assert re.match(
        r"Out of memory \(GPU\) while training; tried micro-batches of 100 tokens and micro-batches of \d\d "
        r"tokens\. Retry on a GPU",
        str(failed.value),
    )


def test_half_of_what_did_not_fit_is_tried_however_much_the_config_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.loop.check_packing", lambda *_: None)
    loss, sizes = Optimiser._loss, []

    def losses(own: Any, batch: Any, *args: Any, **more: Any) -> Any:
        sizes.append(batch.tokens.size)
        if sizes[-1] > 0.6 * sizes[0]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss(own, batch, *args, **more)

    monkeypatch.setattr(Optimiser, "_loss", losses)
    run = Run(tmp_path, tiny("training.steps=1"))
    assert run.outcome.outcome == "succeeded"
    assert sizes[0] < TrainingConfig().microbatch_tokens // 2
    with pytest.raises(RuntimeError) as failed:  # and what is left to be tried is told
        Size("{:,} tokens", lambda: (512, 256), 64, [512, 256]).smaller(MemoryError(), 1, "training")
    assert str(failed.value).startswith(
        "Out of memory (host) while training; tried 512 tokens and 256 tokens, and not yet 128. Retry"
    )
    with pytest.raises(RuntimeError, match="tried 512 tokens, and not yet 256"):  # and where none can try
        Size("{:,} tokens", lambda: (512, 256)).refuse(MemoryError(), "sampling")


def test_out_of_memory_while_sampling_halves_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Run(tmp_path / "plain", tiny("training.steps=2"))
    written = 0
    write = "trainer.sampling.local_engine._Drive._write"
    from trainer.sampling.local_engine import _Drive

    own = _Drive._write

    def short(drive: Any, wave: Any) -> Any:
        nonlocal written
        written = max(written, len(wave))
        if len(wave) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return own(drive, wave)

    monkeypatch.setattr(write, short)
    run = Run(tmp_path / "short", tiny("training.steps=2"))
    assert run.outcome.outcome == "succeeded"
    (said,) = warnings(run)
    assert said.endswith(f"sampling with {written} rows at once; going on with {written // 2} rows at once.")
    assert per_step(run, "tree/unique_tokens") == per_step(plain, "tree/unique_tokens")
    monkeypatch.setattr(
        write, lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory."))
    )
    with pytest.raises(
        RuntimeError, match=r"while comparing engine and policy; tried \d+ rows at once and \d+ rows at once"
    ):
        Run(tmp_path / "none", tiny())


def test_a_batch_too_large_to_be_written_out_is_not_compared_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.packing_check.MOST_FLAT_TOKENS", 10)
    run = Run(tmp_path, tiny("training.steps=1"))
    assert not run.of(PackingChecked)
    (said,) = [e.message for e in run.events if isinstance(e, LogLine)]
    assert said.startswith(
        "Packed and flat gradients of the first batch were not compared: its smallest tree has"
    )


# ---- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """small_disk(megabytes): a file system of its own; unmounted at the end."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("file systems cannot be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_a_full_disk_pauses_the_run_and_it_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(16)
    config = tiny("checkpoint={every_steps: 1, keep_last: 1, keep_best: false}")
    whole = Run(tmp_path / "whole", config)

    def fills_up(events: list[Event]) -> bool:
        ballast = disk / "ballast"
        if not ballast.exists() and any(isinstance(e, CheckpointSaved) and e.step == 2 for e in events):
            ballast.write_bytes(bytes(shutil.disk_usage(disk).free - 10**6))
        return False

    run = Run(disk, config, stop_when=fills_up)
    assert (run.outcome.outcome, run.outcome.step) == ("paused", 3)
    assert run.outcome.reason.startswith("Disk full: the checkpoint of step 3 is not saved, it needs ")
    assert (
        "Last complete step: 3; last checkpoint: step 2. Make room on the worker's disk" in run.outcome.reason
    )
    assert names(disk) == ["step-2"]
    (disk / "ballast").unlink()
    again = Run(disk, config, resume=disk / "checkpoints" / "step-2")
    assert again.outcome == whole.outcome


def test_a_disk_that_fills_up_while_saving_loses_nothing_and_leaves_nothing(
    tmp_path: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk(8)
    monkeypatch.setattr("trainer.checkpoint._bytes_needed", lambda _policy: 0)  # it was free when we looked
    run = Run(disk, tiny("checkpoint={every_steps: 1, keep_last: 9, keep_best: false}"))
    assert run.outcome.outcome == "paused"
    assert "there was no room left while it was written" in run.outcome.reason
    kept = list_checkpoints(disk)
    assert names(disk) == [path.name for path in kept]
    assert kept
    for path in kept:
        read_checkpoint(path)


def test_room_is_made_by_the_keep_policy_first_and_never_of_the_last_or_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(
        "training.steps=4",
        "checkpoint={every_steps: 1, keep_last: 2, keep_best: true}",
        "evaluation.every_steps=1",
    )
    accuracies = iter([0.1, 0.9, 0.2, 0.3, 0.4])
    evaluate = loop._Run.evaluate

    def evaluated(run: Any) -> None:
        evaluate(run)
        run.accuracy = (run.state.step, next(accuracies))

    monkeypatch.setattr(loop._Run, "evaluate", evaluated)
    usage = shutil.disk_usage

    def full_from_three_on(path: Any) -> Any:
        return usage(path)._replace(free=10**3) if len(list_checkpoints(tmp_path)) >= 3 else usage(path)

    monkeypatch.setattr("trainer.checkpoint.shutil.disk_usage", full_from_three_on)
    run = Run(tmp_path, config)
    # Step 1 is the best; before step 4 the policy lets go of step 2 and keeps 3 and the best.
    assert run.outcome.outcome == "succeeded"
    assert names(tmp_path) == ["step-1", "step-3", "step-4"]


@pytest.mark.process
def test_a_limit_on_file_sizes_is_a_full_disk(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "training: {steps: 2, problems_per_step: 2}\ndata: {operations: 3}\n"
        "sampler: {branching_per_depth: [2, 2, 2]}\n"
        "evaluation: {every_steps: 0, problems: 2}\nrecording: {trees_per_step: 0}\n"
    )

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 10**6, 2 * 10**6))

    found = subprocess.run(
        [sys.executable, "-m", "trainer", str(config), "--output", str(tmp_path / "run")],
        capture_output=True,
        preexec_fn=limited,
        check=False,
        timeout=120,
    )
    last = parse_line(found.stdout.splitlines()[-1])
    assert isinstance(last, Finished)
    assert (found.returncode, last.outcome, last.step) == (1, "paused", 2)
    assert last.reason.startswith("Disk full: the checkpoint of step 2 is not saved, there was no room left")
    assert names(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(13, "Permission denied"), False),
    ],
)
def test_full_disks_are_told_from_other_errors(error: Exception, said: bool) -> None:
    assert is_full(error) is said
    outer = DiskFullError("x")
    outer.__cause__ = error
    assert is_full(outer) is said


# ---- checkpoints and models


def test_no_more_than_some_minutes_of_work_can_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = 0.0

    def slow(run: Any, *_: Any) -> None:
        nonlocal passed
        passed += 240  # seconds per step

    clock = time.monotonic
    monkeypatch.setattr(loop._Run, "tell", slow)
    monkeypatch.setattr("trainer.loop.time.monotonic", lambda: clock() + passed)
    run = Run(tmp_path, tiny("training.steps=6", "checkpoint={every_steps: 0, keep_last: 9}"))
    assert [event.step for event in run.events if isinstance(event, CheckpointSaved)] == [3, 6]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "one flipped byte": lambda path: flip(path / "optimiser.safetensors"),
    "truncated": lambda path: os.truncate(path / "model" / "model.safetensors", 1000),
    "a missing file": lambda path: (path / "state.json").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "manifest is no JSON": lambda path: (
        flip(path / "manifest.json") or os.truncate(path / "manifest.json", 99)
    ),
    "manifest is a list": lambda path: (path / "manifest.json").write_text("[]") and None,
    "manifest lists nothing": lambda path: (
        (path / "manifest.json").write_text('{"format_version": 1, "files": {}}') and None
    ),
    "manifest lists rubbish": lambda path: (
        (path / "manifest.json").write_text(
            '{"format_version": 1, "files": {"state.json": 3, "config.json": []}}'
        )
        and None
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_found_before_it_is_loaded(
    damage: str, three: tuple[Path, Run], tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(three[0] / "checkpoints" / "step-2", tmp_path / "step-2"))
    read_checkpoint(checkpoint)
    DAMAGE[damage](checkpoint)
    with pytest.raises(DamagedCheckpointError, match=r"damaged|is no checkpoint|cannot be read"):
        read_checkpoint(checkpoint)


@pytest.mark.parametrize("damage", ["one flipped byte", "no manifest"])
def test_instead_of_a_damaged_checkpoint_the_one_before_is_used(
    damage: str, three: tuple[Path, Run], tmp_path: Path
) -> None:
    folder, whole = three
    run_dir = Path(shutil.copytree(folder, tmp_path / "run"))
    first, second = run_dir / "checkpoints" / "step-1", run_dir / "checkpoints" / "step-2"
    DAMAGE[damage](second)
    run = Run(run_dir, tiny("training.steps=3"), resume=[second, first])  # type: ignore[arg-type]
    (warning,) = warnings(run)
    assert warning.startswith("The checkpoint of step 2 is damaged and was not loaded: ")
    (started,) = run.of(Started)
    assert isinstance(started, Started)
    assert (started.resumed_from, started.step) == ("step-1", 1)
    assert run.outcome.weights_sha256 == whole.outcome.weights_sha256


def test_without_any_whole_checkpoint_a_person_decides(three: tuple[Path, Run], tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(three[0], tmp_path / "run"))
    for path in list_checkpoints(run_dir):
        flip(path / "model" / "model.safetensors")
    run = Run(run_dir, tiny("training.steps=3"), resume=list_checkpoints(run_dir)[:2])  # type: ignore[arg-type]
    assert run.outcome.outcome == "paused"
    assert run.outcome.reason.startswith(
        "None of the run's 2 checkpoints can be loaded here: The checkpoint "
    )
    assert "then resume; or make a new run with its config to start at step 0" in run.outcome.reason
    assert not run.of(Started)


def test_a_resumed_run_refuses_another_model_than_it_started_from(tmp_path: Path, model_folder: Path) -> None:
    def config(steps: int) -> RunConfig:
        return tiny(f"training.steps={steps}", f"model.path={model_folder}")

    Run(tmp_path / "run", config(1))
    (last,) = list_checkpoints(tmp_path / "run")
    (model_folder / "README.md").write_text("what is not loaded may change")
    assert Run(tmp_path / "run", config(2), resume=last).outcome.outcome == "succeeded"
    tokenizer = model_folder / "tokenizer_config.json"
    before = tokenizer.read_text()
    tokenizer.write_text(json.dumps(json.loads(before) | {"added": 1}))
    with pytest.raises(
        CheckpointError, match=r"is not the one that the run started from: its files have changed"
    ):
        Run(tmp_path / "run", config(2), resume=last)
    tokenizer.write_text(before)
    moved = model_folder.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"it is gone .* Put the old files back and retry"):
        Run(tmp_path / "run", config(2), resume=last)
    moved.rename(model_folder)
    assert Run(tmp_path / "run", config(2), resume=last).outcome.outcome == "succeeded"


# ---- words


def test_every_end_says_where_the_run_stands() -> None:
    assert told("It broke", 0, None, "Mend it.") == "It broke. No step was complete. Mend it."
    assert told("It broke.", 7, None) == "It broke. Last complete step: 7; no checkpoint."
    assert told("It broke", 7, 5) == "It broke. Last complete step: 7; last checkpoint: step 5."
    assert len(told("x" * 5000, 7, 5, "Mend it.")) < 2000
    assert told("x" * 5000, 7, 5, "Mend it.").endswith("last checkpoint: step 5. Mend it.")


def test_a_metric_of_a_skipped_step_is_no_number_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison("reward", {1}, monkeypatch)
    run = Run(tmp_path, tiny("training.steps=1"))
    (values,) = [
        e.values for e in run.events if isinstance(e, Metrics) and "policy/skipped_updates" in e.values
    ]
    assert "policy/loss" not in values
    assert values["tree/sampled_tokens"] > 0
    assert (
        NotFinite("loss", math.inf, "x").skipped(3)
        == "Step 3: an update was skipped, the loss is infinite (x)."
    )


# ---- answers that are bombs


BOMBS = (  # answers H081 to H085 of the hostile corpus
    '\\boxed{__import__("os").system("touch pwned")}',
    "\\boxed{9**9**9**9}",
    "\\boxed{" * 100_000,
    "a" * 50_000 + "!",
    "",
)


@pytest.mark.parametrize(
    ("verifier", "errors"),
    [
        ("{kind: boxed}", None),
        ("{kind: gsm8k}", 0),
        ("{kind: regex, pattern: '(a+)+$', timeout_seconds: 0.5}", 1),
    ],
)
def test_answers_that_are_bombs_are_counted_and_the_run_goes_on(
    verifier: str, errors: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import verifiers

    real, planted = verifiers.answers_of, iter(BOMBS)

    def with_bombs(tree: RolloutTree) -> tuple[list[int], dict[int, str]]:
        leaves, texts = real(tree)
        return leaves, {leaf: next(planted, texts[leaf]) for leaf in leaves}

    monkeypatch.setattr(verifiers, "answers_of", with_bombs)
    monkeypatch.setattr(loop._Run, "evaluate", lambda _run: None)
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path / "run", tiny("training.steps=2", f"verifier={verifier}"))
    assert run.outcome.outcome == "succeeded"
    found = [
        event for event in run.events if isinstance(event, Metrics) and "sampling/error_share" in event.values
    ]
    counted = round(found[0].values["sampling/error_share"] * 2 * found[0].values["tree/leaves"])
    assert counted == errors or (errors is None and counted <= 3)
    told_of = [line for line in warnings(run) if "no verdict and no reward" in line]
    assert len(told_of) == bool(counted)
    assert not told_of or told_of[0].startswith(f"Step 1: {counted} answer")
    assert not (tmp_path / "pwned").exists()
    assert found[1].values["sampling/error_share"] == 0
    assert found[1].values["speed/cpu_seconds_total"] > found[0].values["speed/cpu_seconds_total"] > 0


def test_the_work_of_verifiers_is_counted() -> None:
    from trainer.schema.verifier import RegexVerifier
    from trainer.verifiers import Verifier

    with Verifier(RegexVerifier(pattern="(a+)+$", timeout_seconds=1)) as verifier:
        verifier("aaa", True, "aaa")
        before = verifier.cpu_seconds()
        verifier("a" * 60 + "!", True, "a")  # its process is ended and replaced
        assert 0 < before < verifier.cpu_seconds() - 0.1
