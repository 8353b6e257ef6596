from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from trainer.checkpoint import (
    VALUE_HEAD,
    CheckpointError,
    DiskFullError,
    TrainerState,
    best_checkpoint,
    list_checkpoints,
    load_optimiser,
    load_value_head,
    model_folder,
    read_checkpoint,
    save_checkpoint,
)
from trainer.checkpoint_folder import remove_unfinished
from trainer.config import RunConfig
from trainer.optim import Optimiser
from trainer.policy import Policy, load_policy
from trainer.presets import PRESETS
from trainer.schema.training import TrainingConfig

CONFIG: RunConfig = PRESETS["treerpo-tiny"].config
STATE = TrainerState(
    step=7, unique_tokens=123, skipped_updates=2, skipped_in_a_row=1, cpu_seconds=4.5, is_evaluation_due=False
)


@pytest.fixture
def policy(tiny_reasoner: Policy) -> Policy:
    return Policy(copy.deepcopy(tiny_reasoner.model), tiny_reasoner.tokenizer, tiny_reasoner.end_ids)


def a_step(policy: Policy, optimiser: Optimiser) -> None:
    tokens = torch.arange(2, 40)[None]
    loss = -policy.logprobs(tokens, torch.zeros(20, dtype=torch.int64), torch.arange(1, 21), 1.0).mean()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves `Tensor.backward` untyped
    optimiser.adamw.step()
    optimiser.adamw.zero_grad()


def saved_run(
    policy: Policy, run_dir: Path, state: TrainerState = STATE, keep: int = 3
) -> tuple[Optimiser, Path]:
    optimiser = Optimiser(policy, TrainingConfig(learning_rate=1e-3))
    a_step(policy, optimiser)
    found = save_checkpoint(run_dir, CONFIG, state, policy, optimiser, keep_last=keep)
    return optimiser, run_dir / found.path


def test_everything_comes_back_bit_for_bit(policy: Policy, tmp_path: Path) -> None:
    optimiser, path = saved_run(policy, tmp_path)
    state, config = read_checkpoint(path)
    assert state == STATE
    assert config == CONFIG
    again = load_policy(model_folder(path))
    assert again.weights_sha256() == policy.weights_sha256()
    restored = Optimiser(again, TrainingConfig(learning_rate=1e-3))
    load_optimiser(path, again, restored)
    for _ in range(3):
        a_step(policy, optimiser)
        a_step(again, restored)
    assert again.weights_sha256() == policy.weights_sha256()


@pytest.mark.parametrize("forgotten", ["exp_avg", "exp_avg_sq", "step"])
def test_every_part_of_the_optimiser_matters(policy: Policy, tmp_path: Path, forgotten: str) -> None:
    """Without this the test above would prove nothing."""
    optimiser, path = saved_run(policy, tmp_path)
    again = load_policy(model_folder(path))
    restored = Optimiser(again, TrainingConfig(learning_rate=1e-3))
    load_optimiser(path, again, restored)
    for parts in restored.adamw.state.values():
        parts[forgotten] = torch.zeros_like(parts[forgotten])
    a_step(policy, optimiser)
    a_step(again, restored)
    assert again.weights_sha256() != policy.weights_sha256()


def test_report_names_path_size_and_weights(policy: Policy, tmp_path: Path) -> None:
    optimiser = Optimiser(policy, TrainingConfig())
    found = save_checkpoint(tmp_path, CONFIG, STATE, policy, optimiser, keep_last=3)
    assert found.path == "checkpoints/step-7"
    assert found.weights_sha256 == policy.weights_sha256()
    assert found.bytes == sum(f.stat().st_size for f in (tmp_path / found.path).rglob("*") if f.is_file())
    manifest = json.loads((tmp_path / found.path / "manifest.json").read_text())
    assert manifest["config_sha256"] == CONFIG.sha256()
    assert manifest["step"] == 7
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in (tmp_path / found.path).rglob("*"))


@pytest.mark.parametrize(
    "file", ["model/model.safetensors", "optimiser.safetensors", "state.json", "config.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_found_before_it_is_loaded(
    policy: Policy, tmp_path: Path, file: str, damage: str
) -> None:
    _, path = saved_run(policy, tmp_path)
    content = bytearray((path / file).read_bytes())
    if damage == "remove":
        (path / file).unlink()
    elif damage == "truncate":
        (path / file).write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        (path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"damaged: {file}"):
        read_checkpoint(path)


def test_a_folder_without_manifest_is_no_checkpoint(policy: Policy, tmp_path: Path) -> None:
    _, path = saved_run(policy, tmp_path)
    (path / "manifest.json").unlink()
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(CheckpointError, match="has no manifest"):
        read_checkpoint(path)


def test_another_format_is_refused(policy: Policy, tmp_path: Path) -> None:
    _, path = saved_run(policy, tmp_path)
    manifest = json.loads((path / "manifest.json").read_text()) | {"format_version": 99}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="another format; this Arborist reads format 1"):
        read_checkpoint(path)


def test_only_the_last_ones_are_kept_in_order_of_steps(policy: Policy, tmp_path: Path) -> None:
    for step in (2, 9, 10, 11):
        saved_run(policy, tmp_path, TrainerState(step=step), keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-10", "step-11"]


def test_a_run_that_went_on_from_an_earlier_step_keeps_what_it_saves(policy: Policy, tmp_path: Path) -> None:
    for step in (5, 7, 8, 9):
        saved_run(policy, tmp_path, TrainerState(step=step), keep=9)
    saved_run(policy, tmp_path, TrainerState(step=6), keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-6", "step-7", "step-8", "step-9"]
    saved_run(policy, tmp_path, TrainerState(step=10), keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-10"]


@pytest.mark.parametrize("crash", ["rename", "_write_manifest", "_write", "_sync"])
def test_a_crash_while_saving_leaves_the_last_one_whole(
    policy: Policy, tmp_path: Path, crash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = saved_run(policy, tmp_path, TrainerState(step=1))

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    if crash == "rename":
        monkeypatch.setattr(Path, "rename", die)
    else:
        monkeypatch.setattr(f"trainer.checkpoint.{crash}", die)
    with pytest.raises(Killed):
        saved_run(policy, tmp_path, TrainerState(step=2))
    monkeypatch.undo()
    assert list_checkpoints(tmp_path) == [before]
    read_checkpoint(before)
    remove_unfinished(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            OSError(5, "Input/output error"),
            CheckpointError,
            "step 2 could not be written: Input/output error",
        ),
        (
            OSError(28, "No space left on device"),
            DiskFullError,
            "there was no room left while it was written",
        ),
        (SafetensorError("I/O error: File too large (os error 27)"), DiskFullError, "File too large"),
    ],
)
def test_a_disk_error_is_one_sentence_and_changes_nothing(
    policy: Policy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
    said: str,
) -> None:
    _, before = saved_run(policy, tmp_path, TrainerState(step=1))

    def broken(_path: Path) -> None:
        raise error

    monkeypatch.setattr("trainer.checkpoint._sync", broken)
    with pytest.raises(CheckpointError, match=said) as raised:
        saved_run(policy, tmp_path, TrainerState(step=2))
    assert type(raised.value) is kind
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [before.name]


def test_a_full_disk_is_found_before_anything_is_written(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearly_full = SimpleNamespace(total=10**9, used=10**9 - 10**6, free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: nearly_full)
    with pytest.raises(CheckpointError, match=r"needs .* bytes and 1,000,000 are free"):
        saved_run(policy, tmp_path)


def test_the_same_step_again_keeps_one_whole_checkpoint(policy: Policy, tmp_path: Path) -> None:
    optimiser, path = saved_run(policy, tmp_path)
    inode = (path / "manifest.json").stat().st_ino
    save_checkpoint(tmp_path, CONFIG, STATE, policy, optimiser, keep_last=3)
    assert (path / "manifest.json").stat().st_ino == inode  # the same bits: nothing to replace
    a_step(policy, optimiser)
    found = save_checkpoint(tmp_path, CONFIG, STATE, policy, optimiser, keep_last=3)
    assert load_policy(model_folder(path)).weights_sha256() == found.weights_sha256
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-7"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("crash", [1, 2, 3])
def test_a_crash_while_replacing_a_step_loses_no_checkpoint_of_it(
    policy: Policy, tmp_path: Path, crash: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first rename, between the two, and after the second before the old one is deleted."""
    optimiser, path = saved_run(policy, tmp_path)
    before = policy.weights_sha256()
    a_step(policy, optimiser)
    rename, moves = Path.rename, 0

    def die_at_rename(own: Path, target: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves == crash:
            raise Killed
        return rename(own, target)

    def die(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(Path, "rename", die_at_rename)
    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(Killed):
        save_checkpoint(tmp_path, CONFIG, STATE, policy, optimiser, keep_last=3)
    monkeypatch.undo()
    assert path.exists() == (crash != 2)
    remove_unfinished(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-7"]
    read_checkpoint(path)
    kept = load_policy(model_folder(path)).weights_sha256()
    assert kept == (policy.weights_sha256() if crash == 3 else before)


def test_a_step_that_cannot_be_replaced_stays(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimiser, path = saved_run(policy, tmp_path)
    before = policy.weights_sha256()
    a_step(policy, optimiser)
    rename = Path.rename

    def refuse(own: Path, target: Path) -> Path:
        if ".tmp-" in own.name:
            raise OSError(5, "Input/output error")
        return rename(own, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match="step 7 could not be written: Input/output error"):
        save_checkpoint(tmp_path, CONFIG, STATE, policy, optimiser, keep_last=3)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-7"]
    assert load_policy(model_folder(path)).weights_sha256() == before


def test_optimiser_of_another_model_is_refused(
    policy: Policy, tmp_path: Path, random_model: Callable[..., Any]
) -> None:
    _, path = saved_run(policy, tmp_path)
    other = Policy(random_model("llama", 409), policy.tokenizer, policy.end_ids)
    with pytest.raises(CheckpointError, match=r"has shape|does not have"):
        load_optimiser(path, other, Optimiser(other, TrainingConfig()))


def test_the_best_evaluated_checkpoint_stays_beside_the_last_ones(policy: Policy, tmp_path: Path) -> None:
    optimiser = Optimiser(policy, TrainingConfig(learning_rate=1e-3))
    for step, accuracy in ((1, 0.3), (2, 0.6), (3, None), (4, 0.6), (5, 0.4)):
        a_step(policy, optimiser)
        save_checkpoint(
            tmp_path,
            CONFIG,
            replace(STATE, step=step),
            policy,
            optimiser,
            keep_last=1,
            keep_best=True,
            accuracy=accuracy,
        )
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-2", "step-5"]
    best = best_checkpoint(tmp_path)
    assert best is not None
    assert best.name == "step-2"  # the first of equals


def test_a_value_head_comes_back(policy: Policy, tmp_path: Path) -> None:
    policy.add_value_head(3)
    assert policy.value_head is not None
    with torch.no_grad():
        policy.value_head.weight.add_(1)
    _, path = saved_run(policy, tmp_path)
    again = load_policy(model_folder(path))
    again.add_value_head(4)
    load_value_head(path, again)
    assert again.weights_sha256() == policy.weights_sha256()
    (path / VALUE_HEAD).write_bytes(b"no")
    with pytest.raises(CheckpointError, match="value_head"):
        load_value_head(path, again)
