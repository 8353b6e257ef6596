"""Problems with recorded trees, the trees of one of them over training, and those of a range of steps.

The list of problems is a keyset page over `PROBLEM_ORDER`, the trees of one over `(run, problem_id, step)`;
whatever reads payloads has a budget, and says when it ended before the trees did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.db import connection
from django.db.models import Count, F, Func, IntegerField, Max, Min, Q
from django.db.models.functions import Coalesce
from django.urls import reverse

from trainer.tree import RolloutTree
from webapp.problems.history import spread, turning_points
from webapp.projects.models import Project
from webapp.runs.models import Run
from webapp.trees.models import PROBLEM_ORDER_SQL, StoredTree

MAX_WALKED = 2000  # problems looked at for one page of a filtered list
MAX_PROBES = 100_000  # of those, times the runs they may be in
MAX_RUNS = 1000  # of a project that are looked through, the newest ones
MAX_HISTORY_RUNS = 8
MAX_HISTORY_ROWS = 10_000
MAX_FRAMES = 160  # of all runs of a page together
MAX_STRIP_CELLS = 40
MAX_PAYLOAD_BYTES = 32_000_000  # as stored, of one page
MAX_NODES = 200_000  # of one page
MAX_STEP_TREES = 512
READ_AT_ONCE = 32

_ORDER = PROBLEM_ORDER_SQL.format("t.problem_id")
_ORDER_OF_WALK = PROBLEM_ORDER_SQL.format("walk.problem_id")

_HISTORY = ("id", "run_id", "step", "index", "value", "n_correct", "prompt")

# Of trees stored before answers were counted there are as many as leaves.
N_ANSWERS = Coalesce("n_answers", "n_leaves")


def payload_bytes() -> Func:
    """Size of a payload as it is stored, without reading it."""
    return Func(F("payload"), function="octet_length", output_field=IntegerField())


# ------------------------------------------------------------------------------------------------ list


def problems_page(
    project: Project, *, after: str = "", words: str = "", again: bool = False, limit: int = 100
) -> tuple[list[dict[str, Any]], str | None, int]:
    """One page of the problems of which a project's runs have trees, by id, 2 before 10: rows, the id to pass
    as `after` for the next page, and how many problems were looked at.

    `words`: each must stand in the id or the prompt, whatever its capitals. `again`: only those with two
    trees or more. A filtered page may be short where few match: it ends after 2,000 problems. Five queries.
    """
    runs = list(Run.objects.filter(project=project).order_by("-id").values_list("id", flat=True)[:MAX_RUNS])
    if not runs:
        return [], None, 0
    parts = words.casefold().split()[:10]
    most = max(limit, min(MAX_WALKED, MAX_PROBES // len(runs))) if parts or again else limit
    # The next id of any run, again and again: each costs one look into the index per run, however many trees
    # a problem has.
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH RECURSIVE walk(problem_id, place) AS (
                SELECT %(after)s::text, 0
                UNION ALL
                SELECT (
                    SELECT t.problem_id FROM unnest(%(runs)s::bigint[]) r (id)
                    CROSS JOIN LATERAL (
                        SELECT {_ORDER} AS place, t.problem_id FROM arborist_tree t
                        WHERE t.run_id = r.id AND NOT t.superseded
                          AND ({_ORDER}, t.problem_id) > ({_ORDER_OF_WALK}, walk.problem_id)
                        ORDER BY {_ORDER}, t.problem_id LIMIT 1
                    ) t
                    ORDER BY t.place, t.problem_id LIMIT 1
                ), place + 1
                FROM walk WHERE problem_id IS NOT NULL AND place <= %(most)s
            )
            SELECT w.problem_id, t.prompt, t.n > 1 FROM walk w
            CROSS JOIN LATERAL (
                SELECT min(prompt) AS prompt, count(*) AS n FROM (
                    SELECT left(t.prompt, 4000) AS prompt FROM arborist_tree t
                    WHERE t.run_id = ANY(%(runs)s) AND t.problem_id = w.problem_id AND NOT t.superseded
                    LIMIT 2
                ) two
            ) t
            WHERE w.place > 0 AND w.problem_id IS NOT NULL ORDER BY w.place
            """,  # noqa: S608 (the order is the index's)
            {"after": after, "runs": runs, "most": most},
        )
        walked: list[tuple[str, str, bool]] = cursor.fetchall()
    seen, more = walked[:most], len(walked) > most
    chosen: list[tuple[str, str]] = []
    last = None
    for number, (problem, prompt, came_again) in enumerate(seen):
        text = f"{problem} {prompt}".casefold()
        if all(part in text for part in parts) and (came_again or not again):
            chosen.append((problem, prompt))
            if len(chosen) == limit and (number + 1 < len(seen) or more):
                last, seen = problem, seen[: number + 1]
                break
    if last is None and more:
        last = seen[-1][0]
    return _problem_rows(runs, chosen), last, len(seen)


def _problem_rows(runs: Sequence[int], chosen: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """What a list says of each problem. Two queries."""
    ids = [problem for problem, _ in chosen]
    if not ids:
        return []
    trees = StoredTree.objects.filter(run_id__in=runs, problem_id__in=ids, superseded=False)
    numbers = {
        row["problem_id"]: row
        for row in trees.values("problem_id").annotate(
            n_trees=Count("id"), n_runs=Count("run", distinct=True), first=Min("step"), last=Max("step")
        )
    }
    solved = dict(
        trees.filter(n_correct__gt=0).values_list("problem_id").annotate(step=Min("step")).order_by()
    )
    # The newest tree is the one that was stored last, of whichever run.
    newest = {
        tree["problem_id"]: tree
        for tree in trees.order_by("problem_id", "-id")
        .distinct("problem_id")
        .values("problem_id", "value", "n_correct", answers=N_ANSWERS)
    }
    return [
        {
            "problem_id": problem,
            "prompt": prompt,
            **{name: numbers[problem][name] for name in ("n_trees", "n_runs", "first", "last")},
            "first_solved": solved.get(problem),
            **{name: newest[problem][name] for name in ("value", "n_correct", "answers")},
        }
        for problem, prompt in chosen
        if problem in numbers and problem in newest
    ]


# ------------------------------------------------------------------------------------------------ one problem


def runs_with_problem(project: Project, problem: str) -> list[dict[str, Any]]:
    """Runs that have trees of it, the newest first: `id, name, colour, status, n_trees, first, last`. One
    query.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT r.id, r.name, r.colour, r.status, t.n, t.first, t.last FROM arborist_run r
            CROSS JOIN LATERAL (
                SELECT count(*) AS n, min(step) AS first, max(step) AS last FROM arborist_tree
                WHERE run_id = r.id AND problem_id = %s AND NOT superseded
            ) t
            WHERE r.project_id = %s AND t.n > 0 ORDER BY r.id DESC LIMIT %s
            """,
            [problem, project.id, MAX_RUNS],
        )
        names = ("id", "name", "colour", "status", "n_trees", "first", "last")
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def history(
    runs: Sequence[dict[str, Any]], problem: str, first: int | None = None, last: int | None = None
) -> list[dict[str, Any]]:
    """Each run with `rows`, its trees of the problem in the order of steps, without payloads. At most 10,000
    of all runs together, the earliest ones; `n_rows` says how many there are in the range. Two queries.
    """
    trees = StoredTree.objects.filter(
        run_id__in=[run["id"] for run in runs], problem_id=problem, superseded=False
    )
    if first is not None:
        trees = trees.filter(step__gte=first)
    if last is not None:
        trees = trees.filter(step__lte=last)
    numbers = dict(trees.values_list("run_id").annotate(n=Count("id")).order_by())
    rows: dict[int, list[dict[str, Any]]] = {run["id"]: [] for run in runs}
    for tree in trees.order_by("step", "run_id", "index", "id").values(*_HISTORY, answers=N_ANSWERS)[
        :MAX_HISTORY_ROWS
    ]:
        rows[tree["run_id"]].append(tree)
    return [{**run, "rows": rows[run["id"]], "n_rows": numbers.get(run["id"], 0)} for run in runs]


def choose_frames(runs: Sequence[dict[str, Any]]) -> None:
    """Give each run `turns`, its turning points, and `frames`: all its rows, or as many as fit, evenly over
    the steps, with the turning points among them.
    """
    each = max(MAX_FRAMES // max(len(runs), 1), 2)
    for run in runs:
        rows = run["rows"]
        turns = turning_points([(row["n_correct"], row["answers"]) for row in rows])
        run["turns"] = [{"step": rows[turn.place]["step"], "words": turn.words} for turn in turns]
        keep = [turn.place for turn in turns] + [turn.place - 1 for turn in turns if turn.place]
        run["frames"] = [rows[place] for place in spread(len(rows), each, keep)]


def read_trees(ids: Sequence[int]) -> Iterator[tuple[int, bytes, RolloutTree | None]]:
    """(id, payload, tree) of as many as the budget allows, in the order given; None: it cannot be read. Ends
    early where the next one would go over the budget, but never before the first.
    """
    sizes = dict(
        StoredTree.objects.filter(id__in=ids).annotate(size=payload_bytes()).values_list("id", "size")
    )
    nodes = dict(StoredTree.objects.filter(id__in=ids).values_list("id", "n_nodes"))
    wanted: list[int] = []
    n_bytes = n_nodes = 0
    for tree_id in ids:
        n_bytes, n_nodes = n_bytes + sizes.get(tree_id, 0), n_nodes + nodes.get(tree_id, 0)
        if wanted and (n_bytes > MAX_PAYLOAD_BYTES or n_nodes > MAX_NODES):
            break
        wanted.append(tree_id)
    for start in range(0, len(wanted), READ_AT_ONCE):
        part = wanted[start : start + READ_AT_ONCE]
        payloads = dict(StoredTree.objects.filter(id__in=part).values_list("id", "payload"))
        for tree_id in part:
            if tree_id not in payloads:
                continue
            payload = bytes(payloads[tree_id])
            try:
                yield tree_id, payload, RolloutTree.from_payload(payload)
            except ValueError:
                yield tree_id, payload, None


# ------------------------------------------------------------------------------------------------ tree page


def strip(run: Run, problem: str, tree_id: int, step: int, index: int) -> dict[str, Any] | None:
    """The trees of the same problem in the same run: at most 40 `cells` around this one, `previous` and
    `next`, `place` (from 1) and `n` of all; None where this is the only one. Three queries.
    """
    trees = StoredTree.objects.filter(run=run, problem_id=problem, superseded=False)
    n = trees.count()
    if n < 2:
        return None
    n_before = trees.filter(
        Q(step__lt=step) | Q(step=step, index__lt=index) | Q(step=step, index=index, id__lte=tree_id)
    ).count()
    half = MAX_STRIP_CELLS // 2
    fields = ("id", "step", "index", "value", "n_correct", "n_leaves", "n_answers")
    # Rows compare as (step, index, id), so that two trees of one step stand in the order of the batch.
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            (SELECT {", ".join(f'"{name}"' for name in fields)} FROM arborist_tree
             WHERE run_id = %(run)s AND problem_id = %(problem)s AND NOT superseded
               AND (step, index, id) <= (%(step)s, %(index)s, %(id)s)
             ORDER BY step DESC, index DESC, id DESC LIMIT %(most)s)
            UNION ALL
            (SELECT {", ".join(f'"{name}"' for name in fields)} FROM arborist_tree
             WHERE run_id = %(run)s AND problem_id = %(problem)s AND NOT superseded
               AND (step, index, id) > (%(step)s, %(index)s, %(id)s)
             ORDER BY step, index, id LIMIT %(most)s)
            """,  # noqa: S608 (names of columns, from the line above)
            {
                "run": run.id, "problem": problem, "step": step, "index": index, "id": tree_id,
                "most": MAX_STRIP_CELLS,
            },
        )  # fmt: skip
        found = [dict(zip(fields, row, strict=True)) for row in cursor.fetchall()]
    found.sort(key=lambda row: (row["step"], row["index"], row["id"]))
    place = next((at for at, row in enumerate(found) if row["id"] == tree_id), None)
    if place is None:  # superseded: no longer one of them
        return None
    start = max(0, min(place - half, len(found) - MAX_STRIP_CELLS))
    cells = found[start : start + MAX_STRIP_CELLS]
    for row in cells:
        row["url"] = reverse("tree-detail", args=[row["id"]])
        row["current"] = row["id"] == tree_id
        row["answers"] = row["n_leaves"] if row["n_answers"] is None else row["n_answers"]
    at = place - start
    return {
        "cells": cells,
        "previous": cells[at - 1] if at else None,
        "next": cells[at + 1] if at + 1 < len(cells) else None,
        "n": n,
        "place": n_before,
    }


# ------------------------------------------------------------------------------------------------ all trees


def trees_between(run: Run, first: int, last: int) -> tuple[list[dict[str, Any]], int]:
    """Summaries of the trees of steps `first` to `last`, in order, at most 512; and how many there are."""
    trees = StoredTree.objects.filter(run=run, step__gte=first, step__lte=last, superseded=False)
    rows = trees.order_by("step", "index", "id").values("id", "step", "index", "problem_id", "prompt")
    return [dict(row) for row in rows[:MAX_STEP_TREES]], trees.count()
