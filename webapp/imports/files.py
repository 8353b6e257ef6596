"""Where uploaded files wait. The folder of exports, which web and workers share, has one for them."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable
from pathlib import Path

from webapp.exports import files


def folder() -> Path:
    return files.folder() / "uploads"


def path_of(name: str) -> Path:
    """The name is our own, yet a row cannot point out of the folder."""
    return folder() / Path(name).name


def keep(chunks: Iterable[bytes]) -> str:
    """Write an upload; its name, which nobody can guess. Raises OSError, and then nothing is left."""
    files.make_folder()
    folder().mkdir(mode=0o700, exist_ok=True)
    name = f"{secrets.token_hex(16)}.jsonl"
    try:
        with path_of(name).open("xb") as stream:
            for chunk in chunks:
                stream.write(chunk)
    except BaseException:
        delete(name)
        raise
    return name


def delete(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        path_of(name).unlink()
