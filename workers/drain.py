"""A thread that moves records from the spool into the database, in batches, for as long as it takes."""

from __future__ import annotations

import logging
import threading
import time

from django.db import DatabaseError, InterfaceError, OperationalError, connection

from trainer.events import LogLine, Progress
from workers import keeping
from workers.lease import LeaseLostError
from workers.limits import (
    GATHER_SECONDS,
    PROGRESS_SECONDS,
    RECORD_BYTES,
    RECORD_EVENTS,
    RECORD_SECONDS,
    RETRY_SECONDS,
)
from workers.output import Spooled, UnreadableEventError, read_event
from workers.recorder import ConflictError, GapError, Recorded, Recorder
from workers.spool import Record, Spool, SpoolReader

logger = logging.getLogger(__name__)


class Batches:
    """Takes batches from a spool file and records them. The thread's, and for spools of the dead."""

    def __init__(self, reader: SpoolReader, recorder: Recorder) -> None:
        self.reader = reader
        self.recorder = recorder

    def move(self, end: int) -> Recorded | None:
        """Record the next batch before the offset `end`. None: there is none."""
        records = self.reader.take(end, RECORD_EVENTS, RECORD_BYTES)
        if not records:
            return None
        recorded = self.recorder.record(
            [(record.n, _event(record)) for record in records], [record.checksum for record in records]
        )
        self.reader.advance(records[-1])
        keeping.remove(recorded.old)
        return recorded


def _event(record: Record) -> Spooled:
    try:
        return read_event(record.payload)
    except UnreadableEventError as error:
        # Checked when it was written, so this spool is from another version of Arborist.
        message = f"Record {record.n} of this attempt cannot be read by this version: {error}"
        return LogLine(time=time.time(), level="error", message=message[:8192])


class Drain(threading.Thread):
    """`lost`, `broken`: why it gave up, or None. `ended`: the run's last record of this attempt is stored."""

    def __init__(self, spool: Spool, recorder: Recorder) -> None:
        super().__init__(name=f"drain-{recorder.lease.run_id}", daemon=True)
        self._spool = spool
        self._batches = Batches(SpoolReader(spool.path), recorder)
        self._progress: Progress | None = None
        self._shown_at = 0.0
        self._wake = threading.Event()
        self._leave = False
        self.lost: str | None = None
        self.broken: str | None = None
        self.ended = False
        self.is_away = False

    @property
    def through(self) -> int:
        """Records 1..n are stored."""
        return self._batches.reader.n

    @property
    def stored_bytes(self) -> int:
        return self._batches.reader.offset

    def appended(self) -> None:
        """There is something new in the spool."""
        self._wake.set()

    def show(self, progress: Progress) -> None:
        """Where the trainer is; only the latest counts, and of the trees that grow the latest that tells
        any.
        """
        waiting = self._progress
        if waiting is not None and waiting.growing and not progress.growing and waiting.step == progress.step:
            progress = progress.model_copy(update={"growing": waiting.growing})
        self._progress = progress
        self._wake.set()

    def leave(self) -> None:
        """Give up what is not stored yet; it stays in the spool."""
        self._leave = True
        self._wake.set()
        self.join()

    def run(self) -> None:
        try:
            while not self._leave and self.lost is None and self.broken is None and not self.ended:
                self._wake.wait(self._progress_is_due_in())
                self._wake.clear()
                if self._spool.count > self.through:
                    # A step's events come in a burst: one transaction for them, not two.
                    self._pause(GATHER_SECONDS)
                self._store()
        except Exception as error:  # a defect of ours: whoever waits for this thread must learn of it
            logger.exception("The drain of run %s broke", self._batches.recorder.lease.run_id)
            self.broken = f"The worker failed while it stored results: {type(error).__name__}: {error}"
        finally:
            self._batches.reader.close()
            connection.close()

    def _store(self) -> None:
        """Everything that waits, batch by batch."""
        failures = 0
        while not self._leave:
            started = time.monotonic()
            try:
                recorded = self._batches.move(self._spool.end)
                if recorded is None:
                    self._show_progress()
            except LeaseLostError as lost:
                self.lost = str(lost)
                return
            except (OperationalError, InterfaceError) as error:
                if failures == 0:
                    logger.warning("Events wait in %s: %s", self._spool.path, error)
                self.is_away = True
                connection.close()
                self._pause(RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])
                failures += 1
                continue
            except (DatabaseError, GapError, ConflictError, OSError, ValueError) as error:
                # Not a matter of time: a defect of ours, or a damaged disk. The run must end and say so.
                logger.exception("Events of run %s cannot be stored", self._batches.recorder.lease.run_id)
                self.broken = f"The results could not be stored: {type(error).__name__}: {error}"
                return
            failures, self.is_away = 0, False
            if recorded is None:
                return
            if recorded.ended:
                self.ended = True
                return
            self._pause(RECORD_SECONDS - (time.monotonic() - started))

    def _progress_is_due_in(self) -> float | None:
        """Seconds; None: there is none to show."""
        if self._progress is None:
            return None
        return max(0.0, self._shown_at + PROGRESS_SECONDS - time.monotonic())

    def _show_progress(self) -> None:
        progress = self._progress
        if progress is not None and not self._progress_is_due_in():
            self._batches.recorder.show(progress)
            self._shown_at = time.monotonic()
            if self._progress is progress:
                self._progress = None

    def _pause(self, seconds: float) -> None:
        """Gather; cut short when there is much to do or we are to leave."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._leave:
            if not self.is_away and self._spool.count - self.through >= RECORD_EVENTS:
                return
            time.sleep(min(left, 0.05))
