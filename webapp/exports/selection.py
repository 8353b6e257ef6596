"""Which trees an export is of: runs, steps and a filter; single trees; or those with what a search finds."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Self

from django.db.models import BooleanField, F, Func, IntegerField, Q, QuerySet
from django.db.models.expressions import RawSQL
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from webapp.errors import RequestError
from webapp.filters import FilterError, parse
from webapp.projects.models import Project
from webapp.runs.models import Run
from webapp.trees.filters import TREE_LANGUAGE, matching
from webapp.trees.models import StoredTree

MOST_RUNS = 50
MOST_NAMED_TREES = 1000
GATHERED_TREES = 32  # are read at once, ...
GATHERED_BYTES = 4 * 2**20  # ... or fewer where they are large


class Selection(BaseModel):
    """`trees`, where there are any, are all that is meant; or all trees with a node that `search` finds, and
    where nodes are exported, those nodes alone. Otherwise all trees of `runs` that were kept, from one step
    to another, that `q` finds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: tuple[int, ...] = Field((), max_length=MOST_RUNS)
    trees: tuple[int, ...] = Field((), max_length=MOST_NAMED_TREES)
    from_step: int | None = Field(None, ge=0, le=2**63 - 1)
    to_step: int | None = Field(None, ge=0, le=2**63 - 1)
    q: str = Field("", max_length=1000)
    search: str = Field("", max_length=1000)

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        if not (self.runs or self.trees or self.search):
            raise ValueError("Name a run or a tree, or search for nodes.")
        if self.search and (
            self.runs or self.trees or self.q or (self.from_step, self.to_step) != (None, None)
        ):
            raise ValueError("A search says itself which runs and steps: run:… step:… in its text.")
        if any(not 0 < number < 2**63 for number in (*self.runs, *self.trees)):
            raise ValueError("Runs and trees are named by their numbers.")
        if self.from_step is not None and self.to_step is not None and self.from_step > self.to_step:
            raise ValueError(f"Steps from {self.from_step} to {self.to_step} are none. Turn them round.")
        return self


def read_selection(given: dict[str, Any]) -> Selection:
    """`Any`: JSON. Raises RequestError(400)."""
    try:
        return stored_selection(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        told = f"{path}: {message}" if path else message
        raise RequestError(400, told, [{"path": path, "message": message}]) from error


def stored_selection(given: dict[str, Any]) -> Selection:
    """As a row holds it: lists are tuples, numbers are numbers. Raises ValidationError."""
    # Not orjson: numbers beyond 64 bits must come as far as the check that refuses them.
    return Selection.model_validate_json(json.dumps(given), strict=True)


def runs_of(project: Project, selection: Selection) -> list[Run]:
    """The runs that are named, all of this project. Raises RequestError(404) for any other."""
    found = Run.objects.filter(project=project).in_bulk(selection.runs)
    if missing := [number for number in selection.runs if number not in found]:
        raise RequestError(404, f"There is no run {missing[0]} in {project.name}.")
    return [found[number] for number in dict.fromkeys(selection.runs)]


def trees_of(
    project: Project, selection: Selection, found: Collection[int] | None = None
) -> QuerySet[StoredTree]:
    """The trees, without an order. `found`: of a search, those that hold a match. Raises RequestError(400)
    for a filter that cannot be read.
    """
    trees = StoredTree.objects.filter(run__project=project)
    if selection.search:
        among = RawSQL("arborist_tree.id = ANY(%s)", [list(found or ())], BooleanField())
        return trees.filter(among, superseded=False)
    if selection.trees:
        return trees.filter(id__in=selection.trees)
    trees = trees.filter(run_id__in=selection.runs, superseded=False)
    if selection.from_step is not None:
        trees = trees.filter(step__gte=selection.from_step)
    if selection.to_step is not None:
        trees = trees.filter(step__lte=selection.to_step)
    if selection.q:
        try:
            wanted = parse(selection.q, TREE_LANGUAGE)
        except FilterError as error:
            raise RequestError(
                400, f"q: {error.message}", [{"path": "q", "message": error.message}]
            ) from error
        either = Q(pk__in=())
        for run in runs_of(project, selection):  # a problem's words are looked for run by run
            either |= Q(pk__in=matching(trees.filter(run=run), wanted, run).values("pk"))
        trees = trees.filter(either)
    return trees


@dataclass(frozen=True, slots=True)
class Place:
    """A tree that is to be read, and how large its payload is."""

    id: int
    size: int


def places(trees: QuerySet[StoredTree], *, by_problem: bool, most: int | None = None) -> list[Place]:
    """The trees in the order of the file: by step, or problem by problem. Ids and sizes alone, so that a
    hundred thousand fit.
    """
    order = (
        ("problem_id", "run_id", "step", "index", "id") if by_problem else ("run_id", "step", "index", "id")
    )
    # The length of a large column is read without the column.
    size = Func(F("payload"), function="octet_length", output_field=IntegerField())
    found = trees.order_by(*order).values_list("id", size)
    return [Place(*row) for row in (found if most is None else found[:most])]


def read_trees(wanted: list[Place]) -> Iterator[StoredTree | None]:
    """Each tree with its payload, some at a time; None for one that was deleted meanwhile."""
    start = 0
    while start < len(wanted):
        stop, size = start + 1, wanted[start].size
        while (
            stop < len(wanted)
            and stop - start < GATHERED_TREES
            and size + wanted[stop].size <= GATHERED_BYTES
        ):
            size += wanted[stop].size
            stop += 1
        found = StoredTree.objects.in_bulk([place.id for place in wanted[start:stop]])
        for place in wanted[start:stop]:
            # Taken out, so that a payload is let go as soon as it was read.
            yield found.pop(place.id, None)
        start = stop
