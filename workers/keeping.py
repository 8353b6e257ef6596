"""Which checkpoints of a run stay on this machine's disk, and are listed.

A trainer that works for a worker deletes none of its own: only the database knows which ones a fork was made
from, or another attempt goes on from. So the worker deletes, and first takes what it deletes off the list, in
a transaction that holds the run: whoever reads the list finds every checkpoint of it whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from django.db.models import ManyToOneRel
from django.db.models.functions import Now

from trainer.checkpoint_folder import best_of, delete_checkpoint, list_checkpoints, remove_unfinished
from trainer.schema.training import CheckpointConfig
from webapp.runs.models import ENDED, Attempt, Checkpoint, Run
from workers.lease import Lease
from workers.limits import UNFINISHED_SECONDS

logger = logging.getLogger(__name__)


def take_off_the_list(run: Run, run_folder: Path, policy: CheckpointConfig) -> list[Path]:
    """Keep the last ones and the best, as the run's config says, what is pinned, and what other runs began
    with; returns the folders of all others. What is not on this machine is not ours to decide about.

    The run is locked by the caller, whose transaction is to be committed before `remove`.
    """
    # One that is locked is being forked just now, and stays.
    free = Checkpoint.objects.select_for_update(of=("self",), skip_locked=True)
    rows = list(free.filter(run=run).order_by("seq"))
    here = [row for row in rows if (run_folder / row.path / "manifest.json").is_file()]
    kept = _kept(here, run_folder, policy) | _used(rows)
    old = [row for row in here if row.id not in kept]
    Checkpoint.objects.filter(id__in=[row.id for row in old]).delete()
    return [run_folder / row.path for row in old]


def remove(checkpoints: Iterable[Path]) -> None:
    """Delete these folders; what cannot be is told in the log."""
    for checkpoint in checkpoints:
        try:
            delete_checkpoint(checkpoint)
        except OSError as error:
            logger.warning("The checkpoint %s could not be deleted: %s", checkpoint, error)


def _kept(rows: Sequence[Checkpoint], run_folder: Path, policy: CheckpointConfig) -> set[int]:
    kept = {row.id for row in rows[-policy.keep_last :]} | {row.id for row in rows if row.is_pinned}
    if policy.keep_best:
        best = best_of(run_folder / row.path for row in rows)
        kept |= {row.id for row in rows if run_folder / row.path == best}
    return kept


def _used(rows: Sequence[Checkpoint]) -> set[int | None]:
    """Those that any other row names: whatever it is, it counts on them. A run's own pointer is to its newest
    one.
    """
    used: set[int | None] = set()
    for relation in Checkpoint._meta.get_fields(include_hidden=True):
        if isinstance(relation, ManyToOneRel) and relation.field != Run._meta.get_field("checkpoint"):
            key = relation.field.name
            others = relation.field.model._base_manager.filter(**{f"{key}__in": rows})
            used |= set(others.values_list(key, flat=True))
    return used


def clear_up(lease: Lease, run_folder: Path) -> None:
    """What dead attempts left on this machine: half-written checkpoints, and finished ones that never came to
    be listed, which nobody can go on from. Their spools must be stored before.
    """
    for epoch in Attempt.objects.filter(run_id=lease.run_id, epoch__lt=lease.epoch).values_list("epoch"):
        remove_unfinished(run_folder / f"attempt-{epoch[0]}")
    _delete_unlisted({lease.run_id: run_folder}, before=lease.epoch)


def sweep(runs_folder: Path) -> None:
    """What is left on this machine of all runs: half-written checkpoints that nobody writes to any more, and
    of runs that have ended what is not listed.
    """
    for checkpoints in runs_folder.glob("*/attempt-*/checkpoints"):
        remove_unfinished(checkpoints.parent, older_than_seconds=UNFINISHED_SECONDS)
    here = {int(path.name): path for path in runs_folder.glob("*") if path.name.isdecimal()}
    long_ago = Now() - timedelta(seconds=UNFINISHED_SECONDS)
    ended = Run.objects.filter(id__in=here, status__in=ENDED, ended_at__lt=long_ago)
    _delete_unlisted({run_id: here[run_id] for run_id in ended.values_list("id", flat=True)})


def _delete_unlisted(run_folders: Mapping[int, Path], before: int = 2**62) -> None:
    """Finished checkpoints of attempts that this database knows and that have no more to tell."""
    if not run_folders:
        return
    rows = Checkpoint.objects.filter(run__in=run_folders).values_list("run_id", "path")
    listed = {run_folders[run_id] / path for run_id, path in rows}
    attempts = Attempt.objects.filter(run__in=run_folders, epoch__lt=before).values_list("run_id", "epoch")
    for run_id, epoch in attempts:
        folder = run_folders[run_id] / f"attempt-{epoch}"
        if not (folder / "spool").exists():
            remove(path for path in list_checkpoints(folder) if path not in listed)
