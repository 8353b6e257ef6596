"""Charts: the SQL buckets equal a slow obvious loop, spikes stay visible, NaN and infinity stand apart."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from django.db import connection
from pytest_django import DjangoAssertNumQueries

from tests.webapp.material import People, add_many_points, add_metrics
from webapp.runs.metrics import bucket_width, series_data
from webapp.runs.models import Point, Run, Series


def slow(values: list[float], max_points: int, low: int, high: int) -> list[dict[str, Any]]:
    """Buckets by hand: steps 1, 2, 3, ... cut into ranges of equal width, a power of two."""
    points = [(step, v) for step, v in enumerate(values, 1) if low <= step <= high]
    width = 1
    if len(points) > max_points:
        while len({step // width for step, _ in points}) > max_points:
            width *= 2
    buckets: dict[int, list[tuple[int, float]]] = {}
    for step, value in points:
        buckets.setdefault(step // width, []).append((step, value))
    rows = []
    for bucket in sorted(buckets):
        finite = [(step, v) for step, v in buckets[bucket] if math.isfinite(v)]
        if finite:
            only = [v for _, v in finite]
            rows.append(
                {
                    "step": finite[-1][0],
                    "n": len(only),
                    "value": math.fsum(only) / len(only),
                    "min": min(only),
                    "max": max(only),
                    "last": only[-1],
                }
            )
    return rows


@pytest.mark.parametrize(
    ("n", "max_points", "low", "high"),
    [
        (1, 10, 0, 99),
        (10, 10, 0, 99),
        (11, 10, 0, 99),
        (1000, 7, 0, 2000),
        (1000, 100, 250, 613),
        (5000, 1000, 0, 5000),
        (300, 1, 0, 999),
    ],
)
def test_buckets_equal_the_slow_version(run: Run, n: int, max_points: int, low: int, high: int) -> None:
    random = np.random.default_rng(n)
    values = random.normal(size=n)
    values[random.random(n) < 0.05] = np.nan
    values[random.random(n) < 0.02] = np.inf
    add_many_points(run, "a/b", values.tolist())
    (series,) = series_data(run, ["a/b"], max_points=max_points, from_step=low, to_step=high)
    wanted = slow(values.tolist(), max_points, low, high)
    assert len(series["step"]) <= max_points
    for name in ("step", "n", "min", "max", "last"):
        assert series[name] == [row[name] for row in wanted], name
    assert series["value"] == pytest.approx([row["value"] for row in wanted], rel=1e-12, abs=1e-15)
    inside = values[max(low, 1) - 1 : high]
    assert series["n_points"] == len(inside)
    assert series["n_nonfinite"] == int((~np.isfinite(inside)).sum())
    assert sum(mark["n"] for mark in series["nonfinite"]) == series["n_nonfinite"]


def test_a_single_spike_among_ten_thousand_is_seen(run: Run) -> None:
    values = [0.0] * 10_000
    values[7_777] = 1e6
    add_many_points(run, "policy/grad_norm", values)
    (series,) = series_data(run, ["policy/grad_norm"], max_points=100)
    assert series["bucketed"]
    assert max(series["max"]) == 1e6
    assert sum(series["n"]) == 10_000


def test_bucket_borders_stay_while_the_run_grows() -> None:
    widths = [bucket_width(n, 1, n, 100) for n in range(90, 3000, 10)]
    assert widths == sorted(widths)
    assert all(width & (width - 1) == 0 for width in widths)


@pytest.mark.parametrize(
    "values",
    [[1.7e308] * 40, [-1.7e308, 1.7e308] * 20, [5e-324] * 40, [1e-300, 1e300] * 20, [1e160] * 40],
)
def test_extreme_values_make_no_error(run: Run, values: list[float]) -> None:
    add_many_points(run, "x/y", values)
    (series,) = series_data(run, ["x/y"], max_points=4)
    assert all(
        low <= mean <= high
        for low, mean, high in zip(series["min"], series["value"], series["max"], strict=True)
    )
    assert (min(series["min"]), max(series["max"])) == (min(values), max(values))


def test_nan_and_infinity_are_null_with_a_kind_in_strict_json(run: Run, people: People) -> None:
    before = run.last_seq
    add_metrics(run, 4, {"policy/loss": float("nan")})
    add_metrics(run, 5, {"policy/loss": float("-inf")})
    add_metrics(run, 6, {"policy/loss": 0.5})
    response = people.client("viewer").get(f"/api/v1/runs/{run.id}/metrics?names=policy/loss")
    (series,) = json.loads(response.content, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))[
        "series"
    ]
    assert (series["step"], series["value"]) == ([6], [0.5])
    assert series["nonfinite"] == [{"step": 4, "k": "nan", "n": 1}, {"step": 5, "k": "-inf", "n": 1}]
    events = people.client("viewer").get(f"/api/v1/runs/{run.id}/events?after={before}").json()["events"]
    assert [event["values"]["policy/loss"] for event in events] == [
        {"v": None, "k": "nan"},
        {"v": None, "k": "-inf"},
        0.5,
    ]


def test_superseded_points_are_hidden(run: Run) -> None:
    add_metrics(run, 4, {"a/b": 1.0}, superseded=True)
    add_metrics(run, 4, {"a/b": 2.0})
    (series,) = series_data(run, ["a/b"])
    assert (series["step"], series["value"], series["n_points"]) == ([4], [2.0], 1)


def test_what_was_superseded_is_told_when_it_is_asked_for(run: Run) -> None:
    add_metrics(run, 4, {"a/b": 1.0}, superseded=True)
    add_metrics(run, 4, {"a/b": 2.0})
    (counts,) = series_data(run, ["a/b"])
    (past,) = series_data(run, ["a/b"], superseded=True)
    assert (counts["value"], past["value"]) == ([2.0], [1.0])


def test_names_choose_series_and_unknown_ones_are_left_out(run: Run, people: People) -> None:
    client = people.client("viewer")
    url = f"/api/v1/runs/{run.id}/metrics"
    everything = client.get(url).json()
    assert [series["name"] for series in everything["series"]] == [
        "eval/pass1_sampled",
        "reward/mean",
        "speed/step_seconds",
    ]
    assert everything["last_seq"] == run.last_seq
    assert everything["series"][1]["value"] == [0.1, 0.2, 0.3]
    some = client.get(url, {"names": "reward/mean,nothing/here,a\x00b,__proto__"}).json()
    assert [series["name"] for series in some["series"]] == ["reward/mean"]


@pytest.mark.parametrize(
    "query",
    [
        "max_points=0",
        "max_points=2001",
        "max_points=x",
        "from_step=-1",
        "to_step=9223372036854775808",
        "from_step=1e3",
    ],
)
def test_bad_ranges_are_400(run: Run, people: People, query: str) -> None:
    response = people.client("viewer").get(f"/api/v1/runs/{run.id}/metrics?{query}")
    assert response.status_code == 400
    assert response.json()["errors"][0]["path"] == query.split("=")[0]


def test_proto_is_a_name_like_any_other(run: Run, people: People) -> None:
    Point.objects.create(
        series=Series.objects.create(run=run, name="__proto__"), run_id=run.id, seq=1, step=1, value=1
    )
    found = people.client("viewer").get(f"/api/v1/runs/{run.id}/metrics?names=__proto__").json()
    assert found["series"][0]["name"] == "__proto__"


def test_a_thousand_series_cost_four_queries(
    run: Run, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    names = [f"area/name_{number}" for number in range(1000)]
    made = Series.objects.bulk_create([Series(run=run, name=name, n_points=1) for name in names])
    Point.objects.bulk_create([Point(series=one, run_id=run.id, seq=1, step=1, value=1) for one in made])
    with django_assert_num_queries(4):
        assert len(series_data(run)) == 1003


def test_a_chart_of_a_long_series_uses_the_index(run: Run) -> None:
    for number in range(20):
        add_many_points(run, f"a/b{number}", [1.0] * 2000)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE arborist_point")
        cursor.execute(
            "EXPLAIN SELECT 1 FROM arborist_point WHERE series_id = ANY(%s) AND step BETWEEN 0 AND 100",
            [[Series.objects.get(run=run, name="a/b3").id]],
        )
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "point_chart" in plan
