"""After a campaign: rows, files, logs and processes into plain evidence for the checker."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np

from tests.campaign import content
from tests.campaign.checker import ENDED, KEPT_TEMPORARY
from tests.campaign.evidence import (
    CheckpointFound,
    EndedAttempt,
    EndedRun,
    Evidence,
    StoredEvent,
    Twin,
)
from tests.campaign.material import of_metrics, state_of
from trainer.config import RunConfig
from trainer.tree import RolloutTree
from trainer.values import backed_up_values

# Tracebacks that tell of what was done to the system, and that the system handled: the last line of each.
EXPECTED_ERRORS = re.compile(
    r"OperationalError|InterfaceError|AdminShutdown|CannotConnectNow|PoolTimeout|ConnectionTimeout|ConnectionError"
    r"|ConnectionResetError|ConnectionRefusedError|BrokenPipeError|WorkerLostError|TimeoutError|Lost"
    r"|DiskFull|No space left on device|File too large"
    r"|LockNotAvailable|QueryCanceled|OutOfMemoryError|BusyLoadingError|ExecAbortError|RestartFreqExceeded|CheckpointError"
)


def gather(
    data: Path,
    logs: Path,
    temporary: Path,
    twins: dict[str, Twin],
    config_of: dict[int, str],
    torn: set[tuple[int, int]],
    damaged: set[Path],
) -> Evidence:
    """Reads the database directly and `data`, the folder that holds `runs/`."""
    from webapp.runs.models import Attempt, Run

    left = Evidence(twins=twins)
    for run in Run.objects.select_related("checkpoint").order_by("id"):
        name = config_of.get(run.id, "")
        events, metrics, trees = _events(run, left)
        left.events += events
        folder = data / "runs" / str(run.id)
        weights: dict[str, str] = {}
        if run.checkpoint is not None and (folder / run.checkpoint.path / "manifest.json").is_file():
            weights = state_of(folder / run.checkpoint.path)
        left.runs.append(
            EndedRun(
                run.id,
                run.status,
                run.lease_epoch,
                run.last_seq,
                run.step,
                name,
                run.reason,
                metrics,
                trees,
                weights,
            )
        )
        _checkpoints(run, folder, damaged, left)
    for row in Attempt.objects.order_by("run_id", "epoch"):
        is_torn = (row.run_id, row.epoch) in torn
        left.attempts.append(EndedAttempt(row.run_id, row.epoch, row.recorded_through, row.outcome, is_torn))
    left.log_trouble = list(log_trouble(logs))
    # A worker that is killed leaves the empty folder of its queue library.
    files = [path for path in temporary.iterdir() if not (path.is_dir() and not any(path.iterdir()))]
    left.files_left = [f"temporary file {path.name} is left" for path in files]
    return left


def _events(
    run: Any, left: Evidence
) -> tuple[list[StoredEvent], dict[tuple[int, str], str], dict[tuple[int, int], str]]:
    """The events of a run, and what of it is visible. Twice visible is a bad sign and said at once."""
    from webapp.live.catch_up import events_between
    from webapp.runs.models import Event, Point
    from webapp.trees.models import StoredTree

    told: dict[int, str] = {}
    for after in range(0, run.last_seq, 500):
        told |= {
            seq: content.of_message(json.loads(text))
            for seq, text in events_between(run.id, after, min(after + 500, run.last_seq))
        }
    values: dict[int, dict[str, float]] = defaultdict(dict)
    metrics: dict[tuple[int, str], str] = {}
    points = Point.objects.filter(run_id=run.id).order_by("id")
    for seq, step, name, value, hidden in points.values_list(
        "seq", "step", "series__name", "value", "superseded"
    ):
        if name in values[seq]:
            left.bad_trees.append(f"run {run.id}: event {seq} has two values of {name}")
        values[seq][name] = value
        if not hidden:
            for key, bits in of_metrics(step, {name: value}).items():
                if key in metrics:
                    left.bad_trees.append(f"run {run.id}: {name} of step {step} is visible twice")
                metrics[key] = bits
    stored: dict[int, tuple[int, str, bytes]] = {}
    trees: dict[tuple[int, int], str] = {}
    backup = None if run.is_imported else RunConfig.model_validate(run.config).credit.backup
    for row in StoredTree.objects.filter(run_id=run.id):
        payload = bytes(row.payload)
        stored[row.seq] = (row.index, row.problem_id, payload)
        if not row.superseded:
            if (row.step, row.index) in trees:
                left.bad_trees.append(f"run {run.id}: tree {row.index} of step {row.step} is visible twice")
            trees[row.step, row.index] = content.payload_digest(payload)
        if problem := _tree_problem(payload, row.n_nodes, backup):
            left.bad_trees.append(f"run {run.id}: tree {row.index} of step {row.step}: {problem}")
    events = []
    for row in Event.objects.filter(run=run).order_by("seq"):
        digest = content.of_row(row.kind, row.body, values.get(row.seq, {}), stored.get(row.seq))
        status = str(row.body.get("status", "")) if row.kind == "status" else ""
        events.append(
            StoredEvent(run.id, row.seq, row.epoch, row.kind, row.step, digest, told.get(row.seq, ""), status)
        )
    return events, metrics, trees


def _tree_problem(payload: bytes, n_nodes: int, backup: Any) -> str:
    try:
        tree = RolloutTree.from_payload(payload)  # refuses cycles, second roots and parents that come later
    except ValueError as error:
        return str(error)
    if tree.n_nodes != n_nodes:
        return f"its row says {n_nodes} nodes, it has {tree.n_nodes}"
    if backup is not None and not np.allclose(
        backed_up_values(tree, backup), tree.value, rtol=0, atol=1e-9, equal_nan=True
    ):
        return "its values do not follow from its leaves"
    return ""


def _checkpoints(run: Any, folder: Path, damaged: set[Path], left: Evidence) -> None:
    pointed = None if run.checkpoint is None else folder / run.checkpoint.path
    seen: set[Path] = set()
    for home in sorted(folder.glob("attempt-*/checkpoints")):
        temporary = [*home.glob("step-*.tmp-*"), *home.glob("step-*.old-*")]
        if len(temporary) > KEPT_TEMPORARY:
            left.checkpoint_trouble.append(
                f"run {run.id}: {len(temporary)} unfinished checkpoints in {home.parent.name}"
            )
        for path in sorted(home.glob("step-*")):
            if path in temporary:
                continue
            seen.add(path)
            left.checkpoints.append(
                CheckpointFound(
                    run.id,
                    f"{home.parent.name}/{path.name}",
                    checkpoint_problem(path),
                    path == pointed,
                    path in damaged,
                )
            )
    if pointed is not None and pointed not in seen and run.status not in ENDED:
        left.checkpoint_trouble.append(f"run {run.id}: its checkpoint {run.checkpoint.path} is not there")


def checkpoint_problem(path: Path) -> str:
    """Why it cannot be loaded; "" if every file is what its manifest says."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        for name, entry in manifest["files"].items():
            with (path / name).open("rb") as stream:
                if file_digest(stream, "sha256").hexdigest() != entry["sha256"]:
                    return f"{name} is not what its manifest says"
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def log_trouble(logs: Path) -> Iterable[str]:
    """Tracebacks that no fault explains, and tasks that Celery lost; each kind once per log, counted."""
    for log in sorted(logs.glob("*.log")):
        if log.name in ("database.log", "broker.log"):
            continue
        found: dict[str, int] = defaultdict(int)
        for block in tracebacks(log.read_text(encoding="utf-8", errors="replace").splitlines()):
            if not EXPECTED_ERRORS.search(block[-1]) and "mark_as_worker_lost" not in "".join(block):
                where = next(
                    (line.strip() for line in reversed(block) if line.strip().startswith("File ")), ""
                )
                found[f"{block[-1][:200]} ({where[:160]})"] += 1
        for what, count in found.items():
            yield f"{log.name}: {count}× {what}"


def tracebacks(lines: list[str]) -> Iterable[list[str]]:
    """Each traceback, from its first line to the line that names the error."""
    block: list[str] = []
    for line in lines:
        if "Traceback (most recent call last)" in line:
            block = [line]
        elif block:
            block.append(line)
            bare = re.sub(r"^[\s|+-]+", "", line) if line.lstrip().startswith(("|", "+")) else line
            if (
                bare
                and not bare[0].isspace()
                and not bare.startswith(("File ", "Traceback"))
                and line.strip()
            ):
                if line.startswith("  "):
                    continue
                yield block
                block = []
