"""What pages say of where a run stands. Their scripts get the same sentences with its state."""

from __future__ import annotations

from webapp.formatting import number
from webapp.runs.models import LEASED, Run, RunStatus, WishKind

COUNTED = {"sampling": "segments", "verifying": "answers", "evaluating": "answers", "training": "updates"}
ASKED = {WishKind.PAUSE: "Pause", WishKind.STOP: "Stop", WishKind.KILL: "Stop at once"}


def shown_status(run: Run) -> str:
    """The status as a word for people, and for its colour: a run that hangs is not shown as healthy."""
    if run.status == RunStatus.STOPPING and run.wish == WishKind.PAUSE:
        return "pausing"
    if run.stalled_at is not None and run.status in (RunStatus.STARTING, RunStatus.RUNNING):
        return "stalled"
    return str(run.status)


def told_reason(run: Run) -> str:
    """The run's reason as it goes on from the word of its status: "Paused", "by ada after step 3."."""
    word = shown_status(run)
    if word == "stalled":
        return "Its worker lives, its trainer does not get on. If it hangs, stop it now and retry it."
    first, _, rest = run.reason.partition(" ")
    return rest if first.lower() == word else run.reason


def phase_words(run: Run) -> str:
    """Where inside a step its trainer is: `sampling 602 of 1,344 segments`. One of one is no count."""
    if run.status not in LEASED or not run.phase:
        return ""
    if run.phase_total < 2:
        return str(run.phase)
    return f"{run.phase} {run.phase_done:,} of {run.phase_total:,} {COUNTED.get(run.phase, '')}".rstrip()


def idle_words(steps: int, since: int | None, rewards: tuple[float, float] | None) -> str:
    """Of a run whose last `steps` steps trained no token; `since`: the last one that did. `rewards`: the mean
    of its first step and of its last.
    """
    told = f"No token trained in the last {steps:,} steps: nothing that was sampled had credit to train on."
    if since is None:
        told = f"No token has trained in {steps:,} steps: nothing that was sampled had credit to train on."
    if rewards is None:
        return told
    first, last = rewards
    told += f" Mean reward was {number(first, 2)} in the first step and is {number(last, 2)} now."
    if since is not None and last < first - abs(first) / 2:
        todo = "fork a checkpoint from before, or clone with a lower learning rate"
        return f"{told} The policy has probably broken: {todo}."
    if last > first:
        return f"{told} What is always solved teaches nothing: go on with harder problems."
    return f"{told} Easier problems, or more answers to each, give something to compare."


def wish_words(run: Run, *, is_silent: bool) -> str:
    """How far what somebody asked for has got: the part after "Pause requested by ada 2 s ago · ".
    `is_silent`: its trainer does not answer; the page adds when it is ended.
    """
    if run.status not in LEASED or not run.wish:
        return ""
    if run.wish_seen_at is None:
        return "waiting for the worker"
    if run.wish == WishKind.KILL:
        return "acknowledged · ending the trainer"
    if is_silent:
        return "acknowledged · the trainer does not answer"
    if run.phase == "saving":
        return f"acknowledged · saving the checkpoint of step {run.step}"
    # A step whose update has begun is finished, any other is given up.
    return f"acknowledged · leaving step {run.step + 1}, or finishing it if it is nearly done, then saving"
