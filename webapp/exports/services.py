"""The verbs of an export that people speak: ask for it, cancel it, delete its file."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

from django.db import connection, transaction
from django.db.models import Sum
from django.db.models.functions import Now

from webapp import broker
from webapp.accounts.models import User
from webapp.errors import RequestError
from webapp.exports import files
from webapp.exports.found import Found, look
from webapp.exports.kinds import KINDS, PageExport, Parameters
from webapp.exports.models import UNFINISHED, Export, ExportStatus
from webapp.exports.selection import Selection, runs_of, trees_of
from webapp.limits import EXPORTS_AT_ONCE, MAX_EXPORT_BYTES_PER_USER, MAX_EXPORT_TREES, PREVIEW_SECONDS
from webapp.projects.models import Project
from webapp.trees.models import StoredTree

MAX_TITLE = 300


def first_found(project: Project, selection: Selection) -> Found:
    """What a search finds within a short while: enough to tell whether it finds anything. Raises
    RequestError(400).
    """
    until = time.monotonic() + PREVIEW_SECONDS
    return look(project, selection.search, goes_on=lambda _looked, _of: time.monotonic() < until)


def count_trees(
    project: Project, selection: Selection, parameters: Parameters, found: Collection[int] | None = None
) -> int:
    """How many trees an export would read; of a search, how many of those `found`. Raises RequestError: 404
    for runs and trees of another project, 400 where the kind does not go with so many.
    """
    runs_of(project, selection)
    count = trees_of(project, selection, found).count()
    if selection.trees and count < len(set(selection.trees)):
        raise RequestError(404, f"Not all of these trees are in {project.name}.")
    if count > MAX_EXPORT_TREES:
        raise RequestError(
            400, f"{count:,} trees match; one export holds at most {MAX_EXPORT_TREES:,}. Choose fewer steps."
        )
    if isinstance(parameters, PageExport) and count > 1:
        raise RequestError(
            400, f"A page shows one tree, and {count:,} match. Open a tree and export it from there."
        )
    return count


def title_of(project: Project, selection: Selection) -> str:
    """What is selected, in words."""
    if selection.trees:
        if len(selection.trees) > 1:
            return f"{len(selection.trees)} trees"
        tree = StoredTree.objects.filter(id__in=selection.trees, run__project=project)
        found = tree.values_list("run__name", "step", "problem_id").first()
        return "" if found is None else f"{found[0]}, step {found[1]}, {found[2]}"[:MAX_TITLE]
    if selection.search:
        return f"search: {selection.search}"[:MAX_TITLE]
    names = [run.name for run in runs_of(project, selection)]
    words = names[0] if len(names) == 1 else f"{len(names)} runs"
    low, high = selection.from_step, selection.to_step
    if low is not None and low == high:
        words += f", step {low}"
    elif low is not None or high is not None:
        words += f", steps {'first' if low is None else low} to {'last' if high is None else high}"
    if selection.q:
        words += f", {selection.q}"
    return words[:MAX_TITLE]


def create_export(project: Project, user: User, selection: Selection, parameters: Parameters) -> Export:
    """A queued export; a worker is told after the commit.

    Raises RequestError: 400 and 404 as `count_trees`, 400 for no trees, 409 for too many exports of this user
    at once or too many bytes of earlier ones.
    """
    found = first_found(project, selection) if selection.search else None
    n_trees = count_trees(project, selection, parameters, None if found is None else found.nodes.trees)
    # A search that was not done in that while may still find something.
    if not n_trees and (found is None or found.is_complete):
        raise RequestError(400, "No tree matches, so there is nothing to export. Choose other steps.")
    with transaction.atomic():
        # Two requests of one user count one after the other.
        User.objects.select_for_update().filter(id=user.id).values_list("id").first()
        mine = Export.objects.filter(created_by=user)
        if mine.filter(status__in=UNFINISHED).count() >= EXPORTS_AT_ONCE:
            raise RequestError(
                409,
                f"{EXPORTS_AT_ONCE} of your exports are not finished. Wait for one to end, or cancel one.",
            )
        kept = mine.filter(status=ExportStatus.SUCCEEDED).aggregate(sum=Sum("size_bytes"))["sum"] or 0
        if kept >= MAX_EXPORT_BYTES_PER_USER:
            raise RequestError(
                409, f"Your earlier exports hold {kept:,} bytes. Delete some of them under Exports first."
            )
        export = Export.objects.create(
            project=project,
            created_by=user,
            kind=parameters.kind,
            parameters=parameters.model_dump(mode="json", exclude={"kind"}),
            selection=selection.model_dump(mode="json", exclude_defaults=True),
            title=title_of(project, selection),
        )
        # The row is the job and this is only a hint: without a broker the sweeper sends it again.
        transaction.on_commit(lambda: broker.send_write_export(export.id), robust=True)
    export.refresh_from_db()
    return export


def cancel(export: Export, user: User) -> None:
    """Nobody works on it any more; asking twice changes nothing. Raises RequestError(409) when it has ended.

    A worker that is at it finds that its row is not its own any more, within a second.
    """
    name = user.get_username()
    waiting = Export.objects.filter(id=export.id, status__in=UNFINISHED)
    if not waiting.update(
        status=ExportStatus.CANCELLED,
        reason=f"Cancelled by {name}.",
        ended_at=Now(),
        lease_until=None,
        lease_owner="",
    ):
        export.refresh_from_db()
        if export.status != ExportStatus.CANCELLED:
            raise RequestError(409, f"This export has already ended ({export.status}).")


def delete_file(export: Export, reason: str) -> bool:
    """The file goes, the row stays and says why. False: there was none. The row moves first, so that nobody
    is offered a file that is gone.
    """
    name = export.file
    moved = Export.objects.filter(id=export.id, status=ExportStatus.SUCCEEDED).update(
        status=ExportStatus.EXPIRED, file="", size_bytes=0, expires_at=None, reason=reason
    )
    if moved:
        transaction.on_commit(lambda: files.delete(name), robust=True)
    return bool(moved)


# ------------------------------------------------------------------------------------------------ reading


def export_rows(exports: Sequence[Export]) -> list[dict[str, Any]]:
    """EXPORT: each export as lists and API show it. One query beside the exports' own."""
    ages = _seconds_running([export.id for export in exports if export.status == ExportStatus.RUNNING])
    return [
        {
            "id": export.id,
            "project": export.project.slug,
            "project_name": export.project.name,
            "kind": export.kind,
            "kind_title": KINDS[export.kind].title if export.kind in KINDS else export.kind,
            "row_words": KINDS[export.kind].row if export.kind in KINDS else "rows",
            "parameters": export.parameters,
            "selection": export.selection,
            "title": export.title,
            "status": export.status,
            "reason": export.reason,
            "done": export.done,
            "total": export.total,
            "rows": export.rows,
            "left_out": export.left_out,
            "eta_s": _eta(export, ages.get(export.id)),
            "size_bytes": export.size_bytes,
            "created_by": export.created_by.get_username(),
            "created_at": export.created_at,
            "ended_at": export.ended_at,
            "expires_at": export.expires_at,
            "attempts": export.attempts,
            "is_unfinished": export.is_unfinished,
            "has_file": export.status == ExportStatus.SUCCEEDED,
        }
        for export in exports
    ]


def _seconds_running(ids: list[int]) -> dict[int, float]:
    """By the database's clock."""
    if not ids:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, extract(epoch FROM now() - started_at)::float8 FROM arborist_export "
            "WHERE id = ANY(%s)",
            [ids],
        )
        return dict(cursor.fetchall())


def _eta(export: Export, seconds: float | None) -> float | None:
    """Seconds that are left, as fast as it went so far; None until there is something to go by."""
    if not seconds or not export.done or not export.total:
        return None
    return round(seconds * (export.total - export.done) / export.done, 1)
