"""Finds trainers whose supervisor is gone, by written record, and ends them with all they started.

The death signal and the watched pipe normally do that within a second; this is for what slips through: a
supervisor that is frozen, an engine process that left its group. Whoever is on the machine may look: a worker
that starts, a worker at work, the sweeper.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from webapp.embedded import processes
from webapp.embedded.processes import Identity

MARK = "ARBORIST_ATTEMPT"  # in the environment of a trainer and of all that it starts
logger = logging.getLogger(__name__)


def temporary_folder(mark: str) -> Path:
    """Where a trainer with this mark puts what is not to outlive it. Short, since sockets may lie in it."""
    return Path(tempfile.gettempdir()) / f"arborist-{mark}"


@dataclass(frozen=True, slots=True)
class Record:
    """One trainer that was started on this machine; None: it was about to be."""

    path: Path
    run_id: int
    epoch: int
    mark: str
    trainer: Identity | None
    supervisor: Identity


def here() -> str:
    """This machine since its last start: pids mean nothing anywhere else."""
    return f"{socket.gethostname()} {processes.boot_id()}"


def write(folder: Path, run_id: int, epoch: int, mark: str, trainer: Identity | None) -> Path:
    """Note a trainer that this process supervises, or is about to start. Returns the note, to be removed when
    the trainer has ended.
    """
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
                "trainer": None if trainer is None else [trainer.pid, trainer.started],
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
                None if note["trainer"] is None else Identity(*map(int, note["trainer"])),
                Identity(*map(int, note["supervisor"])),
            )
        except FileNotFoundError:
            continue  # its supervisor was done with it just now
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("The note %s cannot be read: %s", path, error)
            continue
        found.append(record)
    return found


def reap(folder: Path, is_current: Callable[[int, int], bool] = lambda _run, _epoch: True) -> int:
    """End every noted trainer whose supervisor is gone or whose attempt `is_current` denies.

    Returns how many trainers were found so. What `is_current` raises comes after the first kind is ended.
    """
    records = read(folder)
    gone = [record for record in records if not record.supervisor.is_alive()]
    for record in gone:
        _end(record)
    denied = [r for r in records if r not in gone and not is_current(r.run_id, r.epoch)]
    for record in denied:
        _end(record)
    return len(gone) + len(denied)


def _end(record: Record) -> None:
    if record.trainer is not None:
        processes.kill(_group(record.trainer))
    processes.end_marked(record.mark, variable=MARK)
    shutil.rmtree(temporary_folder(record.mark), ignore_errors=True)
    record.path.unlink(missing_ok=True)
    logger.warning(
        "Ended what was left of attempt %s of run %s (trainer %s).",
        record.epoch,
        record.run_id,
        "not started" if record.trainer is None else record.trainer.pid,
    )


def _group(leader: Identity) -> list[Identity]:
    """The leader's process group, also when the leader itself is gone: then its pid is nobody else's as long
    as the group has members. Empty when the pid has been given to another process since.
    """
    now = Identity.of(leader.pid)
    if now is not None and now != leader:
        return []
    found = []
    for pid in processes.pids():
        identity = Identity.of(pid)
        try:
            is_member = os.getpgid(pid) == leader.pid
        except (ProcessLookupError, PermissionError):
            continue
        if identity is not None and is_member and identity.started >= leader.started:
            found.append(identity)
    return found
