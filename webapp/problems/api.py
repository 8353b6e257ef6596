"""API operations on problems: those of a project, and one of them over training."""

from __future__ import annotations

from typing import Annotated, Any

from django.http import Http404, HttpRequest
from ninja import Router
from pydantic import Field

from webapp.problems import querysets
from webapp.projects.access import get_project
from webapp.runs.api import Limit
from webapp.runs.models import ACTIVE
from webapp.trees.api import Step

MAX_LETTERS = 200

router = Router(tags=["problems"])

Text = Annotated[str, Field(max_length=MAX_LETTERS)]


@router.get("/projects/{slug:slug}/problems", summary="Problems of which a project's runs have trees, by id")
def list_problems(
    request: HttpRequest, slug: str, q: Text = "", again: bool = False, after: Text = "", limit: Limit = 100
) -> Any:
    """`q`: words that must stand in the id or the text; `again`: only problems with two trees or more;
    `after`: the `next` of the page before. A filtered page ends after 2,000 problems: it may be short.
    """
    rows, following, n_looked = querysets.problems_page(
        get_project(request, slug),
        after=after.replace("\0", ""),
        words=q.replace("\0", "").strip(),
        again=again,
        limit=limit,
    )
    return {"problems": rows, "next": following, "n_looked_at": n_looked}


@router.get("/projects/{slug:slug}/problem", summary="One problem over the steps of every run that has it")
def read_problem(
    request: HttpRequest,
    slug: str,
    problem_id: Text,
    from_step: Step | None = None,
    to_step: Step | None = None,
) -> Any:
    """The newest eight runs, each with the summaries of its trees of the problem in the order of steps."""
    project = get_project(request, slug)
    known = [] if "\0" in problem_id else querysets.runs_with_problem(project, problem_id)
    if not known:
        raise Http404
    runs = querysets.history(known[: querysets.MAX_HISTORY_RUNS], problem_id, from_step, to_step)
    return {
        "problem_id": problem_id,
        "runs": [
            {("trees" if name == "rows" else name): value for name, value in run.items()} for run in runs
        ],
        "n_runs": len(known),
    }


@router.get("/projects/{slug:slug}/problem/runs", summary="Which runs have trees of a problem, and how many")
def read_problem_runs(request: HttpRequest, slug: str, problem_id: Text) -> Any:
    """The newest first. `is_growing`: more may come. So that a page need not read everything to see whether
    there is something new.
    """
    project = get_project(request, slug)
    known = [] if "\0" in problem_id else querysets.runs_with_problem(project, problem_id)
    if not known:
        raise Http404
    names = ("id", "status", "n_trees", "first", "last")
    return {
        "runs": [
            {**{name: run[name] for name in names}, "is_growing": run["status"] in ACTIVE} for run in known
        ]
    }
