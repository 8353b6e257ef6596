from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from trainer.config import RunConfig
from trainer.presets import PRESETS
from trainer.schema.sampler import SegmentTreeSampler

DEFAULT = PRESETS["treerpo-tiny"].config


def changed(path: str, value: Any) -> RunConfig:
    data = DEFAULT.model_dump(mode="json")
    here = data
    *sections, key = path.split(".")
    for section in sections:
        here = here[section]
    here[key] = value
    return RunConfig.model_validate(data)


BOUNDS = [
    ("seed", 0, 2**31 - 1),
    ("data.operations", 1, 12),
    ("sampler.depth", None, None),
    ("training.steps", 1, 1_000_000),
    ("training.problems_per_step", 1, 4096),
    ("training.warmup_steps", 0, 100_000),
    ("training.updates_per_step", 1, 64),
    ("training.microbatch_tokens", 64, 10_000_000),
    ("evaluation.every_steps", 0, 1_000_000),
    ("evaluation.problems", 1, 100_000),
    ("checkpoint.every_steps", 0, 1_000_000),
    ("checkpoint.keep_last", 1, 1000),
    ("recording.trees_per_step", 0, 4096),
]


@pytest.mark.parametrize(("path", "low", "high"), [bound for bound in BOUNDS if bound[1] is not None])
def test_bounds_hold_at_their_very_ends(path: str, low: int, high: int) -> None:
    for value in (low, high):
        changed(path, value)
    for value in (low - 1, high + 1):
        with pytest.raises(ValidationError):
            changed(path, value)


@pytest.mark.parametrize("slug", PRESETS)
def test_presets_are_whole_and_fit_their_name(slug: str) -> None:
    preset = PRESETS[slug]
    assert preset.slug == slug == preset.config.preset
    assert preset.title
    assert preset.summary
    assert preset.source
    assert RunConfig.model_validate_json(preset.config.model_dump_json(), strict=True) == preset.config


def test_configs_are_frozen_and_refuse_unknown_keys() -> None:
    with pytest.raises(ValidationError):
        DEFAULT.seed = 2  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        changed("training.unknown", 1)


def test_hash_sees_every_value_and_nothing_else() -> None:
    assert changed("seed", 1).sha256() == DEFAULT.sha256()
    seen = {DEFAULT.sha256()}
    for path, value in (
        ("seed", 2),
        ("training.learning_rate", 1e-4),
        ("data.operations", 6),
        ("recording.trees_per_step", 1),
    ):
        seen.add(changed(path, value).sha256())
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("split", "processes", "refused"), [(2, 1, True), (2, 4, True), (4, 4, False), (1, 4, False)]
)
def test_an_engine_is_split_over_all_processes_or_not_at_all(
    split: int, processes: int, refused: bool
) -> None:
    values = DEFAULT.model_dump(mode="json")
    values["engine"] = {"kind": "vllm", "tensor_parallel": split}
    values["resources"]["processes"] = processes
    with pytest.raises(ValidationError, match="Set both alike") if refused else nullcontext():
        RunConfig.model_validate(values)


def test_an_engine_does_not_sleep_while_it_samples_ahead() -> None:
    values = DEFAULT.model_dump(mode="json")
    values["engine"] = {"kind": "vllm", "sleep_while_training": True}
    RunConfig.model_validate(values)
    values["training"]["max_staleness"] = 1
    values["objective"]["importance"] = {"kind": "truncated"}
    with pytest.raises(ValidationError, match="nothing to sleep in"):
        RunConfig.model_validate(values)


def test_one_number_counts_for_every_depth() -> None:
    sampler = SegmentTreeSampler(depth=3, branching_per_depth=(2,), segment_tokens_per_depth=(8, 9, 10))
    assert sampler.branching == (2, 2, 2)
    assert sampler.segment_tokens == (8, 9, 10)


def fields(model: type[BaseModel], path: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, field in model.model_fields.items():
        options = [field.annotation, *getattr(field.annotation, "__args__", ())]
        sections = [x for x in options if isinstance(x, type) and issubclass(x, BaseModel)]
        if sections:
            for section in sections:
                found += fields(section, f"{path}{name}.")
        elif name not in ("kind", "schema_version"):
            found.append((f"{path}{name}", field))
    return found


def test_every_knob_has_a_title_and_a_description() -> None:
    missing = [path for path, field in fields(RunConfig) if not field.title or not field.description]
    assert missing == []
