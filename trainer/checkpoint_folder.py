"""Which checkpoints lie in a folder, and what a process that died there left behind. What is in a checkpoint
is `checkpoint`'s matter. Torch-free.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d+)")


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Folders of finished checkpoints, oldest step first; their files are not verified here."""
    named = [path for path in (run_dir / FOLDER).glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted((path for path in named if (path / "manifest.json").is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def best_of(checkpoints: Iterable[Path]) -> Path | None:
    """The checkpoint with the best accuracy, the first of equals; None if none was evaluated."""
    best: tuple[float, Path] | None = None
    for path in checkpoints:
        try:
            accuracy = json.loads((path / "manifest.json").read_bytes()).get("accuracy")
        except (OSError, ValueError, AttributeError):
            continue  # a damaged one is nobody's best
        if isinstance(accuracy, int | float) and (best is None or accuracy > best[0]):
            best = (float(accuracy), path)
    return None if best is None else best[1]


def delete_checkpoint(path: Path) -> None:
    """It loses its name first: whoever dies on the way leaves no half checkpoint. Raises OSError."""
    gone = unfinished_name(path)
    path.rename(gone)
    shutil.rmtree(gone)


def unfinished_name(checkpoint: Path) -> Path:
    """A name beside it, of its own, for what is no checkpoint yet or any more."""
    return checkpoint.with_name(f"{checkpoint.name}.tmp-{secrets.token_hex(4)}")


def remove_unfinished(run_dir: Path, older_than_seconds: float = 0.0) -> None:
    """Delete what a killed process left half-written, and give a checkpoint its name back that was to be
    replaced by one that never took it. Only the one process that may write to this folder calls it; for
    others there is `older_than_seconds`: what nobody has written to for so long is half-written for ever.
    """
    latest = time.time() - older_than_seconds
    for parked in (run_dir / FOLDER).glob("step-*.old-*") if not older_than_seconds else ():
        target = parked.with_name(parked.name.partition(".")[0])
        if target.exists():
            shutil.rmtree(parked, ignore_errors=True)
        else:
            parked.rename(target)
    for leftover in (run_dir / FOLDER).glob("step-*.tmp-*"):
        if _is_older(leftover, latest):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_older(folder: Path, latest: float) -> bool:
    """Whether nothing in it was written after `latest`."""
    try:
        return all(path.stat().st_mtime <= latest for path in (folder, *folder.rglob("*")))
    except OSError:
        return False  # it is being deleted just now
