from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import RunConfig
from trainer.config_file import ConfigError, config_from_mapping, config_from_yaml, config_to_yaml, parse_yaml
from trainer.presets import PRESETS
from trainer.schema.sampler import FlatSampler, SegmentTreeSampler


def problems(content: str | bytes, *overrides: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        config_from_yaml(content, overrides)
    return {problem.path: problem.message for problem in caught.value.problems}


# ---- what people write


def test_an_empty_file_is_the_default_preset() -> None:
    assert config_from_yaml("") == config_from_yaml("{}") == PRESETS["treerpo-tiny"].config


def test_a_short_file_takes_the_rest_from_its_preset() -> None:
    config = config_from_yaml("preset: grpo-tiny\ntraining:\n  steps: 7\n")
    assert config == PRESETS["grpo-tiny"].config.model_copy(
        update={"training": PRESETS["grpo-tiny"].config.training.model_copy(update={"steps": 7})}
    )


def test_a_section_of_another_kind_starts_from_its_own_defaults() -> None:
    config = config_from_yaml("sampler: {kind: flat, group_size: 4}")
    assert config.sampler == FlatSampler(group_size=4)
    changed = config_from_yaml("sampler: {temperature: 0.5}")
    assert changed.sampler == PRESETS["treerpo-tiny"].config.sampler.model_copy(update={"temperature": 0.5})
    assert isinstance(changed.sampler, SegmentTreeSampler)


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "0.00001"])
def test_exponents_are_numbers(text: str) -> None:
    assert config_from_yaml(f"training: {{learning_rate: {text}}}").training.learning_rate == 1e-5


@pytest.mark.parametrize("slug", PRESETS)
def test_every_preset_survives_a_round_trip(slug: str) -> None:
    config = PRESETS[slug].config
    assert config.preset == slug
    assert config_from_yaml(config_to_yaml(config)) == config
    assert config_from_mapping(config.model_dump(mode="json")) == config
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_byte_order_mark_is_dropped() -> None:
    assert config_from_yaml("\ufeffseed: 5\n".encode()).seed == config_from_yaml("\ufeffseed: 5\n").seed == 5


def test_overrides_come_last_and_follow_yaml() -> None:
    config = config_from_yaml(
        "training: {steps: 5}",
        ["training.steps=9", "sampler.branching_per_depth=[3, 2]", "sampler.depth=2",
         "sampler.segment_tokens_per_depth=[8,40]", "training.learning_rate=1e-5"],
    )  # fmt: skip
    assert config.training.steps == 9
    assert config.sampler.branching == (3, 2)
    assert config.training.learning_rate == 1e-5


# ---- what is wrong with a value


def test_every_field_at_fault_is_named_with_its_value() -> None:
    found = problems("training: {steps: 0, learning_rate: fast}\nseed: -1\nsampler: {temperature: 3}")
    assert found == {
        "training.steps": "input should be greater than or equal to 1 (got 0)",
        "training.learning_rate": 'input should be a valid number (got "fast")',
        "seed": "input should be greater than or equal to 0 (got -1)",
        "sampler.temperature": "input should be less than or equal to 2 (got 3)",
    }


def test_an_unknown_key_names_the_nearest_one() -> None:
    assert problems("training: {learning_rte: 1e-4}") == {
        "training.learning_rte": "unknown key; did you mean `learning_rate`?"
    }
    assert problems("sampler: {group_size: 4}")["sampler.group_size"].startswith(
        "unknown key; known are kind, temperature, top_k"
    )
    assert problems("sampler: {min_p: 0.1}")["sampler.min_p"].startswith("min_p may keep any number")
    assert problems("trainng: {}") == {"trainng": "unknown key; did you mean `training`?"}
    assert problems("credit: {scale: {kind: group_std, dof: 1}}") == {
        "credit.scale.dof": "unknown key; did you mean `ddof`?"
    }


def test_an_unknown_kind_or_preset_names_those_there_are() -> None:
    assert "'flat', 'segment_tree'" in problems("sampler: {kind: bush}")["sampler"]
    found = problems("preset: magic")["preset"]
    assert found.startswith("there is no preset 'magic'; there are treerpo, grpo, ")
    assert found.endswith("step-grpo+, each also with -tiny")
    assert config_from_yaml("preset: TreeRPO").preset == "treerpo"
    assert config_from_yaml("preset: Tree GRPO").preset == "tree-grpo"
    assert config_from_yaml("preset: TreeAdv").preset == "treeadv-tiny"  # no source gives its setting
    assert problems("preset: [1]")["preset"].startswith("there is no preset [1]")


def test_rules_across_fields_say_what_to_change() -> None:
    assert (
        "depth is 3. Give one number for all depths, or exactly 3."
        in problems("sampler: {branching_per_depth: [4, 2]}")["sampler"]
    )
    assert (
        "at most 100,000"
        in problems("sampler: {depth: 16, branching_per_depth: [64], segment_tokens_per_depth: [8]}")[
            "sampler"
        ]
    )
    assert "Set the filter to `range`" in problems("credit: {filter: {kind: none}}")["credit"]
    assert (
        "could sample"
        in problems("training: {problems_per_step: 4096}\nsampler: {segment_tokens_per_depth: [32768]}")[""]
    )


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_numbers_that_are_not_finite_are_refused(value: str) -> None:
    assert "training.learning_rate" in problems(f"training: {{learning_rate: {value}}}")


@pytest.mark.parametrize(
    ("text", "key"), [('"3"', "seed"), ("true", "seed"), ("1.5", "seed"), ("null", "seed"), ("[1]", "seed")]
)
def test_types_are_not_guessed(text: str, key: str) -> None:
    assert key in problems(f"{key}: {text}")


def test_huge_integers_are_refused_and_not_wrapped() -> None:
    assert (
        problems("seed: 18446744073709551616")["seed"]
        == "input should be less than or equal to 2147483647 (got 18446744073709551616)"
    )
    assert problems("seed: " + "1" * 5000)


@pytest.mark.parametrize("override", ["training.steps", "=3", "training..steps=3", ".=1"])
def test_malformed_overrides_are_named(override: str) -> None:
    assert "is not of the form section.key=value" in problems("", override)[""]


def test_an_override_below_a_value_is_refused() -> None:
    assert "`seed` is not a section" in problems("seed: 1", "seed.x=1")["seed.x"]


# ---- hostile YAML


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('!!python/object/apply:os.system ["id"]', "could not determine a constructor for the tag"),
        ("a: !!python/name:os.system ''", "could not determine a constructor"),
        ("a: &a [x]\nb: *a\n", "line 2: aliases (`*name`) are not allowed"),
        ("a: &a [*a]\n", "line 1: aliases"),
        ("lr: 1\nlr: 2\n", 'line 2: found duplicate key "lr"'),
        ("training: {steps: 1, steps: 2}", "duplicate key"),
        ("a: 1\n---\nb: 2\n", "2 YAML documents; exactly one is expected"),
        ("name:\tx\n  y: z\n", "line 1, column 6"),
        ("a: [1, 2", "line 1, column"),
        ("- a\n- b\n", "holds a list, expected keys and values"),
        ("just words", "holds a str, expected keys and values"),
        ("1: 2", "expected keys and values"),
        ("[" * 2000 + "]" * 2000, "nested deeper than 20 levels"),
        ("x: '" + "a" * 300_000 + "'", "at most 256,000 are read"),
        ("a: [" + "1," * 5000 + "]", "more than 2000 keys and values"),
        (b"a: \xff\xfe\n", "not UTF-8 (byte 4)"),
        ("a: \x00", "not YAML"),
        ("? {a: 1}\n: 2", "unhashable key"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_refused_quickly(content: str | bytes, message: str) -> None:
    started = time.process_time()
    found = problems(content)
    assert time.process_time() - started < 1
    assert message in " ".join(found.values())


def test_a_flood_of_aliases_is_refused_before_it_is_expanded() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{c}: &{c} [*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p}]\n"
        for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "aliases" in problems(bomb)[""]


def test_yaml_is_read_by_version_1_2() -> None:
    assert parse_yaml("a: no\nb: 010\nc: 0o10\ne: 12:30\nf: ~\n") == {
        "a": "no", "b": 10, "c": 8, "e": "12:30", "f": None,
    }  # fmt: skip


@given(st.text(max_size=200))
def test_any_text_is_a_mapping_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_yaml(text), dict)
