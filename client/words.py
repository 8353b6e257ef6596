"""Runs, queue and workers as lines of text. What came from the server is made safe for a terminal here."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

MISSING = "-"


def safe(value: object) -> str:
    """Text without control letters: they could move the cursor or rewrite what was printed before."""
    if value is None:
        return MISSING
    return "".join(
        letter if unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else "\ufffd"
        for letter in str(value)
    )


def safe_lines(text: str) -> str:
    """The same of a text whose line ends are meant."""
    return "\n".join(map(safe, text.split("\n")))


def duration(seconds: float | None) -> str:
    """In the two largest units: `3 h 10 min`."""
    if seconds is None:
        return MISSING
    whole = max(round(seconds), 0)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((index for index, (count, _) in enumerate(parts) if count), 3)
    told = [f"{count} {unit}" for count, unit in parts[first : first + 2] if count]
    return " ".join(told) or "0 s"


def moment(text: object) -> str:
    """An ISO 8601 time to the second: `2026-11-27 15:45:02 UTC`."""
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return safe(text)
    if at.tzinfo is not None:
        at = at.astimezone(UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}{'' if at.tzinfo is None else ' UTC'}"


def number(value: float | None, places: int = 3) -> str:
    return MISSING if value is None else f"{value:.{places}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns as wide as what is in them, two blanks apart."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def run_row(run: Mapping[str, Any]) -> list[str]:
    return [
        str(run["id"]),
        safe(run["name"]),
        safe(run["status"]),
        f"{run['step']}/{run['steps_total']}",
        duration(run["eta_s"]),
        number(run["latest"].get("reward/mean")),
        safe(run["reason"])[:80],
    ]


RUN_HEAD = ("id", "name", "status", "step", "eta", "reward", "reason")


def progress(run: Mapping[str, Any]) -> str:
    """One line on where a run stands."""
    parts = [f"run {run['id']} {safe(run['status'])}", f"step {run['step']}/{run['steps_total']}"]
    if run["phase"] and run["worker"]:  # the phase of a run that nobody works on is where it ended
        done = f" {run['phase_done']}/{run['phase_total']}" if run["phase_total"] else ""
        parts.append(f"{safe(run['phase'])}{done}")
    reward = run["latest"].get("reward/mean")
    if reward is not None:
        parts.append(f"reward {number(reward)}")
    parts.append(f"ETA {duration(run['eta_s'])}")
    if run.get("wish"):
        seen = "acknowledged" if run["wish"]["is_seen"] else "requested"
        parts.append(f"{safe(run['wish']['kind'])} {seen}")
    age = run["heartbeat_age_s"]
    if age is not None and age >= 15:
        parts.append(f"worker silent for {duration(age)}")
    return " · ".join(parts)


def run_facts(run: Mapping[str, Any], url: str) -> Iterator[str]:
    yield f"{safe(run['name'])} (run {run['id']} of {safe(run['project'])})"
    yield f"  {progress(run)}"
    if run["reason"]:
        yield f"  {safe(run['reason'])}"
    made = f"by {safe(run['created_by'])}, {moment(run['created_at'])}"
    yield f"  preset {safe(run['preset'])}, seed {run['seed']}, {made}"
    if run["parent"]:
        yield f"  fork of run {run['parent']} at step {run['parent_step']}"
    if run["cloned_from"]:
        yield f"  config of run {run['cloned_from']}"
    if run["worker"]:
        yield f"  worker {safe(run['worker'])}"
    for one in run["attempts"]:
        outcome = one["outcome"] or "under way"
        where = f"{safe(outcome)} on {safe(one['owner'])}"
        yield f"  attempt {one['epoch']}: {where}. {safe(one['reason'])}".rstrip()
    yield f"  {url}"


def queue_lines(classes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in classes:
        many = "worker" if one["workers"] == 1 else "workers"
        counts = f"{one['workers']} {many}, {one['working']} running, {len(one['waiting'])} waiting"
        yield f"{safe(one['queue'])}: {counts}"
        if one["waiting"]:
            rows = [_queue_row(row) for row in one["waiting"]]
            head = ("place", "id", "name", "project", "priority", "start", "why")
            yield from (f"  {line}" for line in table(head, rows))


def _queue_row(row: Mapping[str, Any]) -> list[str]:
    start = row["start_s"]
    when = MISSING if start is None else "now" if start == 0 else f"in {duration(start)}"
    who = (
        [str(row["run"]), safe(row["name"]), safe(row["project"])]
        if row["run"]
        else ["", "(another project)", ""]
    )
    return [str(row["position"]), *who, str(row["priority"]), when, safe(row["why"] or row["start_basis"])]


WORKER_HEAD = ("id", "name", "state", "queues", "works on", "memory", "gpu")


def worker_row(worker: Mapping[str, Any]) -> list[str]:
    machine = worker["machine"]
    runs = [f"{run['id']} step {run['step']}" for run in worker["runs"]]
    if worker["other_runs"]:
        runs.append(f"{worker['other_runs']} of others")
    gpus = [
        f"{safe(gpu['name'])} {size(gpu['memory_used_bytes'])}/{size(gpu['memory_bytes'])}"
        for gpu in machine.get("gpus", [])
    ]
    return [
        str(worker["id"]),
        safe(worker["name"]),
        safe(worker["words"]),
        safe(",".join(worker["queues"])),
        ", ".join(runs) or "nothing",
        f"{size(machine.get('memory_used_bytes'))}/{size(machine.get('memory_bytes'))}",
        "; ".join(gpus) or ("no GPU" if machine and not machine.get("gpu_trouble") else MISSING),
    ]


def size(n_bytes: float | None) -> str:
    return MISSING if n_bytes is None else f"{n_bytes / 2**30:.1f} GB"
