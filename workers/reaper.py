"""Finds trainers whose supervisor is gone, by written record, and ends them with all they started.

The death signal and the watched pipe normally do that within a second; this is for what slips through: a
supervisor that is frozen, an engine process that left its group.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from webapp.embedded import processes
from webapp.embedded.processes import Identity
from workers.child import MARK, temporary_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One trainer that was started on this machine."""

    path: Path
    run_id: int
    epoch: int
    mark: str
    trainer: Identity
    supervisor: Identity


def here() -> str:
    """This machine since its last start: pids mean nothing anywhere else."""
    return f"{socket.gethostname()} {processes.boot_id()}"


def write(folder: Path, run_id: int, epoch: int, mark: str, trainer: Identity) -> Path:
    """Note a trainer that this process supervises. Returns the note, to be removed when it has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    supervisor = Identity.of(os.getpid()) or Identity(os.getpid(), 0)
    path = folder / f"{mark}.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(
        json.dumps(
            {
                "here": here(),
                "run": run_id,
                "epoch": epoch,
                "mark": mark,
                "trainer": [trainer.pid, trainer.started],
                "supervisor": [supervisor.pid, supervisor.started],
            }
        )
    )
    temporary.replace(path)
    return path


def read(folder: Path) -> list[Record]:
    """The notes of this machine. What cannot be read, or is from before a reboot, is of no use to anyone."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            note = json.loads(path.read_text())
            if note["here"] != here():
                continue
            record = Record(
                path,
                int(note["run"]),
                int(note["epoch"]),
                str(note["mark"]),
                Identity(*map(int, note["trainer"])),
                Identity(*map(int, note["supervisor"])),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("The note %s cannot be read: %s", path, error)
            continue
        found.append(record)
    return found


def reap(folder: Path, is_current: Callable[[int, int], bool] = lambda _run, _epoch: True) -> int:
    """End every noted trainer whose supervisor is gone or whose attempt `is_current` denies.

    Returns how many trainers were found so.
    """
    ended = 0
    for record in read(folder):
        if record.supervisor.is_alive() and is_current(record.run_id, record.epoch):
            continue
        if record.trainer.is_alive():
            try:
                os.killpg(record.trainer.pid, signal.SIGKILL)
            except ProcessLookupError:
                logger.info("Trainer %s has just ended by itself.", record.trainer.pid)
        processes.end_marked(record.mark, variable=MARK)
        shutil.rmtree(temporary_folder(record.mark), ignore_errors=True)
        ended += 1
        record.path.unlink(missing_ok=True)
        logger.warning(
            "Ended what was left of attempt %s of run %s (trainer %s).",
            record.epoch,
            record.run_id,
            record.trainer.pid,
        )
    return ended
