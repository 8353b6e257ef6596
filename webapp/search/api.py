"""API operations of search. What they call is what the page calls."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from django.http import HttpRequest
from ninja import Query, Router
from pydantic import Field

from trainer.tree import CreditState, Verdict
from webapp.errors import RequestError
from webapp.filters import FilterError
from webapp.projects.access import get_project
from webapp.runs.api import Id
from webapp.search.finding import ask, behind, find, tally
from webapp.search.indexer import note_demand
from webapp.search.snippets import finds

router = Router(tags=["search"])

Filter = Annotated[str, Query(description="As on the search page: docs/search.md.")]


def refused(error: FilterError) -> RequestError:
    told = {"path": "q", **error.as_dict()}
    return RequestError(400, error.message, [{name: str(value) for name, value in told.items()}])


@router.get("/projects/{slug:slug}/search", summary="Nodes that match a filter, newest first")
def search_nodes(
    request: HttpRequest,
    slug: str,
    q: Filter,
    before: Id | None = None,
    limit: Annotated[int, Field(ge=1, le=100)] = 25,
) -> Any:
    project = get_project(request, slug)
    note_demand(project.id)
    try:
        asked = ask(project, q)
        page = find(asked, before=before, limit=limit)
    except FilterError as error:
        raise refused(error) from error
    return {
        "q": asked.wanted.text(),
        "nodes": [
            {
                "id": node["id"],
                "tree": node["tree_id"],
                "node": node["path"],
                "run": node["run_id"],
                "step": node["step"],
                "problem_id": node["problem_id"],
                "value": node["value"],
                "advantage": node["advantage"],
                "credit_state": CreditState(node["credit_state"]).word,
                "verdict": Verdict(node["verdict"]).word,
                "depth": node["depth"],
                "tokens": node["tokens"],
                "text": node["text"],
                "marks": [node["hit"]] if node.get("hit") else finds(node["text"], asked.words),
            }
            for node in page.nodes
        ],
        "before": page.before,
        "complete": page.is_complete,
        "looked_at": page.looked,
        "nodes_in_scope": page.n_nodes,
        "behind": behind(project),
    }


@router.get("/projects/{slug:slug}/search/counts", summary="How many nodes match, by step, run, depth, …")
def count_nodes(request: HttpRequest, slug: str, q: Filter) -> Any:
    project = get_project(request, slug)
    try:
        asked = ask(project, q)
    except FilterError as error:
        raise refused(error) from error
    if asked.patterns:
        raise RequestError(400, "Matches of a regular expression are not counted. Count words instead.")
    found = tally(project, asked)
    if found is None:
        raise RequestError(503, "Counting took too long. Narrow the search to a run or to some steps.")
    return {
        "n": found.n,
        "every": found.every,
        "steps": [asdict(bar) for bar in found.bars],
        "runs": [{"run": run, "name": name, "n": n} for run, name, _, n in found.runs],
        "depths": [{"depth": depth, "n": n} for depth, n in found.depths],
        "verdicts": [{"verdict": word, "n": n} for word, n in found.verdicts],
        "advantages": [{"adv": test.text(), "n": n} for test, n in found.advantages],
    }
