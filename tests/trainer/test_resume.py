"""A resumed run is the unbroken one: weights, metrics, trees. And every part of a checkpoint matters: with
any one of them dropped on purpose the equality fails, else it would prove nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.checkpoint import (
    ADAPTER,
    VALUE_HEAD,
    CheckpointError,
    TrainerState,
    best_checkpoint,
    list_checkpoints,
    read_checkpoint,
)
from trainer.config import RunConfig
from trainer.events import Event, EventDigest, LogLine, Metrics, TreeSampled
from trainer.loop import train
from trainer.losses import LossPart, policy_loss
from trainer.optim import Optimiser
from trainer.presets import PRESETS

HALF, WHOLE = 2, 4


def config_of(slug: str, seed: int, steps: int = WHOLE, **more: Any) -> RunConfig:
    values = PRESETS[slug].config.model_dump(mode="json")
    values["seed"] = seed
    values["training"] |= {"steps": steps, "problems_per_step": 3, "learning_rate": 1e-3, "warmup_steps": 3}
    values["data"]["operations"] = 3
    values["evaluation"] |= {"problems": 4, "every_steps": HALF, "samples": 2}
    values["checkpoint"] |= {"every_steps": HALF, "keep_last": 9}
    values["recording"]["trees_per_step"] = 3
    for section, changes in more.items():
        values[section] |= changes
    return RunConfig.model_validate(values)


class Story:
    """What a run tells of its steps after `HALF`, its weights, and how it ended; clocks left out."""

    def __init__(self, config: RunConfig, folder: Path, resume: Path | None = None) -> None:
        self.events: list[Event] = []
        self.outcome = train(
            config, emit=self.events.append, should_stop=lambda: False, run_dir=folder, resume=resume
        )

    def digest(self) -> tuple[str, str, str]:
        told = EventDigest()
        for event in self.events:
            if isinstance(event, Metrics | TreeSampled) and event.step > HALF:
                told.add(event)
        return self.outcome.weights_sha256, told.hexdigest(), self.outcome.reason


@pytest.mark.parametrize(
    ("slug", "seed"), [("treerpo-tiny", 0), ("grpo-tiny", 7), ("treepo-tiny", 3), ("step-grpo-tiny", 11)]
)
def test_resumed_is_unbroken(slug: str, seed: int, tmp_path: Path) -> None:
    whole = Story(config_of(slug, seed), tmp_path / "whole")
    Story(config_of(slug, seed, HALF), tmp_path / "parts")
    (last,) = list_checkpoints(tmp_path / "parts")
    assert Story(config_of(slug, seed), tmp_path / "parts", last).digest() == whole.digest()
    assert Story(config_of(slug, seed + 1), tmp_path / "other").digest() != whole.digest()


# ---- every part of the state matters


def rewritten(checkpoint: Path, name: str, change: Callable[[Path], None]) -> None:
    """Change one file of a checkpoint behind its back: its manifest is made to agree."""
    change(checkpoint / name)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    content = (checkpoint / name).read_bytes()
    manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def without(field: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        state = json.loads(path.read_text())
        del state[field]
        path.write_text(json.dumps(state))

    return change


def zeroed(part: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        tensors = load_file(path)
        assert any(name.endswith(part) for name in tensors)
        save_file({n: torch.zeros_like(t) if n.endswith(part) else t for n, t in tensors.items()}, path)

    return change


@pytest.fixture
def skips(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Make the updates of these steps not finite."""

    def at(steps: set[int]) -> None:
        count = 0

        def sometimes(*args: Any) -> LossPart:
            nonlocal count
            count += 1
            found = policy_loss(*args)
            return LossPart(found.loss * math.nan, found.figures) if count in steps else found

        monkeypatch.setattr("trainer.optim.policy_loss", sometimes)
        monkeypatch.setattr("trainer.loop.check_packing", lambda *_args, **_more: None)

    return at


COUNTED = {
    "step": "metrics of the steps again",
    "unique_tokens": "tree/unique_tokens_total",
    "skipped_updates": "policy/skipped_updates",
    "skipped_in_a_row": "three in a row",
}


@pytest.mark.parametrize("field", [None, *COUNTED])
def test_every_counter_matters(field: str | None, tmp_path: Path, skips: Callable[[set[int]], None]) -> None:
    skips({1, 2, 3})
    whole = Story(config_of("treerpo-tiny", 0), tmp_path / "whole")
    assert whole.outcome.outcome == "failed"  # three updates in a row were not finite
    skips({1, 2})
    Story(config_of("treerpo-tiny", 0, HALF), tmp_path / "parts")
    (last,) = list_checkpoints(tmp_path / "parts")
    if field is not None:
        rewritten(last, "state.json", without(field))
    skips({1})
    resumed = Story(config_of("treerpo-tiny", 0), tmp_path / "parts", last)
    assert (resumed.digest() == whole.digest()) == (field is None)


def test_the_time_so_far_goes_on(tmp_path: Path) -> None:
    Story(config_of("treerpo-tiny", 0, HALF), tmp_path)
    (last,) = list_checkpoints(tmp_path)
    before = json.loads((last / "state.json").read_text())["cpu_seconds"]
    resumed = Story(config_of("treerpo-tiny", 0), tmp_path, last)
    totals = [
        event.values["speed/cpu_seconds_total"]
        for event in resumed.events
        if isinstance(event, Metrics) and "speed/cpu_seconds_total" in event.values
    ]
    assert 0 < before < totals[0] < totals[1]


def test_a_due_evaluation_is_made_and_no_other(tmp_path: Path) -> None:
    Story(config_of("treerpo-tiny", 0, HALF), tmp_path)
    (last,) = list_checkpoints(tmp_path)

    def evaluated() -> list[int]:
        story = Story(config_of("treerpo-tiny", 0), tmp_path, last)
        return [e.step for e in story.events if isinstance(e, Metrics) and "eval/pass1_greedy" in e.values]

    assert evaluated() == [WHOLE]
    rewritten(last, "state.json", without("is_evaluation_due"))
    assert evaluated() == [HALF, WHOLE]


@pytest.mark.parametrize("part", [None, "/exp_avg", "/exp_avg_sq", "/step"])
def test_every_part_of_the_optimiser_matters(part: str | None, tmp_path: Path) -> None:
    whole = Story(config_of("grpo-tiny", 5), tmp_path / "whole")
    Story(config_of("grpo-tiny", 5, HALF), tmp_path / "parts")
    (last,) = list_checkpoints(tmp_path / "parts")
    if part is not None:
        rewritten(last, "optimiser.safetensors", zeroed(part))
    resumed = Story(config_of("grpo-tiny", 5), tmp_path / "parts", last)
    assert (resumed.digest() == whole.digest()) == (part is None)


@pytest.mark.parametrize(
    ("slug", "name", "more"),
    [
        ("rest-mcts-tiny", VALUE_HEAD, {}),
        ("grpo-tiny", ADAPTER, {"model": {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}}),
    ],
)
@pytest.mark.parametrize("is_dropped", [False, True])
def test_weights_beside_the_model_matter(
    slug: str, name: str, more: dict[str, Any], is_dropped: bool, tmp_path: Path
) -> None:
    whole = Story(config_of(slug, 1, **more), tmp_path / "whole")
    Story(config_of(slug, 1, HALF, **more), tmp_path / "parts")
    (last,) = list_checkpoints(tmp_path / "parts")
    if is_dropped:
        rewritten(last, name, zeroed(""))
    resumed = Story(config_of(slug, 1, **more), tmp_path / "parts", last)
    assert (resumed.digest() == whole.digest()) == (not is_dropped)


def changed(name: str, value: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        state = json.loads(path.read_text())
        assert state["environment"][name] != value
        state["environment"][name] = value
        path.write_text(json.dumps(state))

    return change


@pytest.mark.parametrize(("name", "value"), [("", ""), ("threads", "64"), ("torch", "1.0")])
def test_a_run_that_goes_on_elsewhere_says_that_it_is_not_bit_exact(
    name: str, value: str, tmp_path: Path
) -> None:
    Story(config_of("grpo-tiny", 5, HALF), tmp_path)
    (last,) = list_checkpoints(tmp_path)
    if name:
        rewritten(last, "state.json", changed(name, value))
    resumed = Story(config_of("grpo-tiny", 5, HALF), tmp_path, last)
    said = [e.message for e in resumed.events if isinstance(e, LogLine) and "bit-exact" in e.message]
    assert len(said) == bool(name)
    if name:
        assert said[0].startswith(f"Resumed, not bit-exact: {name} was {value} and is ")
        assert f"numbers after step {HALF} may differ" in said[0]


def test_no_part_of_the_state_is_left_out_here() -> None:
    tested = {
        *COUNTED,
        "cpu_seconds",
        "is_evaluation_due",
        "data_sha256",
        "model_sha256",
        "microbatch_tokens",
        "environment",
    }
    assert {field.name for field in fields(TrainerState)} == tested


# ---- what a checkpoint only names


def jsonl_config(path: Path, steps: int) -> RunConfig:
    values = config_of("grpo-tiny", 2, steps).model_dump(mode="json")
    values["data"] = {"kind": "jsonl", "path": str(path), "evaluation_share": 0.3}
    return RunConfig.model_validate(values)


def test_a_run_does_not_go_on_with_other_problems(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    lines = [json.dumps({"question": f"{i}+1=?", "answer": f"#### {i + 1}"}) + "\n" for i in range(30)]
    file.write_text("".join(lines))
    whole = Story(jsonl_config(file, WHOLE), tmp_path / "whole")
    Story(jsonl_config(file, HALF), tmp_path / "parts")
    (last,) = list_checkpoints(tmp_path / "parts")
    file.write_text("".join(reversed(lines)))
    with pytest.raises(CheckpointError, match=r"training problems are not those .* Put the old ones back"):
        Story(jsonl_config(file, WHOLE), tmp_path / "parts", last)
    file.write_text("".join(lines))
    assert Story(jsonl_config(file, WHOLE), tmp_path / "parts", last).digest() == whole.digest()


@pytest.mark.parametrize("slug", ["mcts-dpo-tiny", "grpo-tiny"])  # with and without a reference model
def test_a_run_does_not_go_on_over_another_model(slug: str, tmp_path: Path, model_folder: Path) -> None:
    model: dict[str, Any] = {"model": {"path": str(model_folder)}}
    Story(config_of(slug, 1, HALF, **model), tmp_path / "run")
    (last,) = list_checkpoints(tmp_path / "run")
    weights = load_file(model_folder / "model.safetensors")
    weights["model.norm.weight"] += 0.01
    save_file(weights, model_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"is not the one that the run started from"):
        Story(config_of(slug, 1, **model), tmp_path / "run", last)
    rewritten(last, "state.json", without("model_sha256"))
    assert Story(config_of(slug, 1, **model), tmp_path / "run", last).outcome.step == WHOLE


def test_micro_batches_that_fitted_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, left = Optimiser._loss, 0

    def short(own: Any, *args: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss(own, *args, **more)

    monkeypatch.setattr(Optimiser, "_loss", short)
    monkeypatch.setattr("trainer.loop.check_packing", lambda *_args, **_more: None)
    small = {"training": {"microbatch_tokens": 400}}
    left = 1
    whole = Story(config_of("grpo-tiny", 5, **small), tmp_path / "whole")
    left = 1
    Story(config_of("grpo-tiny", 5, HALF, **small), tmp_path / "parts")
    (last,) = list_checkpoints(tmp_path / "parts")
    assert 100 < read_checkpoint(last)[0].microbatch_tokens <= 200
    assert Story(config_of("grpo-tiny", 5, **small), tmp_path / "parts", last).digest() == whole.digest()
    rewritten(last, "state.json", without("microbatch_tokens"))
    assert Story(config_of("grpo-tiny", 5, **small), tmp_path / "parts", last).digest() != whole.digest()


# ---- the best checkpoint


def test_the_best_checkpoint_is_the_same_after_a_stop_during_its_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import loop

    accuracies = {0: 0.1, HALF: 0.9, WHOLE: 0.5, 6: 0.5}
    evaluate = loop._Run.evaluate

    def evaluated(run: Any) -> None:
        evaluate(run)
        run.accuracy = (run.state.step, accuracies[run.state.step])

    monkeypatch.setattr(loop._Run, "evaluate", evaluated)
    config = config_of("grpo-tiny", 2, 6, checkpoint={"keep_last": 1, "every_steps": HALF})
    Story(config, tmp_path / "whole")
    kept = [path.name for path in list_checkpoints(tmp_path / "whole")]
    assert kept == ["step-2", "step-6"]
    events: list[Event] = []

    def at_the_evaluation() -> bool:
        return any(isinstance(event, TreeSampled) and event.step == HALF for event in events)

    stopped = train(config, emit=events.append, should_stop=at_the_evaluation, run_dir=tmp_path / "parts")
    assert (stopped.outcome, stopped.step) == ("stopped", HALF)
    (last,) = list_checkpoints(tmp_path / "parts")
    assert best_checkpoint(tmp_path / "parts") is None
    Story(config, tmp_path / "parts", last)
    assert [path.name for path in list_checkpoints(tmp_path / "parts")] == kept
    best = best_checkpoint(tmp_path / "parts")
    assert best is not None
    assert best.name == "step-2"
