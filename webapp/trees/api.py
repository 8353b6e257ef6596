"""API operations on rollout trees."""

from __future__ import annotations

from typing import Annotated, Any

from django.http import HttpRequest, HttpResponse
from ninja import Router
from pydantic import Field

from trainer.config import stored_config
from webapp.errors import RequestError
from webapp.projects.access import get_run, get_tree
from webapp.runs.api import Id, Limit
from webapp.runs.method import method_of
from webapp.trees.estimator_table import compared, node_rows, tree_rows
from webapp.trees.nodes import audit_json, columns, find_node, node_json, number_of
from webapp.trees.opened import open_tree, read_tree
from webapp.trees.querysets import SORTS, steps_with_trees, tree_row, trees_of_step

router = Router(tags=["trees"])


@router.get("/runs/{int:run_id}/steps", summary="Steps that have trees")
def list_steps(request: HttpRequest, run_id: int) -> Any:
    return steps_with_trees(get_run(request, run_id))


@router.get("/runs/{int:run_id}/trees", summary="Trees of a step")
def list_trees(
    request: HttpRequest,
    run_id: int,
    step: Annotated[int, Field(ge=0, le=2**63 - 1)],
    sort: str = "index",
    after: Id | None = None,
    limit: Limit = 100,
) -> Any:
    run = get_run(request, run_id)
    if sort not in SORTS:
        raise RequestError(400, f"Trees cannot be sorted by {sort[:80]!r}. Use one of: {', '.join(SORTS)}.")
    rows, following = trees_of_step(run, step, sort=sort, after=after, limit=limit)
    return {"trees": rows, "next": following}


@router.get("/trees/{int:tree_id}", summary="One tree")
def read_one_tree(request: HttpRequest, tree_id: int) -> Any:
    stored = get_tree(request, tree_id)
    tree = read_tree(stored)
    method = method_of(stored_config(stored.run.config))
    return {
        **tree_row(stored),
        "run": stored.run_id,
        "project": stored.run.project.slug,
        "estimator": {"name": method.title, "formula": method.formula},
        "reference_answer": tree.reference_answer,
        "policy_version": tree.policy_version,
    }


@router.get("/trees/{int:tree_id}/columns", summary="A tree's node columns, binary", response={200: None})
def read_columns(request: HttpRequest, tree_id: int) -> HttpResponse:
    response = HttpResponse(
        columns(read_tree(get_tree(request, tree_id))), content_type="application/octet-stream"
    )
    response["Cache-Control"] = "private, max-age=3600"  # a stored tree never changes
    return response


@router.get("/trees/{int:tree_id}/nodes/{str:name}", summary="One node, with its path and audit")
def read_node(request: HttpRequest, tree_id: int, name: str) -> Any:
    stored = get_tree(request, tree_id)
    opened = open_tree(stored)
    return node_json(opened, find_node(opened.tree, name), stored_config(stored.run.config))


@router.get("/trees/{int:tree_id}/nodes/{str:name}/audit", summary="How a node came by its advantage")
def read_audit(request: HttpRequest, tree_id: int, name: str) -> Any:
    stored = get_tree(request, tree_id)
    opened = open_tree(stored)
    node = find_node(opened.tree, name)
    audit = audit_json(opened, node, stored_config(stored.run.config))
    return {"node": opened.name(node), "advantage": number_of(opened.tree.advantage[node]), **audit}


@router.get("/trees/{int:tree_id}/nodes/{str:name}/estimators", summary="A node under every estimator")
def read_estimators(request: HttpRequest, tree_id: int, name: str) -> Any:
    stored = get_tree(request, tree_id)
    opened = open_tree(stored)
    node = find_node(opened.tree, name)
    return {
        "node": opened.name(node),
        "estimators": node_rows(node, compared(opened, stored_config(stored.run.config))),
    }


@router.get("/trees/{int:tree_id}/estimators", summary="A tree under every estimator")
def read_tree_estimators(request: HttpRequest, tree_id: int) -> Any:
    stored = get_tree(request, tree_id)
    return {"estimators": tree_rows(compared(open_tree(stored), stored_config(stored.run.config)))}
