"""The verbs of an import: ask for it, cancel it; and how one is shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from trainer.text import storable
from webapp import broker
from webapp.accounts.models import User
from webapp.errors import RequestError, bad_field
from webapp.imports import files
from webapp.imports.models import Import
from webapp.imports.reading import MAX_FILE_LETTERS
from webapp.jobs import UNFINISHED, JobStatus
from webapp.limits import IMPORTS_AT_ONCE, MAX_UPLOAD_BYTES
from webapp.projects.models import Project
from webapp.runs.services import check_name


def create_import(project: Project, user: User, uploaded: UploadedFile[bytes] | None, name: str) -> Import:
    """A queued import of an uploaded file, called `name` or else as the file; a worker is told after the
    commit.

    Raises RequestError: 400 for no file, one that is empty or too large, and a bad name; 409 for too many
    imports of this user at once; 507 when it cannot be kept.
    """
    if uploaded is None:
        raise bad_field("file", "Choose a file.")
    file = storable(uploaded.name or "a file")[-MAX_FILE_LETTERS:]
    if not uploaded.size:
        raise bad_field("file", "The file is empty. Choose one with a tree on each line.")
    if uploaded.size > MAX_UPLOAD_BYTES:
        raise bad_field(
            "file",
            f"The file is larger than {MAX_UPLOAD_BYTES:,} bytes. Ask an administrator to import it on the "
            "server: manage.py import_trees FILE.",
        )
    name = check_name(name.strip() or PurePath(file).stem)
    kept = _keep(uploaded.chunks())
    try:
        with transaction.atomic():
            # Two requests of one user count one after the other.
            User.objects.select_for_update().filter(id=user.id).values_list("id").first()
            if Import.objects.filter(created_by=user, status__in=UNFINISHED).count() >= IMPORTS_AT_ONCE:
                raise RequestError(
                    409,
                    f"{IMPORTS_AT_ONCE} of your imports are not finished. Wait for one, or cancel one.",
                )
            asked = Import.objects.create(
                project=project,
                created_by=user,
                run_name=name,
                file=file,
                upload=kept,
                size_bytes=uploaded.size,
            )
            # The row is the job and this is only a hint: without a broker the sweeper sends it again.
            transaction.on_commit(lambda: broker.send_read_import(asked.id), robust=True)
    except BaseException:
        files.delete(kept)
        raise
    asked.refresh_from_db()
    return asked


def _keep(chunks: Iterable[bytes]) -> str:
    try:
        return files.keep(chunks)
    except OSError as error:
        raise RequestError(
            507, f"The file could not be kept here: {error.strerror or error}. Ask an administrator."
        ) from error


def cancel(asked: Import, user: User) -> None:
    """Nobody works on it any more; asking twice changes nothing. Raises RequestError(409) when it has ended.

    A worker that is at it finds that its row is not its own any more, within a second, and stores nothing.
    """
    waiting = Import.objects.filter(id=asked.id, status__in=UNFINISHED)
    if waiting.update(
        status=JobStatus.CANCELLED,
        reason=f"Cancelled by {user.get_username()}. Nothing was imported.",
        ended_at=Now(),
        lease_until=None,
        lease_owner="",
    ):
        transaction.on_commit(lambda: files.delete(asked.upload), robust=True)
        return
    asked.refresh_from_db()
    if asked.status != JobStatus.CANCELLED:
        raise RequestError(409, f"This import has already ended ({asked.status}).")


def newest_of(project: Project, most: int, before: int | None = None) -> list[Import]:
    """A project's imports, newest first."""
    found = Import.objects.filter(project=project).select_related("project", "created_by")
    if before is not None:
        found = found.filter(id__lt=before)
    return list(found.order_by(F("id").desc())[:most])


def import_rows(imports: Sequence[Import]) -> list[dict[str, Any]]:
    """IMPORT: each import as page and API show it."""
    return [
        {
            "id": one.id,
            "project": one.project.slug,
            "file": one.file,
            "run_name": one.run_name,
            "run": one.run_id,
            "status": one.status,
            "reason": one.reason,
            "size_bytes": one.size_bytes,
            "done_bytes": one.done,
            "trees": one.trees,
            "errors": one.errors,
            "report": one.report,
            "created_by": one.created_by.get_username(),
            "created_at": one.created_at,
            "ended_at": one.ended_at,
            "attempts": one.attempts,
            "is_unfinished": one.is_unfinished,
        }
        for one in imports
    ]
