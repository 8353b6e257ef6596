"""Which of a run's policies can still be sampled from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.conf import settings

from webapp.runs.models import Checkpoint, Run
from webapp.runs.origin import config_of

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
    """Newest first; the base model is the last. None at all where the run's config is not known. One query.

    A checkpoint is taken off the list before it is deleted. Where the run's folder is on this machine, it
    must lie there as well; else the worker has the last word.
    """
    if config_of(run) is None:
        return []
    rows = Checkpoint.objects.filter(run=run).order_by("-seq")
    folder = settings.DATA_DIR / "runs" / str(run.id)
    is_here = folder.is_dir()
    found: dict[int, KeptPolicy] = {}
    for row in rows:
        is_kept = not is_here or (folder / row.path / "manifest.json").is_file()
        if is_kept and row.step != BASE:
            found.setdefault(row.step, KeptPolicy(row.step, row.path))
    return [*sorted(found.values(), key=lambda kept: -kept.version), KeptPolicy(BASE, "")]


def without_model(run: Run) -> str:
    """Why nothing at all can be sampled from the run's trees; "" where something can."""
    if run.is_imported:
        return (
            "These trees were imported, and no model came with them: nothing can be sampled from them here."
        )
    if config_of(run) is not None:
        return ""
    return "This run's config is of another version of Arborist, so its model is not known here."


def nearest(policies: Sequence[KeptPolicy], version: int) -> list[KeptPolicy]:
    """The newest one at or before `version` and the oldest after it: one or two of them."""
    before = [kept for kept in policies if kept.version <= version][:1]
    after = [kept for kept in policies if kept.version > version][-1:]
    return [*before, *after]


def not_kept(policies: Sequence[KeptPolicy], version: int) -> str:
    """The sentence for a version that is gone."""
    around = " and ".join(kept.name for kept in nearest(policies, version))
    return f"The checkpoint of v{version} was not kept. Nearest that can be sampled: {around}."
