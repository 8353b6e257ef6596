"""Works one import off: reads the uploaded file, says how far it is, and stores its trees all at once.

A worker that dies leaves nothing behind but the file, and the next one begins with its first line. The run,
its trees and the end of the job are one transaction, so nothing is imported twice.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from datetime import timedelta

from django.db.models.functions import Now

from webapp.errors import RequestError
from webapp.imports import files
from webapp.imports.models import Import
from webapp.imports.reading import Imported, import_trees, told
from webapp.jobs import JobStatus
from webapp.limits import IMPORT_STORE_SECONDS, MAX_IMPORT_MEMORY
from workers import jobs
from workers.jobs import Held, JobFailedError, JobLostError


def claim(import_id: int, owner: str, told_to_leave: Callable[[], bool]) -> Held[Import] | None:
    """Take the import if it waits. None: it does not, which is no error."""
    return jobs.claim(Import, import_id, owner, told_to_leave, done=0, trees=0, errors=[])


def work_off(held: Held[Import]) -> None:
    """Make a run of the file of a claimed import and move its row to an end. Database errors pass: the lease
    runs out and the sweeper brings it back.
    """
    jobs.work_off(held, _read, _of_the_disk)
    with contextlib.suppress(JobLostError):  # then the sweeper finds a file without a row
        asked = held.job()
        if not asked.is_unfinished:
            files.delete(asked.upload)


def _of_the_disk(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "The worker's disk is full. Make room in its folder for temporary files, and import again."
    return f"The file could not be read: {error.strerror or error}."


def _read(held: Held[Import]) -> None:
    asked = held.job()
    try:
        stream = files.path_of(asked.upload).open("rb")
    except FileNotFoundError as error:
        raise JobFailedError("The uploaded file is gone. Upload it again.") from error

    def stored(done: Imported) -> None:
        held.update(
            status=JobStatus.SUCCEEDED,
            run=done.run,
            trees=done.trees,
            done=asked.size_bytes,
            report=told(done)[: jobs.MAX_REASON],
            ended_at=Now(),
            lease_until=None,
            lease_owner="",
        )

    with stream:
        try:
            import_trees(
                asked.project,
                asked.created_by,
                stream,
                name=asked.run_name,
                file=asked.file,
                most_memory=MAX_IMPORT_MEMORY,
                progress=lambda size, trees: held.report(done=size, trees=trees),
                before_storing=lambda: held.update(
                    done=asked.size_bytes, lease_until=Now() + timedelta(seconds=IMPORT_STORE_SECONDS)
                ),
                in_the_end=stored,
            )
        except RequestError as refused:
            jobs.fail(held, refused.detail, errors=[error["message"] for error in refused.errors])
