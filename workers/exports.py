"""Works one export off: claims its row, streams trees into a file, and says how far it is.

The row is the job. Every write names the epoch of the claim, so a worker whose export was cancelled, or given
to another, finds no row to write to and leaves, and its half file with it.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import BinaryIO

from django.db.models import F
from django.db.models.functions import Now

from trainer.text import storable
from webapp.errors import RequestError
from webapp.exports import files
from webapp.exports.kinds import NodesExport, PageExport, Parameters, read_parameters
from webapp.exports.models import Export, ExportStatus
from webapp.exports.page import page_of
from webapp.exports.rows import RowMaker
from webapp.exports.selection import places, read_trees, stored_selection, trees_of
from webapp.limits import EXPORT_KEEP_SECONDS, EXPORT_LEASE_SECONDS, MAX_EXPORT_BYTES, MAX_EXPORT_TREES
from workers.export_files import Csv, JsonLines, Parquet, Writer

LEASE = timedelta(seconds=EXPORT_LEASE_SECONDS)
REPORT_SECONDS = 1.0
MAX_REASON = 2000

logger = logging.getLogger(__name__)


class ExportLostError(Exception):
    """It was cancelled, or somebody else has it now: nothing more is written."""


class ExportGivenBackError(Exception):
    """The worker is told to leave; another one begins anew."""


class ExportFailedError(Exception):
    """It cannot be done; the message is one sentence for people."""


@dataclass(slots=True)
class Held:
    """The right to write one export."""

    id: int
    epoch: int
    told_to_leave: Callable[[], bool] = lambda: False
    reported: float = field(default_factory=time.monotonic)

    def update(self, **changes: object) -> None:
        """Raises ExportLostError when the row is not ours any more."""
        mine = Export.objects.filter(id=self.id, epoch=self.epoch, status=ExportStatus.RUNNING)
        if not mine.update(**changes):
            raise ExportLostError(f"export {self.id} is not held in epoch {self.epoch} any more")

    def report(self, done: int, rows: int) -> None:
        """Tell how far it is and keep the lease, at most once a second. Raises ExportLostError and
        ExportGivenBackError.
        """
        now = time.monotonic()
        if now - self.reported < REPORT_SECONDS:
            return
        self.reported = now
        if self.told_to_leave():
            raise ExportGivenBackError
        self.update(done=done, rows=rows, lease_until=Now() + LEASE)


def claim(export_id: int, owner: str, told_to_leave: Callable[[], bool]) -> Held | None:
    """Take the export if it waits. None: it does not, which is no error."""
    won = Export.objects.filter(id=export_id, status=ExportStatus.QUEUED).update(
        status=ExportStatus.RUNNING,
        reason="",
        epoch=F("epoch") + 1,
        attempts=F("attempts") + 1,
        lease_owner=owner[:120],
        lease_until=Now() + LEASE,
        started_at=Now(),
        done=0,
        total=0,
        rows=0,
        left_out={},
    )
    if not won:
        return None
    return Held(export_id, Export.objects.values_list("epoch", flat=True).get(id=export_id), told_to_leave)


def work_off(held: Held) -> None:
    """Write the file of a claimed export and move its row to an end. Database errors pass: the lease runs out
    and the sweeper brings it back.
    """
    try:
        _write(held)
    except ExportLostError as lost:
        logger.info("Export %s ends here: %s.", held.id, lost)
    except ExportGivenBackError:
        _end(
            held,
            status=ExportStatus.QUEUED,
            queued_at=Now(),
            attempts=F("attempts") - 1,
            reason="Its worker was told to leave; another one begins anew.",
        )
    except (ExportFailedError, RequestError, OSError) as error:
        _fail(held, _sentence(error))
    except (ValueError, TypeError, KeyError, ArithmeticError, MemoryError) as error:  # a defect of ours
        logger.exception("Export %s broke", held.id)
        _fail(held, f"It broke ({type(error).__name__}); the worker's log has the rest. Please report it.")


def _sentence(error: Exception) -> str:
    if isinstance(error, RequestError):
        return error.detail
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            return "The disk of exports is full. Delete earlier exports, or make room, and export again."
        return f"The file could not be written: {error.strerror or error}."
    return str(error)


def _fail(held: Held, reason: str) -> None:
    _end(held, status=ExportStatus.FAILED, ended_at=Now(), reason=storable(reason)[:MAX_REASON])


def _end(held: Held, **changes: object) -> None:
    """Give the lease back; if it is gone by now, there is nothing to give."""
    try:
        held.update(lease_until=None, lease_owner="", **changes)
    except ExportLostError as lost:
        logger.info("Export %s ends here: %s.", held.id, lost)


def _write(held: Held) -> None:
    export = Export.objects.select_related("project").get(id=held.id)
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


def _fill(held: Held, export: Export, parameters: Parameters, stream: BinaryIO) -> tuple[int, dict[str, int]]:
    """How many rows there are, and what was left out."""
    selection = stored_selection(export.selection)
    maker = RowMaker(parameters)
    wanted = places(
        trees_of(export.project, selection), by_problem=maker.by_problem, most=MAX_EXPORT_TREES + 1
    )
    if len(wanted) > MAX_EXPORT_TREES:
        raise ExportFailedError(f"More than {MAX_EXPORT_TREES:,} trees match by now. Choose fewer steps.")
    held.update(total=len(wanted), lease_until=Now() + LEASE)
    if isinstance(parameters, PageExport):
        return _fill_page(held, wanted[0].id if wanted else None, stream)
    writer = _writer(parameters, stream)
    rows = 0
    for done, stored in enumerate(read_trees(wanted)):
        held.report(done, rows)
        if stored is None:
            maker.left_out["trees deleted meanwhile"] += 1
            continue
        for row in maker.of(stored):
            writer.write(row)
            rows += 1
            # Row by row: one tree may have a hundred thousand long rows.
            held.report(done, rows)
            if stream.tell() > MAX_EXPORT_BYTES:
                raise ExportFailedError(
                    f"The file grew beyond {MAX_EXPORT_BYTES:,} bytes after {done + 1:,} of {len(wanted):,} "
                    "trees. Choose fewer steps."
                )
    for row in maker.rest():
        writer.write(row)
        rows += 1
    writer.close()
    return rows, {reason: count for reason, count in maker.left_out.items() if count}


def _fill_page(held: Held, tree_id: int | None, stream: BinaryIO) -> tuple[int, dict[str, int]]:
    if tree_id is None:
        raise ExportFailedError("The tree was deleted meanwhile.")
    for text in page_of(tree_id):
        stream.write(text.encode())
        held.report(0, 0)
    return 1, {}


def _writer(parameters: Parameters, stream: BinaryIO) -> Writer:
    if isinstance(parameters, NodesExport):
        return Csv(stream) if parameters.format == "csv" else Parquet(stream)
    return JsonLines(stream)
