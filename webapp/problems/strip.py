"""`{% problem_strip run tree %}`, for the head of a tree's page: the trees of the same problem in its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import template

from webapp.problems.querysets import strip
from webapp.runs.models import Run

register = template.Library()


@register.inclusion_tag("problems/_strip.html")
def problem_strip(run: Run, tree: Mapping[str, Any]) -> dict[str, Any]:
    """`tree`: its TREEROW. Three queries."""
    found = strip(run, tree["problem_id"], tree["id"], tree["step"], tree["index"])
    return {"strip": found, "project": run.project, "problem": tree["problem_id"]}
