"""Reads one trainer until it is gone: keeps what it says, ends it when it must go, says how it ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel

from trainer.events import Finished, LogLine, Progress
from trainer.guards import TROUBLES, Trouble
from trainer.supervised import SUPERVISOR_IS_SILENT
from webapp.limits import STOP_GRACE_SECONDS
from workers import endings
from workers.child import TrainerChild
from workers.drain import Drain
from workers.heartbeat import Heartbeat
from workers.lease import LeaseLostError
from workers.limits import (
    FAIL_GRACE_SECONDS,
    FINISHED_GRACE_SECONDS,
    MAX_LINE_BYTES,
    MAX_SPOOL_BYTES,
    MAX_STRAY_LINES,
    PREEMPT_GRACE_SECONDS,
)
from workers.output import WORKERS_OWN, Died, Preempted, UnreadableEventError, is_event, read_event
from workers.spool import Spool

logger = logging.getLogger(__name__)
TICK_SECONDS = 0.2  # how soon a wish is seen while the trainer says nothing
LAST_WORDS_SECONDS = 1.0  # pipes that a dead trainer's own children keep open are read no longer than this


class Recording:
    """What this thread hands to the drain. `broken`: the spool takes no more, and the system's words."""

    def __init__(self, spool: Spool, drain: Drain) -> None:
        self._spool = spool
        self.drain = drain
        self.broken: str | None = None

    def add(self, event: BaseModel, line: bytes | None = None) -> None:
        """Keep one event; `line` is its JSON where that is known already."""
        if self.broken is not None:
            return
        try:
            self._spool.append(event.model_dump_json().encode() if line is None else line)
        except OSError as error:
            logger.error("%s: %s", self._spool.path, error)
            self.broken = error.strerror or str(error)
            return
        self.drain.appended()

    def say(self, level: Literal["info", "warning", "error"], message: str) -> None:
        """One sentence for people, as an event of the run."""
        self.add(LogLine(time=time.time(), level=level, message=message[:8192]))

    def sync(self, *, if_due: bool = False) -> None:
        try:
            if if_due:
                self._spool.sync_if_due()
            else:
                self._spool.sync()
        except OSError as error:
            logger.error("%s: %s", self._spool.path, error)
            self.broken = self.broken or error.strerror or str(error)

    @property
    def count(self) -> int:
        return self._spool.count

    @property
    def is_full(self) -> bool:
        """Too much waits for the database; the trainer must wait too."""
        return self._spool.end - self.drain.stored_bytes >= MAX_SPOOL_BYTES


class Watch:
    """Reads one trainer until it is gone, and ends it when it must go."""

    def __init__(
        self,
        child: TrainerChild,
        recording: Recording,
        heart: Heartbeat,
        told_to_leave: Callable[[], int],
        *,
        step: int = 0,
        checkpoint: int | None = None,
    ) -> None:
        """step, checkpoint: where the run stood before: its last complete step, its last checkpoint's."""
        self.child = child
        self.recording = recording
        self.heart = heart
        self.told_to_leave = told_to_leave
        self.finished: Finished | None = None
        self.failure: tuple[Trouble, dict[str, object]] | None = None
        self.is_stopping = self.is_leaving = self.is_killing = False
        self.step, self.checkpoint = step, checkpoint
        self._deadline: float | None = None
        self._strays = 0
        self._is_full = False

    def until_it_ends(self) -> None:
        """Returns when the trainer has left and all it said is kept. Raises LeaseLostError."""
        gone_at: float | None = None
        while not self.child.is_silent:
            for line in self.child.read(TICK_SECONDS, hold=self.recording.is_full):
                self._take(line)
            self.recording.sync(if_due=True)
            self._look_around()
            if not self.child.is_alive():
                gone_at = gone_at or time.monotonic()
                if time.monotonic() - gone_at > LAST_WORDS_SECONDS:
                    return
            elif self._deadline is not None and time.monotonic() > self._deadline:
                self.child.kill()
        while self.child.is_alive():
            # It closed its pipes but stays.
            self._look_around()
            self._leave_within(FINISHED_GRACE_SECONDS)
            if self._deadline is not None and time.monotonic() > self._deadline:
                self.child.kill()
            time.sleep(0.01)

    def _take(self, line: bytes) -> None:
        self.heart.trainer_spoke()
        if self.finished is not None or self.failure is not None:
            return
        if not is_event(line):
            self._note_stray(line)
            return
        try:
            event = read_event(line)
        except UnreadableEventError as error:
            self._fail("unreadable", error=error)
            return
        if isinstance(event, Progress):
            self.recording.drain.show(event)
        elif isinstance(event, Finished):
            # Kept until the trainer has left: a stop that nobody asked for is not the run's end.
            self.finished, self.step = event, event.step
            self._leave_within(FINISHED_GRACE_SECONDS)
        elif isinstance(event, WORKERS_OWN):
            self._fail("unreadable", error=f"kind: {event.kind} is the worker's word")
        else:
            self.recording.add(event, line)
            if self.recording.broken is not None:
                return  # what is not kept is made again
            if event.kind == "checkpoint":
                self.recording.sync()
                self.checkpoint = event.step
            elif event.kind == "started":
                self.step = event.step
                self.checkpoint = None if event.resumed_from is None else event.step
            elif event.kind == "metrics":
                self.step = event.step

    def _note_stray(self, line: bytes) -> None:
        if not line.strip():
            return
        self._strays += 1
        if self._strays <= MAX_STRAY_LINES:
            text = line[:500].decode("utf-8", errors="replace")
            self.recording.say("warning", f"The trainer printed a line that is no event: {text}")

    def _look_around(self) -> None:
        if self.heart.lost is not None or self.recording.drain.lost is not None:
            self.child.kill()
            raise LeaseLostError(self.heart.lost or self.recording.drain.lost)
        if self.child.lines.is_overlong:
            self._fail("endless line", megabytes=MAX_LINE_BYTES // 2**20)
        if self.recording.broken is not None:
            self._fail("spool full", what=self.recording.broken)
        if self.recording.drain.broken is not None:
            self._fail("not stored", error=self.recording.drain.broken)
        if self.recording.is_full and not self._is_full:
            logger.warning("The spool is full: the trainer waits for the database.")
        self._is_full = self.recording.is_full
        if self.heart.wish.kind and not self.is_stopping:
            self.is_stopping = True
            if self.heart.wish.kind != "kill":
                self._ask_to_leave(STOP_GRACE_SECONDS)
        if self.heart.wish.kind == "kill" and not self.is_killing:
            self.is_killing = True
            self.child.kill()
        urgency = self.told_to_leave()
        if urgency and not (self.is_leaving or self.is_stopping):
            self.is_leaving = True
            self._ask_to_leave(PREEMPT_GRACE_SECONDS)
        if urgency > 1:
            self._leave_within(0.0)

    def _fail(self, trouble: str, **values: object) -> None:
        if self.failure is None:
            self.failure = TROUBLES[trouble], values
            self._ask_to_leave(FAIL_GRACE_SECONDS)

    def _ask_to_leave(self, grace_seconds: float) -> None:
        if self.finished is None and self._deadline is None:
            self.child.ask_to_stop()
        self._leave_within(grace_seconds)

    def _leave_within(self, seconds: float) -> None:
        """Kill it then; an earlier deadline stands."""
        deadline = time.monotonic() + seconds
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)

    def ending(self, status: int, *, was_out_of_memory: bool) -> Finished | Preempted | Died:
        """The attempt's last record, from how the trainer left."""
        more = self._strays - MAX_STRAY_LINES
        if more > 0:
            self.recording.say("warning", f"The trainer printed {more} more lines that are no events.")
        if self.failure is not None:
            trouble, values = self.failure
            reason = trouble.sentence(self.step, self.checkpoint, **values)
            return finished("paused" if trouble.then == "paused" else "failed", reason, self.step)
        if self.finished is not None:
            if self.finished.outcome == "stopped" and not self.is_stopping:
                return self._preempted()
            return self.finished
        if self.is_killing:
            return finished("stopped", self._told("Its trainer was ended at once"), self.step)
        if self.is_stopping:
            reason = TROUBLES["deaf"].said(seconds=STOP_GRACE_SECONDS)
            return finished("stopped", self._told(reason), self.step)
        if self.is_leaving:
            return self._preempted()
        if status == SUPERVISOR_IS_SILENT:
            return self._preempted("Its worker stood still for a while")
        if smaller := endings.begin_smaller(status, self.child.error_tail()):
            return Preempted(
                time=time.time(),
                step=self.step,
                reason=TROUBLES["rank's memory"].sentence(
                    self.step, self.checkpoint, which=smaller.what, smaller=smaller.tokens
                ),
                microbatch_tokens=smaller.tokens,
            )
        reason = endings.describe(
            status,
            self.child.error_tail(),
            step=self.step,
            checkpoint=self.checkpoint,
            kernel_was_out_of_memory=was_out_of_memory,
        )
        self.recording.say("error", f"Last lines of the trainer's log:\n{self.child.error_tail()[-4000:]}")
        if endings.is_death(status) and not was_out_of_memory:
            # Nobody of ours has ended it, so it may go well another time.
            what = endings.death(status, self.child.error_tail())
            return Died(time=time.time(), step=self.step, what=what)
        return finished("failed", reason, self.step)

    def _told(self, what: str) -> str:
        """With what the run can go on from; whoever asked for it knows what to do next."""
        saved = "no checkpoint" if self.checkpoint is None else f"last checkpoint: step {self.checkpoint}"
        return f"{what}; {saved}."

    def _preempted(self, why: str = "Its worker was told to stop") -> Preempted:
        what = f"{why} after step {self.step}; "
        if self.checkpoint is None:
            what += "there is no checkpoint yet, so it starts again."
        else:
            what += f"it goes on from the checkpoint of step {self.checkpoint}."
        return Preempted(time=time.time(), step=self.step, reason=what)


def finished(outcome: Literal["stopped", "failed", "paused"], reason: str, step: int) -> Finished:
    """The last record of an attempt whose trainer did not write one."""
    return Finished(time=time.time(), outcome=outcome, step=step, reason=reason[:2000])
