"""A new run that begins with a checkpoint of another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction

from trainer.config import RunConfig
from trainer.forking import what_a_fork_may_not_change
from webapp.accounts.models import User
from webapp.errors import RequestError
from webapp.limits import FORKED_CHECKPOINTS_PER_RUN
from webapp.probes.checkpoints import kept_policies
from webapp.runs.models import Checkpoint, Run
from webapp.runs.origin import config_of
from webapp.runs.services import create_run


def forkable(run: Run) -> Sequence[Checkpoint]:
    """The run's checkpoints that are still kept, newest first, one of each step. Two queries."""
    paths = {kept.path for kept in kept_policies(run) if kept.path}
    rows = Checkpoint.objects.filter(run=run, path__in=paths).order_by("-step", "-seq") if paths else []
    newest: dict[int, Checkpoint] = {}
    for row in rows:
        newest.setdefault(row.step, row)
    return list(newest.values())


def kept_because(config: RunConfig | None, kept: Sequence[Checkpoint]) -> list[tuple[Checkpoint, str]]:
    """Each of `kept`, which come newest first, with why it is not deleted."""
    newest = config.checkpoint.keep_last if config is not None else 1
    told = []
    for place, one in enumerate(kept):
        why = []
        if place < newest:
            why.append("the newest" if place == 0 else f"one of the newest {newest}")
        if one.is_pinned:
            why.append("a fork begins with it")
        if not why:
            why.append(
                "the best evaluated" if config is not None and config.checkpoint.keep_best else "in use"
            )
        told.append((one, ", ".join(why)))
    return told


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with `changes`, whose keys are paths as `training.steps`. Raises RequestError(400) for a path
    that leads nowhere.
    """
    result: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()
    }
    for path, value in changes.items():
        *sections, last = path.split(".")
        place: Any = result
        for section in sections:
            inner = place.get(section)
            if not isinstance(inner, Mapping):
                raise _no_such(path)
            place[section] = dict(inner)
            place = place[section]
        if last not in place:
            raise _no_such(path)
        place[last] = value
    return result


def _no_such(path: str) -> RequestError:
    message = f"{path[:80]!r} is no setting of this run. Paths look like training.steps."
    return RequestError(400, message, [{"path": path[:80], "message": message}])


def fork(
    run: Run,
    user: User,
    checkpoint_id: int,
    config: RunConfig,
    name: str,
    idempotency_key: str | None = None,
) -> Run:
    """A queued run like `run`, with `config`, that begins with one of its checkpoints. Whoever calls it has
    looked that the user may.

    Raises RequestError: 409 when the checkpoint is not kept any more, 400 when the config does not fit it or
    has no step left to make, and those of `create_run`.
    """
    with transaction.atomic():
        # Held until the fork names it: who deletes old checkpoints holds them, too, and looks who names them.
        chosen = Checkpoint.objects.select_for_update().filter(run=run, id=checkpoint_id).first()
        kept = forkable(run)
        if chosen is None or chosen not in kept:
            steps = ", ".join(str(one.step) for one in kept[:10])
            there = f"These are: step {steps}." if kept else "None of this run is."
            raise RequestError(409, f"That checkpoint is not kept any more. {there}")
        _check(run, chosen, config)
        pinned = [one for one in kept if one.is_pinned]
        if chosen not in pinned and len(pinned) >= FORKED_CHECKPOINTS_PER_RUN:
            steps = ", ".join(str(one.step) for one in pinned)
            raise RequestError(
                409,
                f"{len(pinned)} checkpoints of {run.name} are kept for forks, and that is the most. Fork one "
                f"of them: step {steps}.",
            )
        Checkpoint.objects.filter(id=chosen.id).update(is_pinned=True)
        return create_run(run.project, user, config, name, idempotency_key, begins_with=chosen)


def misfits(saved: RunConfig, chosen: Checkpoint, config: RunConfig) -> list[tuple[str, str]]:
    """What of `config` does not go with a checkpoint of a run with `saved`: (path, sentence)."""
    differing = what_a_fork_may_not_change(saved, config)
    if saved.model.path != config.model.path:
        differing.append("model.path")
    found = []
    if differing:
        message = (
            f"{' and '.join(differing)} cannot change in a fork: the checkpoint's weights depend on it. "
            "Create a new run instead."
        )
        found += [(path, message) for path in differing]
    if config.training.steps <= chosen.step:
        message = (
            f"The checkpoint is of step {chosen.step}, so {config.training.steps} steps leave nothing to do. "
            f"Use more than {chosen.step}."
        )
        found.append(("training.steps", message))
    return found


def _check(run: Run, chosen: Checkpoint, config: RunConfig) -> None:
    saved = config_of(run)
    if saved is None:
        raise RequestError(
            409, "This run's config is of another version of Arborist, so it cannot be forked."
        )
    if found := misfits(saved, chosen, config):
        raise RequestError(400, found[0][1], [{"path": path, "message": message} for path, message in found])
