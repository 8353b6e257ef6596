from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from webapp.study import plan
from webapp.study.plan import CREDITS, SAMPLINGS, TASKS, UPDATE_TOKENS, Cell, config
from webapp.study.report import (
    choose_update_tokens,
    contrasts,
    estimate,
    figure,
    overview,
    tables,
    tuning_tables,
)
from webapp.study.results import Result, append_result, by_method, read_results, result_of

CELL = Cell(TASKS["uniform-8"], "flat", "trajectory", 5000, 1)


def result(
    sampled: list[float],
    *,
    seed: int = 1,
    credit: str = "trajectory",
    update: int = 5000,
    greedy: float = 0.9,
    status: str = "succeeded",
    sampling: str = "flat",
) -> Result:
    curve = tuple((1000.0 * i, 100.0 * i, 2.0 * i, value, greedy) for i, value in enumerate(sampled))
    identity = f"{seed}{sampling}{credit}{update}"
    return Result(identity, "uniform-8", sampling, credit, update, seed, status, curve)


@pytest.mark.parametrize(
    ("slug", "sampling", "credit"), list(itertools.product(TASKS, SAMPLINGS, CREDITS)), ids=str
)
def test_every_cell_is_a_config_of_its_own(slug: str, sampling: plan.Sampling, credit: plan.Credit) -> None:
    cells = [Cell(TASKS[slug], sampling, credit, tokens, 1) for tokens in UPDATE_TOKENS]
    configs = [config(cell) for cell in cells]
    assert len({plan.identity(c) for c in configs}) == len(cells)
    for made in configs:
        assert made.sampler.bounds.leaves == plan.ANSWERS
        assert made.sampler.bounds.answer_tokens == TASKS[slug].max_tokens
        assert made.training.max_sampled_tokens == plan.TOKENS_PER_RUN
        assert made.training.updates_per_step == 1


def test_what_is_recorded_makes_no_other_run() -> None:
    made = config(CELL)
    recorded = made.model_copy(update={"recording": made.recording.model_copy(update={"trees_per_step": 9})})
    slower = made.model_copy(update={"training": made.training.model_copy(update={"learning_rate": 1e-4})})
    assert plan.identity(recorded) == plan.identity(made)
    assert plan.identity(slower) != plan.identity(made)


def test_mean_accuracy_is_the_area_under_the_curve_over_its_tokens() -> None:
    # 0 to 1000 tokens: mean of .1 and .3; 1000 to 3000, twice as long: mean of .3 and .5.
    curve = ((0.0, 0.0, 0.0, 0.1, 0.9), (1000.0, 50.0, 1.0, 0.3, 0.9), (3000.0, 90.0, 3.0, 0.5, 0.9))
    found = Result("x", "uniform-8", "flat", "trajectory", 5000, 1, "succeeded", curve)
    assert found.mean_accuracy == pytest.approx((1000 * 0.2 + 2000 * 0.4) / 3000)
    assert (found.final_accuracy, found.trained_tokens, found.cpu_seconds) == (0.5, 90.0, 3.0)


def test_trained_tokens_are_summed_up_to_each_evaluation() -> None:
    series = {
        "eval/pass1_sampled": {0: 0.1, 2: 0.2, 4: 0.3},
        "eval/pass1_greedy": {0: 0.9, 2: 0.8, 4: 0.7},
        "tree/unique_tokens_total": {1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0},
        "policy/trained_tokens": {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0},
        "speed/cpu_seconds_total": {1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0},
    }
    found = result_of(CELL, "hash", "succeeded", series)
    assert found.curve == ((0.0, 0.0, 0.0, 0.1, 0.9), (20.0, 3.0, 1.0, 0.2, 0.8), (40.0, 10.0, 2.0, 0.3, 0.7))


def test_a_run_without_a_curve_has_no_result() -> None:
    with pytest.raises(ValueError, match="evaluated 1 times"):
        result_of(CELL, "hash", "failed", {"eval/pass1_sampled": {0: 0.1}, "eval/pass1_greedy": {0: 0.9}})


@pytest.mark.parametrize(
    ("sampled", "greedy_last", "status", "is_collapsed"),
    [
        ([0.3, 0.4], 0.9, "succeeded", False),
        ([0.3, 0.2], 0.9, "succeeded", True),
        ([0.3, 0.4], 0.75, "succeeded", True),
        ([0.3, 0.4], 0.9, "failed", True),
    ],
)
def test_collapse(sampled: list[float], greedy_last: float, status: str, is_collapsed: bool) -> None:
    found = result(sampled, status=status)
    curve = (*found.curve[:-1], (*found.curve[-1][:4], greedy_last))
    assert Result(*_fields(found)[:-1], curve).is_collapsed is is_collapsed


def _fields(found: Result) -> list[object]:
    return [getattr(found, name) for name in Result.__slots__]


def test_results_survive_their_file_and_the_last_line_of_a_hash_counts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    assert read_results(path) == {}
    first, second = result([0.1, 0.2]), result([0.1, 0.9])
    append_result(path, first)
    append_result(path, second)
    assert read_results(path) == {second.identity: second}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, result([0.1, 0.2]))
    with path.open("a") as stream:
        stream.write(json.dumps({"task": "uniform-8"}) + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_results(path)


def test_tuning_takes_the_best_tokens_per_update_of_each_method_by_the_tuning_seed_alone() -> None:
    results = [
        result([0.1, 0.2], seed=0, update=5000),
        result([0.1, 0.4], seed=0, update=15000),
        result([0.1, 0.9], seed=1, update=5000),  # not the tuning seed
        result([0.1, 0.5], seed=0, update=5000, credit="global"),
        result([0.1, 0.4], seed=0, update=15000, credit="global"),
    ]
    assert choose_update_tokens(results) == {
        ("uniform-8", "flat", "trajectory"): 15000,
        ("uniform-8", "flat", "global"): 5000,
    }


def test_final_cells_come_seed_by_seed() -> None:
    cells = list(
        plan.final_cells({("uniform-8", "flat", "trajectory"): 5000, ("late-3", "forks", "global"): 15000}, 2)
    )
    assert [(c.seed, c.task.slug) for c in cells] == [
        (1, "uniform-8"),
        (1, "late-3"),
        (2, "uniform-8"),
        (2, "late-3"),
    ]


def test_interval_is_students_t() -> None:
    # Three values .4 .5 .6: s = .1, t(2) = 4.303, half = 4.303 * .1 / sqrt 3.
    found = estimate([0.4, 0.5, 0.6])
    assert (found.mean, found.half) == (pytest.approx(0.5), pytest.approx(0.24843, abs=1e-4))
    assert math.isnan(estimate([0.4]).half)


def test_tables_rank_by_mean_accuracy_and_leave_the_tuning_seed_out() -> None:
    results = [
        result([0.1, 0.2]),
        result([0.1, 0.3], seed=2),
        result([0.1, 0.9], seed=0),
        result([0.1, 0.6], credit="global"),
    ]
    lines = [line for line in tables(results).splitlines() if line.startswith("| flat")]
    assert "global" in lines[0]
    assert "0.350" in lines[0]
    assert "trajectory" in lines[1]
    assert "0.175 ±" in lines[1]
    assert len(by_method(results)) == 2


def test_tuning_is_shown_as_single_runs_and_says_what_was_not_run() -> None:
    text = tuning_tables(
        [result([0.1, 0.9], seed=0), result([0.5, 0.1], seed=0, credit="global", update=15000)]
    )
    rows = [line for line in text.splitlines() if line.startswith("| flat")]
    assert rows[0].endswith("| 0.500 → 0.900 | not run |")
    assert rows[1].endswith("| not run | 0.300 → 0.100, fell |")
    assert tuning_tables([result([0.1, 0.9])]) == ""


def test_no_figure_of_single_runs() -> None:
    assert figure([result([0.1, 0.2])], "uniform-8") == ""


def test_figure_has_a_dot_per_seed_and_one_for_the_mean() -> None:
    drawing = figure(
        [result([0.1, 0.2]), result([0.1, 0.3], seed=2), result([0.1, 0.9], seed=0)], "uniform-8"
    )
    assert drawing.count("<circle") == 3
    assert figure([result([0.1, 0.9], seed=0)], "uniform-8") == ""


def test_accuracy_at_a_budget_lies_on_the_line_between_two_evaluations() -> None:
    found = result([0.1, 0.3, 0.2])  # after 0, 1000, 2000 tokens; 0, 100, 200 trained; 0, 2, 4 CPU-seconds
    assert found.accuracy_at(0, 500) == pytest.approx(0.2)
    assert found.accuracy_at(1, 150) == pytest.approx(0.25)
    assert found.accuracy_at(2, 2.0) == pytest.approx(0.3)
    assert (found.accuracy_at(0, 0), found.accuracy_at(0, 9e9)) == (0.1, 0.2)


def test_contrasts_are_paired_by_seed_over_the_other_factor() -> None:
    effect = {"flat": 0.0, "segments": -0.02, "forks": 0.04, "lookahead": 0.01}
    given = {"trajectory": 0.0, "sibling": -0.1, "global": 0.06, "ancestor": 0.0}
    seeds = {1: 0.2, 2: 0.5}  # seeds differ by far more than methods, and that does not matter
    runs = [
        result([level + effect[s] + given[c]] * 2, seed=seed, sampling=s, credit=c)
        for seed, level in seeds.items()
        for s in SAMPLINGS
        for c in CREDITS
    ]
    lone = result([0.9, 0.9], seed=3)  # a seed that lacks methods counts nowhere
    found = {one.level: one.difference for one in contrasts([*runs, lone])}
    assert found["surprisal forks"].mean == pytest.approx(0.04)
    assert found["fixed segments"].mean == pytest.approx(-0.02)
    assert found["sibling step"].mean == pytest.approx(-0.1)
    assert all(one.n == 2 and one.half == pytest.approx(0.0, abs=1e-9) for one in found.values())
    assert "| surprisal forks | +0.040 ± 0.000 | global + step | +0.060 ± 0.000 |" in tables(runs)
    assert contrasts([lone]) == []


def test_the_overview_compares_at_each_budget_and_marks_what_is_no_chance() -> None:
    # Forks end .4 higher, but only half of the way when flat answers have spent their CPU-seconds.
    runs = [
        replace(
            result([0.2, 0.6 if s == "forks" else 0.2], seed=seed, sampling=s, credit=c),
            curve=(
                (0.0, 0.0, 0.0, 0.2, 0.9),
                (1000.0, 100.0, 4.0 if s == "forks" else 2.0, 0.6 if s == "forks" else 0.2, 0.9),
            ),
        )
        for seed in (1, 2)
        for s in SAMPLINGS
        for c in CREDITS
    ]
    rows = [line for line in overview(runs).splitlines() if line.startswith("| uniform, k = 8")]
    forks = [row.split(" | ")[2] for row in rows]  # over the run, at equal trained tokens, at equal seconds
    assert forks == ["**+0.200 ± 0.000**", "**+0.400 ± 0.000**", "**+0.200 ± 0.000**"]
    assert all(row.split(" | ")[1] == "+0.000 ± 0.000" for row in rows)
