"""Pages of rollout trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET

from trainer.comparison import estimators
from trainer.payload import DamagedTreeError
from trainer.token_means import mean_mismatch
from trainer.tree import RolloutTree
from webapp.errors import RequestError
from webapp.probes.querysets import node_probes
from webapp.projects.access import Role, get_tree, may
from webapp.runs.events import devices_of
from webapp.runs.origin import how_made, method_of_run
from webapp.runs.panels import system_panels
from webapp.runs.querysets import has_overwritten, resumes_of, run_states
from webapp.runs.views import run_context
from webapp.trees import comparing
from webapp.trees.columns import columns_path
from webapp.trees.estimator_table import compared, flips_under, node_rows, tree_rows
from webapp.trees.growing import growing, growing_row
from webapp.trees.inspector import inspector_context
from webapp.trees.lists import ListAddress, list_beside, tree_list
from webapp.trees.models import StoredTree
from webapp.trees.nodes import find_node, nearest_node, outline, usual_colour
from webapp.trees.opened import OpenTree, open_tree, words_of
from webapp.trees.querysets import steps_with_trees, tree_row
from webapp.trees.scale import advantage_limit
from webapp.trees.words import COLOUR_WORDS, ORDER_WORDS, SCALE_WORDS, WIDTH_WORDS
from webapp.verifications.querysets import node_verifications

VIEWS = ("icicle", "graph", "outline")
COLOURS = (
    "advantage", "value", "change", "verdict", "entropy", "logprob", "mismatch", "policy", "tokens",
    "difference", "none",
)  # fmt: skip


def tells_damage(page: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """For a page of one tree, of which a part may turn out to be damaged when it is looked at."""

    @wraps(page)
    def told(request: HttpRequest, tree_id: int, **rest: Any) -> HttpResponseBase:
        try:
            return page(request, tree_id, **rest)
        except DamagedTreeError as damage:
            _, _, context = tree_context(request, tree_id)
            return damaged(request, context | {"reason": words_of(damage)})

    return told


@require_GET
def run_trees(request: HttpRequest, run_id: int) -> HttpResponse:
    """Trees of a run: of one step (the newest, unless the address names another), of a range, or of all."""
    context = run_context(request, run_id, "trees")
    run = context["run"]
    try:
        address = ListAddress.read(request.GET.dict())
        has_advantages = run.config.get("objective", {}).get("kind") == "policy"
        listed = tree_list(run, address, has_advantages=has_advantages)
    except RequestError as refused:
        context |= {"refused": refused.detail, "start": ListAddress().query()}
        return render(request, "runs/trees.html", context, status=refused.status)
    context |= listed | {"steps": steps_with_trees(run, address.sort)}
    return render(request, "runs/trees.html", context, status=400 if listed["filter_error"] else 200)


@require_GET
def run_system(request: HttpRequest, run_id: int) -> HttpResponse:
    """What the engine is at while it samples, and its curves."""
    context = run_context(request, run_id, "system")
    now = growing(context["run"])
    context |= {
        "catalogue": system_panels(),
        "resumes": resumes_of(context["run"]),
        "has_overwritten": has_overwritten(context["run"]),
        "overlay_runs": [],
        "ancestors": [],
        "occupancy": now["occupancy"],
        "growing_step": now["step"],
        "trained_on": next(reversed(devices_of(context["run"]).values()), ""),
    }
    return render(request, "runs/system.html", context)


@require_GET
def growing_tree(request: HttpRequest, run_id: int) -> HttpResponse:
    """One tree while it is sampled. The same address leads to the recorded tree once there is one."""
    context = run_context(request, run_id, "trees")
    run = context["run"]
    step, problem = request.GET.get("step", ""), request.GET.get("problem", "")
    if not (step.isascii() and step.isdecimal() and len(step) <= 18) or "\0" in problem:
        raise Http404
    stored = StoredTree.objects.filter(run=run, superseded=False, step=int(step), problem_id=problem)
    if (tree_id := stored.order_by("index").values_list("id", flat=True).first()) is not None:
        return redirect("tree-detail", tree_id)
    now = growing(run)
    tree = next((one for one in now["trees"] if one["problem_id"] == problem), None)
    is_growing = tree is not None and now["step"] == int(step)
    context |= {
        "step": int(step),
        "problem": problem,
        "tree": growing_row(tree) if tree is not None and is_growing else None,
        # Its step is still under way, or just ended: the page looks again.
        "may_come": run.is_active and (is_growing or int(step) > (run.step or 0)),
        "n_recorded": run.config.get("recording", {}).get("trees_per_step"),
    }
    return render(request, "trees/growing.html", context, status=200 if context["may_come"] else 404)


@require_GET
@tells_damage
def tree_detail(request: HttpRequest, tree_id: int) -> HttpResponse:
    """One tree: canvas, outline, the selected node and its path."""
    stored, opened, context = tree_context(request, tree_id)
    if opened is None:
        return damaged(request, context)
    asked = request.GET.get("n", "0")
    node, is_there = nearest_node(opened.tree, asked)
    if not is_there:  # an address from elsewhere: the scripts read the node from it too, so it is put right
        said = f"This tree has no node {asked[:40]}. The nearest one above it is shown."
        messages.warning(request, said.replace("\0", "�"))
        address = request.GET.copy()
        address["n"] = opened.name(node)
        return redirect(f"{request.path}?{address.urlencode()}")
    made = how_made(stored.run)
    rows, is_cut = outline(opened, node)
    notes: list[str] = []
    view = one_of(request, "view", VIEWS, notes)
    # Without advantages a tree is told apart by its values.
    usual = usual_colour(opened, made)
    colour = one_of(request, "color", (usual, *(name for name in COLOURS if name != usual)), notes)
    limit = advantage_limit(stored.run, {stored.id: opened.tree})
    context |= {
        # An imported tree has no policy of ours to sample from.
        **({"probed": {}} if made.imported else node_probes(stored.id, opened.name(node))),
        "method": method_of_run(stored.run),
        **inspector_context(opened, node, made),
        "verifying": node_verifications(stored, opened, node, made.config),
        "outline": rows,
        "outline_cut": is_cut,
        "notes_on_address": notes,
        **list_beside(stored, request.GET.get("list", "")),
        "columns_path": columns_path(stored.id),
        "view": view,
        "color": colour,
        "usual_colour": usual,
        "run_limit": limit,
        "choices": _choices(request, opened.tree, colour, has_limit=limit is not None),
    }
    # Of a huge tree it is told when it is asked for.
    undefined = {row["name"]: row["reason"] for row in context["node_estimators"] or ()}
    context["estimators"] = [
        {"name": one.name, "title": one.title, "reason": undefined.get(one.name, "")} for one in estimators()
    ]
    return render(request, "trees/detail.html", context)


def _choices(
    request: HttpRequest, tree: RolloutTree, colour: str, *, has_limit: bool
) -> list[dict[str, Any]]:
    """The choices above a tree as the address has them: `id, label, options` of (value, words, is chosen)."""

    def choice(
        name: str, label: str, words: Mapping[str, str], asked: str | None, usual: str
    ) -> dict[str, Any]:
        chosen = asked if asked in words else usual
        options = [(value, text, value == chosen) for value, text in words.items()]
        return {"id": name, "label": label, "options": options}

    signals = {
        name: text
        for name, text in COLOUR_WORDS.items()
        if name != "mismatch" or mean_mismatch(tree) is not None
    }
    scales = {name: text for name, text in SCALE_WORDS.items() if name != "run" or has_limit}
    address = request.GET
    return [
        choice("width", "Width", WIDTH_WORDS, address.get("width"), "leaves"),
        choice("order", "Order", ORDER_WORDS, address.get("order"), "sampling"),
        choice("colour", "Colour", signals, colour, "value"),
        choice("scale", "Scale", scales, address.get("scale"), next(iter(scales))),
    ]


@require_GET
@tells_damage
def node_page(request: HttpRequest, tree_id: int, name: str) -> HttpResponse:
    """One node as a plain page: where every node link leads without scripts."""
    stored, opened, context = tree_context(request, tree_id)
    if opened is None:
        return damaged(request, context)
    node = find_or_404(opened.tree, name)
    made = how_made(stored.run)
    context |= {} if made.imported else node_probes(stored.id, opened.name(node))
    context |= inspector_context(opened, node, made)
    context["verifying"] = node_verifications(stored, opened, node, made.config)
    return render(request, "trees/node.html", context)


@require_GET
@tells_damage
def siblings_page(request: HttpRequest, tree_id: int) -> HttpResponse:
    """The siblings of a node beside each other."""
    _, opened, context = tree_context(request, tree_id)
    if opened is None:
        return damaged(request, context)
    node = find_or_404(opened.tree, request.GET.get("n", "0"))
    notes: list[str] = []
    sort = one_of(request, "sort", comparing.SORTS, notes)
    context |= {"notes_on_address": notes}
    context |= {"name": opened.name(node), "siblings": comparing.siblings_json(opened, node, sort)}
    return render(request, "trees/siblings.html", context)


@require_GET
@tells_damage
def diff_page(request: HttpRequest, tree_id: int) -> HttpResponse:
    """Two nodes against each other."""
    _, opened, context = tree_context(request, tree_id)
    if opened is None:
        return damaged(request, context)
    a, b = (find_or_404(opened.tree, request.GET.get(side, "0")) for side in ("a", "b"))
    context |= {"names": [opened.name(a), opened.name(b)], "diff": comparing.diff_json(opened, a, b)}
    return render(request, "trees/diff.html", context)


@require_GET
@tells_damage
def estimators_page(request: HttpRequest, tree_id: int) -> HttpResponse:
    """A node and its whole tree under every estimator."""
    stored, opened, context = tree_context(request, tree_id)
    if opened is None:
        return damaged(request, context)
    node = find_or_404(opened.tree, request.GET.get("n", "0"))
    found = compared(opened, how_made(stored.run))
    whole = tree_rows(found)
    rows = [{**row, "whole": of_tree} for row, of_tree in zip(node_rows(node, found), whole, strict=True)]
    context |= {"name": opened.name(node), "rows": rows}
    if under := request.GET.get("under"):
        try:
            context["flips"] = flips_under(opened, found, under)
        except RequestError as missing:
            raise Http404(missing.detail) from missing
    return render(request, "trees/estimators.html", context)


def find_or_404(tree: RolloutTree, name: str) -> int:
    try:
        return find_node(tree, name)
    except RequestError as missing:
        raise Http404(missing.detail) from missing


def tree_context(request: HttpRequest, tree_id: int) -> tuple[StoredTree, OpenTree | None, dict[str, Any]]:
    """The stored tree, the tree itself (None: damaged, and `reason` says how), and what its pages show."""
    stored = get_tree(request, tree_id)
    run = stored.run
    (state,) = run_states([run])
    context = {
        "project": run.project,
        "role": stored.role,
        "run": run,
        "state": state,
        "tree": tree_row(stored),
        "can_control": may(stored.role, Role.EDITOR),
    }
    try:
        return stored, open_tree(stored), context
    except RequestError as damage:
        return stored, None, {**context, "reason": damage.detail}


def damaged(request: HttpRequest, context: dict[str, Any]) -> HttpResponse:
    return render(request, "trees/damaged.html", context, status=422)


def one_of(request: HttpRequest, name: str, allowed: Sequence[str], notes: list[str]) -> str:
    """A query parameter from a short list, whose first entry is the default. Of anything else a sentence is
    added to `notes`, and the default is taken: an address from elsewhere still shows its tree.
    """
    value = request.GET.get(name, allowed[0])
    if value in allowed:
        return value
    notes.append(
        f"The address asks for {name}={value[:40]}, which there is not, so {allowed[0]} is shown. There is: "
        f"{', '.join(allowed)}."
    )
    return allowed[0]
