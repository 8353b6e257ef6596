"""The form follows the schema: every knob appears once, and what it says can be read back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from trainer.config import RunConfig
from trainer.presets import PRESETS
from webapp.runs.config_form import (
    HIDDEN,
    ConfigError,
    FormField,
    build_form,
    config_errors,
    read_form,
    to_text,
)


def fields_of(config: RunConfig, **typed: str) -> dict[str, FormField]:
    sections = build_form(config, typed=typed)
    fields = [item for section in sections for item in (*section.fields, *section.advanced)]
    assert len({item.path for item in fields}) == len({item.id for item in fields}) == len(fields)
    return {item.path: item for item in fields}


def knobs(model: BaseModel, before: str = "") -> set[str]:
    """Paths of every knob and every kind, by walking the config itself and not its schema."""
    found: set[str] = set()
    for name in type(model).model_fields:
        value = getattr(model, name)
        path = f"{before}{name}"
        if isinstance(value, BaseModel):
            found |= knobs(value, f"{path}.")
        else:
            found.add(path)
    return found


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.slug)
def test_every_knob_is_in_the_form_once(preset: Any) -> None:
    fields = fields_of(preset.config)
    assert set(fields) == knobs(preset.config) - set(HIDDEN)
    assert all(item.label and not item.error for item in fields.values())
    assert {item.path for item in fields.values() if not item.help} == set()


def test_bounds_units_and_choices_come_from_the_schema() -> None:
    fields = fields_of(PRESETS["treerpo-tiny"].config)
    depth = fields["sampler.depth"]
    assert (depth.kind, depth.minimum, depth.maximum, depth.unit, depth.value) == (
        "integer",
        1,
        64,
        "levels",
        "3",
    )
    branching = fields["sampler.branching_per_depth"]
    assert (branching.kind, branching.minimum, branching.maximum, branching.value) == (
        "integers",
        1,
        64,
        "4, 2, 2",
    )
    assert [value for value, _ in fields["sampler.split"].choices] == ["newline", "none"]
    assert [value for value, _ in fields["sampler.kind"].choices] == [
        "flat",
        "segment_tree",
        "fork_tree",
        "lookahead",
        "search_tree",
    ]
    assert fields["training.learning_rate"].value == "0.0003"
    assert fields["sampler.temperature"].advanced


def test_changed_compares_meaning_not_letters() -> None:
    config = PRESETS["treerpo-tiny"].config
    same = {"training.learning_rate": "3e-4", "sampler.branching_per_depth": "4,2 2", "training.steps": "150"}
    assert not any(fields_of(config, **same)[path].changed for path in same)
    assert fields_of(config, **{"training.learning_rate": "3e-5"})["training.learning_rate"].changed


def test_only_the_chosen_kinds_knobs_are_shown() -> None:
    config = PRESETS["treerpo-tiny"].config
    assert "credit.filter.tau" in fields_of(config)
    assert "credit.filter.tau" not in fields_of(config, **{"credit.filter.kind": "none"})
    assert "credit.scale.ddof" in fields_of(config, **{"credit.scale.kind": "group_std"})


def test_choices_of_numbers_are_read_as_numbers() -> None:
    config = PRESETS["grpo-tiny"].config
    read = RunConfig.model_validate(read_form(config, {"credit.scale.ddof": "0"}))
    assert read.credit.scale.model_dump()["ddof"] == 0


@given(st.dictionaries(st.sampled_from(sorted(knobs(PRESETS["treerpo-tiny"].config))), st.text(max_size=40)))
def test_whatever_is_typed_gives_a_config_or_sentences(typed: dict[str, str]) -> None:
    config = PRESETS["treerpo-tiny"].config
    try:
        RunConfig.model_validate(read_form(config, typed))
    except ValidationError as error:
        errors = config_errors(error)
        assert errors
        assert all(one.message.endswith((".", "`")) for one in errors)
        shown = [
            item
            for section in build_form(config, typed=typed, errors=errors)
            for item in (*section.fields, *section.advanced)
        ]
        assert any(item.error for item in shown) or any("." not in one.path for one in errors)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["kind", "sampler", "depth", "credit", "scale", "x"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    )
)
def test_any_value_as_config_gives_sentences(value: Any) -> None:
    for candidate in (value, {"sampler": value}, {"credit": value}, {"training": {"steps": value}}):
        try:
            RunConfig.model_validate(candidate)
        except ValidationError as error:
            for one in config_errors(error):
                assert 0 < len(one.message) < 600
                assert "\ud800" not in one.message


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_numbers_survive_being_shown(number: float) -> None:
    assert float(to_text(number)) == number


def test_a_flood_of_errors_is_cut_and_counted() -> None:
    config: dict[str, Any] = {f"unknown_{n}": 1 for n in range(75_000)}
    with pytest.raises(ValidationError) as raised:
        RunConfig.model_validate(config)
    n = raised.value.error_count()
    assert n >= 75_000
    errors = config_errors(raised.value)
    assert len(errors) == 101
    assert errors[-1] == ConfigError("", f"And {n - 100:,} more. Correct these first.")
    with pytest.raises(ValidationError) as raised:
        RunConfig.model_validate(dict(list(config.items())[: 100 - (n - 75_000)]))
    assert len(config_errors(raised.value)) == 100
    assert all(error.path for error in config_errors(raised.value))
