"""Which of a run's policies can still be sampled from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings

from trainer.config import stored_config
from webapp.runs.models import Checkpoint, Run

BASE = 0  # the policy before the first step: the model that the run started from


@dataclass(frozen=True, slots=True)
class KeptPolicy:
    """The policy after `version` steps; `path` of its checkpoint below the run's folder, "" for the base
    model.
    """

    version: int
    path: str

    @property
    def name(self) -> str:
        return f"v{self.version}"


def kept_policies(run: Run) -> list[KeptPolicy]:
    """Newest first; the base model is the last. One query.

    Where the run's folder is on this machine, what lies there decides. Else it is the rule by which the
    trainer deletes old checkpoints (`checkpoint.keep_last`, of each attempt), and the worker has the last
    word.
    """
    rows = Checkpoint.objects.filter(run=run).order_by("-seq")
    folder = settings.DATA_DIR / "runs" / str(run.id)
    is_here = folder.is_dir()
    keep_last = stored_config(run.config).checkpoint.keep_last
    per_attempt: dict[int, int] = {}
    found: dict[int, KeptPolicy] = {}
    for row in rows:
        per_attempt[row.epoch] = per_attempt.get(row.epoch, 0) + 1
        is_kept = (
            (folder / row.path / "manifest.json").is_file()
            if is_here
            else per_attempt[row.epoch] <= keep_last
        )
        if is_kept and row.step != BASE:
            found.setdefault(row.step, KeptPolicy(row.step, row.path))
    return [*sorted(found.values(), key=lambda kept: -kept.version), KeptPolicy(BASE, "")]


def nearest(policies: Sequence[KeptPolicy], version: int) -> list[KeptPolicy]:
    """The newest one at or before `version` and the oldest after it: one or two of them."""
    before = [kept for kept in policies if kept.version <= version][:1]
    after = [kept for kept in policies if kept.version > version][-1:]
    return [*before, *after]


def not_kept(policies: Sequence[KeptPolicy], version: int) -> str:
    """The sentence for a version that is gone."""
    around = " and ".join(kept.name for kept in nearest(policies, version))
    return f"The checkpoint of v{version} was not kept. Nearest that can be sampled: {around}."
