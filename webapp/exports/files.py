"""Where exports lie, and under which names."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from django.conf import settings
from django.utils.text import slugify

from webapp.exports.kinds import Parameters, suffix
from webapp.exports.models import Export

PART = ".part"


def folder() -> Path:
    return Path(settings.EXPORT_DIR)


def make_folder() -> Path:
    """The folder, private to us. Raises OSError."""
    place = folder()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def new_name(export_id: int, epoch: int, parameters: Parameters) -> str:
    """Of the file on disk; nobody can guess it, and no two attempts share one."""
    return f"{export_id}-{epoch}-{secrets.token_hex(8)}.{suffix(parameters)}"


def path_of(export: Export) -> Path:
    """Of a finished export. The name is our own, yet a row cannot point out of the folder."""
    return folder() / Path(export.file).name


def download_name(export: Export) -> str:
    """What the file is called where it is saved: letters, digits and hyphens alone."""
    words = slugify(export.title)[:60].strip("-")
    return f"{words or 'export'}-{export.kind}-{export.id}{Path(export.file).suffix}"


def delete(name: str) -> None:
    if name:
        with contextlib.suppress(FileNotFoundError):
            (folder() / Path(name).name).unlink()
