"""API operations on rollout trees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, Any

import orjson
from django.http import HttpRequest, HttpResponse
from ninja import Router
from pydantic import Field

from webapp.errors import RequestError
from webapp.filters import FilterError
from webapp.projects.access import get_run, get_tree
from webapp.runs.api import Id, Limit
from webapp.runs.models import Run
from webapp.runs.origin import how_made, method_of_run
from webapp.trees.columns import columns, encoded
from webapp.trees.estimator_table import compared, difference, node_rows, tree_rows
from webapp.trees.growing import growing
from webapp.trees.lists import check_sort, read_filter
from webapp.trees.models import StoredTree
from webapp.trees.nodes import audit_json, find_node, node_json, number_of
from webapp.trees.opened import open_tree, read_tree
from webapp.trees.querysets import Scope, icicles_of, steps_with_trees, tree_row, trees_page
from webapp.trees.scale import advantage_limit
from webapp.trees.texts import MAX_BLOCKS, MAX_QUERY_LETTERS, find_text, text_starts
from webapp.trees.tokens import path_tokens

MAX_ICICLES = 100

router = Router(tags=["trees"])

Step = Annotated[int, Field(ge=0, le=2**63 - 1)]


@router.get("/runs/{int:run_id}/steps", summary="Steps that have trees")
def list_steps(request: HttpRequest, run_id: int, sort: str = "value") -> Any:
    run = get_run(request, run_id)
    return _unless_known(request, run, lambda: steps_with_trees(run, check_sort(sort)))


@router.get("/runs/{int:run_id}/trees", summary="Trees of a run: of a step, a range of steps, or all")
def list_trees(
    request: HttpRequest,
    run_id: int,
    step: Step | None = None,
    from_step: Step | None = None,
    to_step: Step | None = None,
    sort: str = "index",
    q: str = "",
    after: Id | None = None,
    limit: Limit = 100,
    icicles: bool = False,
) -> Any:
    """`sort` with - before it: the largest first; what is missing comes last either way. `q`: the filter
    language of the page. `after`: the `next` of the page before.
    """
    run = get_run(request, run_id)
    check_sort(sort)
    try:
        wanted = read_filter(q)
    except FilterError as wrong:
        told = {name: str(value) for name, value in wrong.as_dict().items()}
        raise RequestError(400, wrong.message, [{"path": "q", **told}]) from wrong
    scope = Scope.of_step(step) if step is not None else Scope(from_step, to_step)

    def page() -> dict[str, Any]:
        rows, following = trees_page(run, scope, wanted, sort=sort, after=after, limit=limit)
        if icicles:
            drawn = icicles_of(StoredTree.objects.filter(id__in=[row["id"] for row in rows]))
            rows = [{**row, "icicle": drawn.get(row["id"])} for row in rows]
        return {"trees": rows, "next": following}

    return _unless_known(request, run, page)


@router.get("/runs/{int:run_id}/icicles", summary="Small trees in miniature")
def list_icicles(request: HttpRequest, run_id: int, trees: str) -> Any:
    """`trees`: up to 100 ids, comma between; null is too large. `limit`: |A| at the colour scale's end."""
    run = get_run(request, run_id)
    ids = trees.split(",")
    if len(ids) > MAX_ICICLES or not all(one.isascii() and one.isdecimal() and len(one) <= 18 for one in ids):
        raise RequestError(400, f"trees is {trees[:80]!r}. Use at most {MAX_ICICLES} ids, as in trees=12,13.")
    drawn = icicles_of(StoredTree.objects.filter(run=run, id__in=[int(one) for one in ids]))
    scale = advantage_limit(run)
    body = {
        "icicles": {str(tree_id): one for tree_id, one in drawn.items()},
        "limit": None if scale is None else scale[0],
    }
    response = HttpResponse(orjson.dumps(body), content_type="application/json")
    response["Cache-Control"] = "private, max-age=3600"  # a stored tree never changes
    return response


def _unless_known(request: HttpRequest, run: Run, make: Callable[[], Any]) -> HttpResponse:
    """The answer, or 304 when the caller has it: lists change only with the run's events."""
    asked = hashlib.sha256(request.get_full_path().encode()).hexdigest()[:16]
    tag = f'W/"{run.id}-{run.last_seq}-{asked}"'
    if request.headers.get("If-None-Match") == tag:
        response = HttpResponse(status=304)
    else:
        response = HttpResponse(orjson.dumps(make()), content_type="application/json")
    response["ETag"] = tag
    response["Cache-Control"] = "private, no-cache"
    return response


@router.get("/runs/{int:run_id}/growing", summary="The first trees of the step that is sampled just now")
def read_growing(request: HttpRequest, run_id: int) -> Any:
    return growing(get_run(request, run_id))


@router.get("/trees/{int:tree_id}", summary="One tree")
def read_one_tree(request: HttpRequest, tree_id: int) -> Any:
    stored = get_tree(request, tree_id)
    tree = read_tree(stored)
    method = method_of_run(stored.run)
    return {
        **tree_row(stored),
        "run": stored.run_id,
        "project": stored.run.project.slug,
        "estimator": None if method is None else {"name": method.title, "formula": method.formula},
        "reference_answer": tree.reference_answer,
        "policy_version": tree.policy_version,
    }


@router.get("/trees/{int:tree_id}/columns", summary="A tree's node columns, binary", response={200: None})
def read_columns(request: HttpRequest, tree_id: int) -> HttpResponse:
    opened = open_tree(get_tree(request, tree_id))
    return _binary(request, opened.keep("columns", lambda: columns(opened.tree)))


@router.get("/trees/{int:tree_id}/texts", summary="How the texts of a tree's nodes start, by blocks of 128")
def read_texts(request: HttpRequest, tree_id: int, blocks: str) -> Any:
    numbers = blocks.split(",")
    if len(numbers) > MAX_BLOCKS or not all(number.isascii() and number.isdecimal() for number in numbers):
        raise RequestError(
            400, f"blocks is {blocks[:80]!r}; expected at most {MAX_BLOCKS} numbers from 0, such as 0,1,7."
        )
    return text_starts(open_tree(get_tree(request, tree_id)), [int(number[:9]) for number in numbers])


@router.get("/trees/{int:tree_id}/find", summary="Nodes of a tree whose text or answer has these letters")
def find_in_tree(request: HttpRequest, tree_id: int, q: str) -> Any:
    if not 1 <= len(q) <= MAX_QUERY_LETTERS:
        raise RequestError(400, f"q has {len(q)} letters; expected 1 to {MAX_QUERY_LETTERS}.")
    return find_text(open_tree(get_tree(request, tree_id)), q)


@router.get(
    "/trees/{int:tree_id}/difference",
    summary="How much more another estimator would push every node: float32, little-endian, breadth-first",
    response={200: None},
)
def read_difference(request: HttpRequest, tree_id: int, under: str) -> HttpResponse:
    stored = get_tree(request, tree_id)
    return _binary(request, difference(open_tree(stored), how_made(stored.run), under))


def _binary(request: HttpRequest, raw: bytes) -> HttpResponse:
    """Compressed as the browser accepts it, and kept by it: a stored tree never changes."""
    body, encoding = encoded(raw, request.headers.get("Accept-Encoding", ""))
    response = HttpResponse(body, content_type="application/octet-stream")
    if encoding:
        response["Content-Encoding"] = encoding
    response["Vary"] = "Accept-Encoding, Cookie"
    response["Cache-Control"] = "private, max-age=3600"
    return response


@router.get("/trees/{int:tree_id}/nodes/{str:name}", summary="One node, with its path and audit")
def read_node(request: HttpRequest, tree_id: int, name: str) -> Any:
    stored = get_tree(request, tree_id)
    opened = open_tree(stored)
    return node_json(opened, find_node(opened.tree, name), how_made(stored.run))


@router.get("/trees/{int:tree_id}/nodes/{str:name}/audit", summary="How a node came by its advantage")
def read_audit(request: HttpRequest, tree_id: int, name: str) -> Any:
    stored = get_tree(request, tree_id)
    opened = open_tree(stored)
    node = find_node(opened.tree, name)
    audit = audit_json(opened, node, how_made(stored.run))
    return {"node": opened.name(node), "advantage": number_of(opened.tree.advantage[node]), **audit}


@router.get("/trees/{int:tree_id}/nodes/{str:name}/estimators", summary="A node under every estimator")
def read_estimators(request: HttpRequest, tree_id: int, name: str) -> Any:
    stored = get_tree(request, tree_id)
    opened = open_tree(stored)
    node = find_node(opened.tree, name)
    return {
        "node": opened.name(node),
        "estimators": node_rows(node, compared(opened, how_made(stored.run))),
    }


@router.get("/trees/{int:tree_id}/estimators", summary="A tree under every estimator")
def read_tree_estimators(request: HttpRequest, tree_id: int) -> Any:
    stored = get_tree(request, tree_id)
    return {"estimators": tree_rows(compared(open_tree(stored), how_made(stored.run)))}


@router.get(
    "/trees/{int:tree_id}/paths/{str:name}/tokens", summary="A path's tokens, binary", response={200: None}
)
def read_path_tokens(request: HttpRequest, tree_id: int, name: str) -> HttpResponse:
    stored = get_tree(request, tree_id)
    opened = open_tree(stored)
    node = find_node(opened.tree, name)
    return _binary(request, path_tokens(opened, node, how_made(stored.run)))
