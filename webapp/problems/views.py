"""Pages of problems: which have recorded trees, what became of one over training, two trees side by side, all
trees of a step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET

from trainer.payload import DamagedTreeError
from trainer.tree import CreditState, RolloutTree
from webapp.errors import RequestError
from webapp.limits import PAGE_SIZE
from webapp.problems import querysets
from webapp.problems.aggregate import N_BINS, NO_VALUE, Bins, DepthRow, by_depth, merge, nodes_in
from webapp.problems.history import MAX_BANDS, OPENING_WORDS, Answer, answers_of, bands, clusters, openings_of
from webapp.projects.access import get_project, get_tree
from webapp.runs.models import ACTIVE
from webapp.runs.origin import how_made
from webapp.runs.views import page_cursor, run_context
from webapp.trees.columns import columns_path
from webapp.trees.models import StoredTree
from webapp.trees.nodes import nearest_node, node_json, text_start, usual_colour
from webapp.trees.opened import OpenTree, open_tree, words_of
from webapp.trees.querysets import ICICLE_MAX_NODES, icicle, steps_with_trees, tree_row
from webapp.trees.views import one_of
from webapp.trees.words import CREDIT_WORDS

MAX_WORDS_LETTERS = 200
MAX_SPELLINGS_SHOWN = 8
OPENING_CELLS = 24
MAX_CELL_NODES = 200
MAX_DEPTH_ROWS = 200
MAX_CHILDREN_SHOWN = 24
MAX_NAME_LETTERS = 2000
COLOURS = ("advantage", "value", "verdict", "entropy")


@require_GET
def problem_list(request: HttpRequest, slug: str) -> HttpResponse:
    """The problems of which the project's runs have trees, by id."""
    project = get_project(request, slug)
    words = request.GET.get("q", "").replace("\0", "")[:MAX_WORDS_LETTERS].strip()
    after = request.GET.get("after", "").replace("\0", "")
    again = request.GET.get("again", "") == "1"
    rows, following, n_looked = querysets.problems_page(
        project, after=after, words=words, again=again, limit=PAGE_SIZE
    )
    further = QueryDict(mutable=True)
    further.update(({"q": words} if words else {}) | ({"again": "1"} if again else {}))
    if following is not None:
        further["after"] = following
    context = {
        "project": project,
        "problems": rows,
        "words": words,
        "again": again,
        "after": after,
        "n_looked": n_looked,
        "next": further.urlencode() if following is not None else "",
    }
    return render(request, "problems/list.html", context)


# ------------------------------------------------------------------------------------------------ one problem


@require_GET
def problem_history(request: HttpRequest, slug: str, problem: str) -> HttpResponse:
    """One problem over the steps of every run that has trees of it."""
    project = get_project(request, slug)
    if "\0" in problem:
        raise Http404
    known = querysets.runs_with_problem(project, problem)
    if not known:
        raise Http404
    chosen = _chosen_runs(request, known)
    first, last = page_cursor(request, "from"), page_cursor(request, "to")
    runs = querysets.history(chosen, problem, first, last)
    querysets.choose_frames(runs)
    read = _read_frames(runs)
    reference, n_unread = read["reference"], read["n_unread"]
    rows = [row for run in runs for row in run["rows"]]
    steps = sorted({frame["step"] for run in runs for frame in run["frames"]})
    context = {
        "project": project,
        "problem": problem,
        "prompt": rows[-1]["prompt"] if rows else "",
        "reference": reference,
        "runs": runs,
        "others": [run for run in known if run["id"] not in {one["id"] for one in chosen}],
        "is_growing": any(run["status"] in ACTIVE for run in runs),
        "chosen": request.GET.get("runs", ""),
        "from": first,
        "to": last,
        "first": min(run["first"] for run in chosen),
        "last": max(run["last"] for run in chosen),
        "n_rows": sum(run["n_rows"] for run in runs),
        "n_frames": sum(len(run["frames"]) for run in runs),
        "n_unread": n_unread,
        "ranges": _ranges(runs),
        "openings": read["openings"],
        "opening_words": OPENING_WORDS,
        "opening_shares": [item["shares"] for item in read["openings"]],
        "max_bands": MAX_BANDS,
        "n_openings": read["n_openings"],
        "steps": steps,
        "history": {
            "slug": project.slug,
            "problem": problem,
            "is_chosen": "runs" in request.GET,
            "known": {run["id"]: run["n_trees"] for run in chosen},
            "runs": [_for_script(run) for run in runs],
            "steps": steps,
        },
    }
    return render(request, "problems/detail.html", context)


def _chosen_runs(request: HttpRequest, known: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those the address names (`?runs=3,5`), else the newest eight. Unknown ones: Http404."""
    text = request.GET.get("runs", "")
    if not text:
        return list(known[: querysets.MAX_HISTORY_RUNS])
    by_id = {str(run["id"]): run for run in known}
    names = list(dict.fromkeys(text.split(",")))[: querysets.MAX_HISTORY_RUNS]
    if not all(name in by_id for name in names):
        raise Http404
    return [by_id[name] for name in names]


def _read_frames(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Read the frames' payloads: each gets its `icicle`, each run its `bands`. What they all open with comes
    back, with how many frames were not read.
    """
    # Turn by turn, so that a budget that runs out cuts all runs at the same place.
    most = max((len(run["frames"]) for run in runs), default=0)
    order = [run["frames"][place] for place in range(most) for run in runs if place < len(run["frames"])]
    trees: dict[int, RolloutTree] = {}
    icicles: dict[int, Any] = {}
    for tree_id, payload, tree in querysets.read_trees([frame["id"] for frame in order]):
        if tree is not None:
            trees[tree_id] = tree
            icicles[tree_id] = icicle(payload) or top_rows(tree)
    for run in runs:
        for frame in run["frames"]:
            frame["icicle"] = icicles.get(frame["id"])
            frame["url"] = reverse("tree-detail", args=[frame["id"]])
            frame["turns"] = [turn["words"] for turn in run["turns"] if turn["step"] == frame["step"]]
        by_step: dict[int, Counter[Answer]] = {}
        for frame in run["frames"]:
            if frame["id"] in trees:
                by_step.setdefault(frame["step"], Counter()).update(answers_of(trees[frame["id"]]))
        run["band_steps"] = list(by_step)
        run["bands"] = [
            {
                "text": band.answer.text if band.answer else "",
                "verdict": band.answer.verdict if band.answer else "others",
                "counts": band.counts,
                "total": band.total,
                "first": next(step for step, n in zip(run["band_steps"], band.counts, strict=True) if n),
                "last": max(step for step, n in zip(run["band_steps"], band.counts, strict=True) if n),
            }
            for band in bands(list(by_step.values()))
        ]
        answers = sum(band["total"] for band in run["bands"])
        for band in run["bands"]:
            band["share"] = band["total"] / answers
    every = sorted((frame for frame in order if frame["id"] in trees), key=lambda frame: frame["step"])
    openings, n_openings = _openings(every, trees)
    return {
        "openings": openings,
        "n_openings": n_openings,
        "n_unread": len(order) - len(every),
        "reference": next(iter(trees.values())).reference_answer if trees else "",
    }


def top_rows(tree: RolloutTree) -> dict[str, Any] | None:
    """A large tree's first rows in miniature, as wide as what lies below; None when not even one fits."""
    starts = np.searchsorted(tree.depths(), np.arange(int(tree.depths().max()) + 2))
    row = int(np.searchsorted(starts, ICICLE_MAX_NODES, side="right")) - 1
    n = int(starts[row])
    if n <= 1:
        return None
    is_end = np.bincount(tree.parent[1:n], minlength=n) == 0
    numbers = tree.advantage if np.isfinite(tree.advantage[:n]).any() else tree.value
    drawn = {
        "parent": tree.parent[:n].tolist(),
        "state": tree.credit_state[:n].tolist(),
        "verdict": tree.verdict[:n].tolist(),
        "copies": np.where(is_end, np.maximum(tree.answer_counts()[:n], 1), 0).tolist(),
        "advantage": [round(float(one), 4) if np.isfinite(one) else None for one in numbers[:n]],
        "rows_left_out": len(starts) - 1 - row,
    }
    return drawn if numbers is tree.advantage else {**drawn, "value": drawn["advantage"]}


def _openings(
    frames: Sequence[dict[str, Any]], trees: dict[int, RolloutTree]
) -> tuple[list[dict[str, Any]], int]:
    """The largest clusters of first words, each with its share over the steps in 24 cells at most."""
    opened = [openings_of(trees[frame["id"]]) for frame in frames]
    found, n_clusters = clusters(opened)
    if not found:
        return [], 0
    steps = [frame["step"] for frame in frames]
    low, high = steps[0], steps[-1]
    n_cells = min(OPENING_CELLS, len(set(steps)))
    width = max(high - low, 1)
    cell_of = [min((step - low) * n_cells // width, n_cells - 1) for step in steps]
    whole = [0] * n_cells
    for cell, of_frame in zip(cell_of, opened, strict=True):
        whole[cell] += sum(one.count for one in of_frame)
    shown = []
    for cluster in found:
        cells = [0] * n_cells
        for cell, n in zip(cell_of, cluster.counts, strict=True):
            cells[cell] += n
        seen = [step for step, n in zip(steps, cluster.counts, strict=True) if n]
        shown.append(
            {
                "text": cluster.text,
                "total": cluster.total,
                "value_mean": cluster.value_mean,
                "first": seen[0],
                "last": seen[-1],
                "others": cluster.others[:MAX_SPELLINGS_SHOWN],
                "n_others": len(cluster.others),
                "shares": [
                    round(n / all_of, 3) if all_of else None for n, all_of in zip(cells, whole, strict=True)
                ],
            }
        )
    return shown, n_clusters


def _ranges(runs: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Ranges of steps, so short that all their trees are shown; none where all are."""
    if all(len(run["frames"]) == run["n_rows"] for run in runs):
        return []
    steps = sorted({row["step"] for run in runs for row in run["rows"]})
    each = max(querysets.MAX_FRAMES // len(runs), 2)
    return [(part[0], part[-1]) for part in (steps[at : at + each] for at in range(0, len(steps), each))][:20]


def _for_script(run: dict[str, Any]) -> dict[str, Any]:
    frames = ("id", "step", "value", "n_correct", "answers", "icicle", "url")
    return {
        "id": run["id"],
        "name": run["name"],
        "colour": run["colour"],
        "turns": run["turns"],
        "points": points(run["rows"]),
        "frames": [{name: frame[name] for name in frames} for frame in run["frames"]],
        "bands": [{name: band[name] for name in ("text", "verdict", "counts")} for band in run["bands"]],
        "band_steps": run["band_steps"],
    }


def points(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the curves show: a point per step, over all its trees: mean value, share of correct answers. None
    where there is neither.
    """
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row)
    found = []
    for step, trees in by_step.items():
        values = [tree["value"] for tree in trees if tree["value"] is not None]
        answers = sum(tree["answers"] for tree in trees)
        found.append(
            {
                "step": step,
                "value": sum(values) / len(values) if values else None,
                "solved": sum(tree["n_correct"] for tree in trees) / answers if answers else None,
            }
        )
    return found


# ------------------------------------------------------------------------------------------- side by side


@require_GET
def beside_chosen(request: HttpRequest) -> HttpResponseBase:
    """Two boxes were ticked: the page that shows both trees."""
    chosen = [text for text in request.GET.getlist("tree") if text.isascii() and text.isdecimal()]
    if len(chosen) != 2 or any(len(text) > 18 for text in chosen):
        return render(request, "problems/choose_two.html", {"n": len(chosen)}, status=400)
    return redirect("trees-beside", *map(int, chosen))


@require_GET
def trees_beside(request: HttpRequest, tree_id: int, other_id: int) -> HttpResponse:
    """Two trees side by side. `n` names a node; a tree that has not got it shows the nearest one above."""
    name = request.GET.get("n", "0")
    sides = [_side(request, one, name) for one in (tree_id, other_id)]
    if len(name) > MAX_NAME_LETTERS:
        raise Http404
    rows = [side.pop("depths") for side in sides]
    depths = [
        {"depth": depth, "cells": [cells[depth] if depth < len(cells) else None for cells in rows]}
        for depth in range(min(max(map(len, rows)), MAX_DEPTH_ROWS))
    ]
    damaged = any(side["node"] is None for side in sides)
    usual = sides[0].get("usual_colour", "value")
    notes: list[str] = []
    color = one_of(request, "color", (usual, *(name for name in COLOURS if name != usual)), notes)
    context = {
        "sides": sides,
        "depths": depths,
        "n_rows_left_out": max(max(map(len, rows)) - MAX_DEPTH_ROWS, 0),
        "n": name,
        "project": sides[0]["run"].project,
        "colours": COLOURS,
        "color": color,
        "notes_on_address": notes,
        "usual_colour": usual,
    }
    return render(request, "problems/beside.html", context, status=422 if damaged else 200)


def _side(request: HttpRequest, tree_id: int, name: str) -> dict[str, Any]:
    stored = get_tree(request, tree_id)
    side: dict[str, Any] = {
        "tree": tree_row(stored),
        "columns_path": columns_path(stored.id),
        "answers": stored.n_leaves if stored.n_answers is None else stored.n_answers,
        "run": stored.run,
        "node": None,
        "depths": [],
    }
    try:
        return side | _node_of(stored, open_tree(stored), name)
    except RequestError as damage:
        return {**side, "reason": damage.detail}
    except DamagedTreeError as damage:
        return {**side, "reason": words_of(damage)}


def _node_of(stored: StoredTree, opened: OpenTree, name: str) -> dict[str, Any]:
    tree, made = opened.tree, how_made(stored.run)
    found, is_there = nearest_node(tree, name)
    children = opened.children(found)
    return {
        "node": node_json(opened, found, made),
        "is_there": is_there,
        "children": [
            {"node": opened.name(child), "value": float(tree.value[child])}
            for child in children[:MAX_CHILDREN_SHOWN]
        ],
        "n_children": len(children),
        "n_more_children": len(children) - MAX_CHILDREN_SHOWN,
        "usual_colour": usual_colour(opened, made),
        "depths": by_depth([tree], bins_of([tree])),
    }


# ------------------------------------------------------------------------------------------------ all trees


@require_GET
def all_trees(request: HttpRequest, run_id: int) -> HttpResponse:
    """All trees of a step, or of a range of steps, in one picture and one table."""
    context = run_context(request, run_id, "trees")
    run = context["run"]
    steps = steps_with_trees(run)
    first = page_cursor(request, "step")
    if first is None:
        first = steps[-1]["step"] if steps else 0
    last = page_cursor(request, "to")
    last = first if last is None else max(last, first)
    summaries, n_trees = querysets.trees_between(run, first, last)
    by_id = {row["id"]: row for row in summaries}
    read = [(by_id[tree_id], tree) for tree_id, _, tree in querysets.read_trees(list(by_id))]
    trees = [(row, tree) for row, tree in read if tree is not None]
    bins = bins_of([tree for _, tree in trees])
    rows = by_depth([tree for _, tree in trees], bins)
    cell = _cell(request)
    names = [f"{low:.1f}" for low, _ in map(bins.edges, range(N_BINS))]
    picture = merge([tree for _, tree in trees], bins)
    query = QueryDict(mutable=True)
    query.update({"step": str(first)} | ({"to": str(last)} if last > first else {}))
    context |= {
        "steps": steps,
        "step": first,
        "to": last,
        "n_trees": n_trees,
        "n_read": len(trees),
        "n_damaged": len(read) - len(trees),
        "n_nodes": sum(tree.n_nodes for _, tree in trees),
        "n_leaves": picture.leaves[0],
        "newest": steps[-1]["step"] if steps else 0,
        "rows": [_table_row(row, query.urlencode(), cell, names) for row in rows[:MAX_DEPTH_ROWS]],
        "n_rows_left_out": max(len(rows) - MAX_DEPTH_ROWS, 0),
        "bin_names": names,
        "bins": bins,
        "picture": {
            "parent": picture.parent,
            "bin": picture.bin,
            "leaves": picture.leaves,
            "nodes": picture.nodes,
            "low": bins.low,
            "high": bins.high,
            "query": query.urlencode(),
        },
        "n_left_out": picture.n_left_out,
        "query": query.urlencode(),
        "cell": _cell_nodes(trees, bins, cell) if cell else None,
    }
    return render(request, "problems/all_trees.html", context)


def bins_of(trees: Sequence[RolloutTree]) -> Bins:
    """Bins that hold every value of these trees."""
    values = [value for tree in trees if len(value := tree.value[np.isfinite(tree.value)])]
    return Bins.over(
        min((float(value.min()) for value in values), default=0.0),
        max((float(value.max()) for value in values), default=1.0),
    )


def _cell(request: HttpRequest) -> tuple[int, int] | None:
    """`depth` and `bin` of the address. Half of it, or a bin that is none: Http404."""
    depth, place = page_cursor(request, "depth"), page_cursor(request, "bin")
    if depth is None and place is None:
        return None
    if depth is None or place is None or place > NO_VALUE:
        raise Http404
    return depth, place


def _table_row(
    row: DepthRow, query: str, cell: tuple[int, int] | None, names: Sequence[str]
) -> dict[str, Any]:
    most = max(int(row.bins.max()), 1)
    return {
        "depth": row.depth,
        "n_nodes": row.n_nodes,
        "value_mean": row.value_mean,
        "credited_share": row.credited_share,
        "flat_share": row.flat_share,
        "n_groups": row.n_groups,
        "n_flat": row.n_flat,
        "repeat_share": row.repeat_share,
        "n_siblings": row.n_siblings,
        "n_repeats": row.n_repeats,
        "cells": [
            {
                "n": int(n),
                "name": names[place] if place < N_BINS else "no value",
                # Five shades of the row's largest cell, so that a deep row does not drown a shallow one.
                "shade": 0 if not n else 1 + min(4, int(5 * n / most) if n < most else 4),
                "url": f"?{query}&depth={row.depth}&bin={place}#cell" if n else "",
                "current": cell == (row.depth, place),
            }
            for place, n in enumerate(row.bins.tolist())
        ],
    }


def _cell_nodes(
    trees: Sequence[tuple[dict[str, Any], RolloutTree]], bins: Bins, cell: tuple[int, int]
) -> dict[str, Any]:
    """The nodes of a cell, at most 200, with the trees they stand in."""
    depth, place = cell
    found: list[dict[str, Any]] = []
    n = n_trees = 0
    for row, tree in trees:
        nodes = nodes_in(tree, bins, depth, place)
        n, n_trees = n + len(nodes), n_trees + bool(nodes)
        for node in nodes[: max(MAX_CELL_NODES - len(found), 0)]:
            name = tree.name(node)
            found.append(
                {
                    "step": row["step"],
                    "index": row["index"],
                    "problem_id": row["problem_id"],
                    "node": name,
                    "url": reverse("tree-detail", args=[row["id"]]) + (f"?n={name}" if node else ""),
                    "value": float(tree.value[node]),
                    "advantage": float(tree.advantage[node]),
                    "has_advantage": bool(np.isfinite(tree.advantage[node])),
                    "credit_words": CREDIT_WORDS[CreditState(int(tree.credit_state[node]))],
                    "text_start": text_start(tree.texts[node]),
                }
            )
    low, high = bins.edges(place) if place < N_BINS else (None, None)
    return {
        "depth": depth,
        "bin": place,
        "low": low,
        "high": high,
        "n": n,
        "n_trees": n_trees,
        "nodes": found,
    }
