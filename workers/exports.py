"""Works one export off: claims its row, streams trees into a file, and says how far it is. A worker that
loses its export takes its half file with it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import timedelta
from typing import BinaryIO

from django.db.models import F
from django.db.models.functions import Now

from webapp.exports import files
from webapp.exports.found import FoundNodes, look
from webapp.exports.kinds import NodesExport, PageExport, Parameters, read_parameters
from webapp.exports.models import Export, ExportStatus
from webapp.exports.page import page_of
from webapp.exports.rows import RowMaker
from webapp.exports.selection import Selection, places, read_trees, stored_selection, trees_of
from webapp.limits import EXPORT_KEEP_SECONDS, MAX_EXPORT_BYTES, MAX_EXPORT_NODES, MAX_EXPORT_TREES
from workers import jobs
from workers.export_files import Csv, JsonLines, Parquet, Writer
from workers.jobs import LEASE, Held, JobFailedError


def claim(export_id: int, owner: str, told_to_leave: Callable[[], bool]) -> Held[Export] | None:
    """Take the export if it waits. None: it does not, which is no error."""
    return jobs.claim(Export, export_id, owner, told_to_leave, done=0, total=0, rows=0, left_out={})


def work_off(held: Held[Export]) -> None:
    """Write the file of a claimed export and move its row to an end. Database errors pass: the lease runs out
    and the sweeper brings it back.
    """
    jobs.work_off(held, _write, _of_the_disk)


def _of_the_disk(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "The disk of exports is full. Delete earlier exports, or make room, and export again."
    return f"The file could not be written: {error.strerror or error}."


def _write(held: Held[Export]) -> None:
    export = held.job()
    parameters = read_parameters(export.kind, export.parameters)
    name = files.new_name(held.id, held.epoch, parameters)
    final = files.make_folder() / name
    part = final.with_name(name + files.PART)
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            rows, left_out = _fill(held, export, parameters, stream)
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        part.rename(final)
        held.update(
            status=ExportStatus.SUCCEEDED,
            file=name,
            size_bytes=size,
            rows=rows,
            left_out=left_out,
            done=F("total"),
            ended_at=Now(),
            expires_at=Now() + timedelta(seconds=EXPORT_KEEP_SECONDS),
            lease_until=None,
            lease_owner="",
        )
    except BaseException:
        for path in (part, final):
            path.unlink(missing_ok=True)
        raise


def _fill(
    held: Held[Export], export: Export, parameters: Parameters, stream: BinaryIO
) -> tuple[int, dict[str, int]]:
    """How many rows there are, and what was left out."""
    selection = stored_selection(export.selection)
    found = _found(held, export, selection) if selection.search else None
    maker = RowMaker(parameters, found)
    wanted = places(
        trees_of(export.project, selection, None if found is None else found.trees),
        by_problem=maker.by_problem,
        most=MAX_EXPORT_TREES + 1,
    )
    if len(wanted) > MAX_EXPORT_TREES:
        raise JobFailedError(f"More than {MAX_EXPORT_TREES:,} trees match by now. Choose fewer steps.")
    held.update(total=len(wanted), lease_until=Now() + LEASE)
    if isinstance(parameters, PageExport):
        return _fill_page(held, wanted[0].id if wanted else None, stream)
    writer = _writer(parameters, stream)
    rows = 0
    for done, stored in enumerate(read_trees(wanted)):
        held.report(done=done, rows=rows)
        if stored is None:
            maker.left_out["trees deleted meanwhile"] += 1
            continue
        for row in maker.of(stored):
            writer.write(row)
            rows += 1
            # Row by row: one tree may have a hundred thousand long rows.
            held.report(done=done, rows=rows)
            if stream.tell() > MAX_EXPORT_BYTES:
                raise JobFailedError(
                    f"The file grew beyond {MAX_EXPORT_BYTES:,} bytes after {done + 1:,} of {len(wanted):,} "
                    "trees. Choose fewer steps."
                )
    for row in maker.rest():
        writer.write(row)
        rows += 1
    writer.close()
    return rows, {reason: count for reason, count in maker.left_out.items() if count}


def _found(held: Held[Export], export: Export, selection: Selection) -> FoundNodes:
    """All that its search finds, told on the way."""

    def goes_on(looked: int, n_nodes: int) -> bool:
        held.report(reason=f"Looking for nodes: {min(looked / max(n_nodes, 1), 1):.0%} of {n_nodes:,}.")
        return True

    found = look(export.project, selection.search, goes_on=goes_on)
    if not found.is_complete:
        raise JobFailedError(f"More than {MAX_EXPORT_NODES:,} nodes match. Narrow the search.")
    held.update(reason="")
    return found.nodes


def _fill_page(held: Held[Export], tree_id: int | None, stream: BinaryIO) -> tuple[int, dict[str, int]]:
    if tree_id is None:
        raise JobFailedError("The tree was deleted meanwhile.")
    for text in page_of(tree_id):
        stream.write(text.encode())
        held.report(done=0, rows=0)
    return 1, {}


def _writer(parameters: Parameters, stream: BinaryIO) -> Writer:
    if isinstance(parameters, NodesExport):
        return Csv(stream) if parameters.format == "csv" else Parquet(stream)
    return JsonLines(stream)
