"""What pages say of where a run stands. Their scripts get the same sentences with its state."""

from __future__ import annotations

from webapp.runs.models import LEASED, Run, RunStatus, WishKind

ASKED = {WishKind.PAUSE: "Pause", WishKind.STOP: "Stop", WishKind.KILL: "Stop at once"}


def shown_status(run: Run) -> str:
    """The status as a word for people, and for its colour: a run that hangs is not shown as healthy."""
    if run.status == RunStatus.STOPPING and run.wish == WishKind.PAUSE:
        return "pausing"
    if run.stalled_at is not None and run.status in (RunStatus.STARTING, RunStatus.RUNNING):
        return "stalled"
    return str(run.status)


def wish_words(run: Run) -> str:
    """How far what somebody asked for has got: the part after "Pause requested by ada 2 s ago · "."""
    if run.status not in LEASED or not run.wish:
        return ""
    if run.wish_seen_at is None:
        return "waiting for the worker"
    if run.wish == WishKind.KILL:
        return "acknowledged · ending the trainer"
    if run.phase == "saving":
        return f"acknowledged · saving the checkpoint of step {run.step}"
    return f"acknowledged · leaving step {run.step + 1}, then saving step {run.step}"
