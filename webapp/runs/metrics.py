"""Metric points for charts: bucketed in SQL, so a series of millions costs a chart's worth of rows.

A bucket is a power of two of steps wide, so its borders stay where they are while the run grows. It keeps
minimum and maximum, so a single spike stays visible. NaN and infinity enter no number; they are listed apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import connection

from webapp.limits import MAX_CHART_POINTS
from webapp.runs.models import Run, Series

_FINITE = "p.value <> 'NaN'::float8 AND p.value <> 'Infinity'::float8 AND p.value <> '-Infinity'::float8"
_SOURCE = """
    FROM arborist_point p JOIN unnest(%(ids)s::bigint[], %(widths)s::bigint[]) AS w (series_id, width)
    ON w.series_id = p.series_id WHERE p.superseded = %(superseded)s AND p.step BETWEEN %(low)s AND %(high)s
    """
# Sums of very large values overflow, which PostgreSQL makes an error; scaled by a power of two they do not.
# What is so small that scaling would underflow (an error, too) counts as 0 in a mean.
_SCALE = 2.0**-64


def series_data(
    run: Run,
    names: Sequence[str] | None = None,
    *,
    max_points: int = 1000,
    from_step: int | None = None,
    to_step: int | None = None,
    superseded: bool = False,
) -> list[dict[str, Any]]:
    """One dict per series: `name, n_points, bucketed, step, value, min, max, last, n, nonfinite,
    n_nonfinite`.

    `value` is the bucket's mean and `step` its last step; `nonfinite` has one entry per bucket and kind.
    `n_points` counts what is in the range of steps. Four queries at most. Names that the run has not logged
    are left out. `superseded`: only what a later attempt went over again, instead of what counts.
    """
    max_points = max(1, min(max_points, MAX_CHART_POINTS))
    wanted = Series.objects.filter(run=run).order_by("name")
    if names is not None:
        wanted = wanted.filter(name__in=[name for name in names if "\x00" not in name])
    by_id = dict(wanted.values_list("id", "name"))
    if not by_id:
        return []
    given: dict[str, Any] = {
        "ids": list(by_id),
        "low": from_step or 0,
        "high": MAX_STEP if to_step is None else to_step,
        "superseded": superseded,
        "scale": _SCALE,
        "tiny": 1e-280,
    }
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT p.series_id, count(*), min(p.step), max(p.step) FROM arborist_point p
            WHERE p.series_id = ANY(%(ids)s) AND p.superseded = %(superseded)s
                AND p.step BETWEEN %(low)s AND %(high)s
            GROUP BY 1
            """,
            given,
        )
        found = {series_id: (n, low, high) for series_id, n, low, high in cursor.fetchall()}
        given["ids"] = list(found)
        given["widths"] = [bucket_width(*found[series_id], max_points) for series_id in given["ids"]]
        cursor.execute(
            f"""
            SELECT p.series_id, max(p.step), count(*), min(p.value), max(p.value),
                   sum(CASE WHEN abs(p.value) < %(tiny)s THEN 0 ELSE p.value * %(scale)s END),
                   (array_agg(p.value ORDER BY p.step DESC, p.seq DESC))[1]
            {_SOURCE} AND {_FINITE}
            GROUP BY p.series_id, p.step / w.width ORDER BY p.series_id, p.step / w.width
            """,
            given,
        )
        buckets: dict[int, list[tuple[Any, ...]]] = {}
        for series_id, *bucket in cursor.fetchall():
            buckets.setdefault(series_id, []).append(tuple(bucket))
        cursor.execute(
            f"""
            SELECT p.series_id, min(p.step), p.value::text, count(*)
            {_SOURCE} AND NOT ({_FINITE})
            GROUP BY p.series_id, p.step / w.width, p.value::text ORDER BY 1, 2, 3
            """,
            given,
        )
        nonfinite: dict[int, list[tuple[int, str, int]]] = {}
        for series_id, step, value, n in cursor.fetchall():
            nonfinite.setdefault(series_id, []).append((step, _KINDS[value], n))
    series = []
    for place, series_id in enumerate(given["ids"]):
        rows = buckets.get(series_id, [])
        marks = nonfinite.get(series_id, [])
        series.append(
            {
                "name": by_id[series_id],
                "n_points": found[series_id][0],
                "bucketed": given["widths"][place] > 1,
                "step": [row[0] for row in rows],
                "value": [mean(*row[1:5]) for row in rows],
                "min": [row[2] for row in rows],
                "max": [row[3] for row in rows],
                "last": [row[5] for row in rows],
                "n": [row[1] for row in rows],
                "nonfinite": [{"step": step, "k": kind, "n": n} for step, kind, n in marks],
                "n_nonfinite": sum(n for _, _, n in marks),
            }
        )
    return sorted(series, key=lambda one: str(one["name"]))


MAX_STEP = 2**63 - 1
_KINDS = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}


def bucket_width(n: int, low: int, high: int, max_points: int) -> int:
    """Steps per bucket: 1 when all points fit, else the smallest power of two that is coarse enough."""
    if n <= max_points:
        return 1
    width = 1
    while high // width - low // width + 1 > max_points:
        width *= 2
    return width


def mean(n: int, low: float, high: float, scaled_sum: float) -> float:
    """The mean back from its scaled sum; rounding never takes it out of [low, high]."""
    return min(max(scaled_sum / n / _SCALE, low), high)
