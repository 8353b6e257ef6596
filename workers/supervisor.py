"""One attempt of a run, from the claim to its last row.

Three threads: this one reads the trainer and appends to the spool (`watch`), and never waits for the database
while the trainer runs; one keeps the lease (`heartbeat`); one moves records from the spool into rows
(`drain`). How an attempt ended is its spool's last record, so the end is stored exactly once like everything
before it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Literal, TypeVar

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, connections
from django.db.models import Min
from pydantic import ValidationError

from trainer.config import stored_config
from trainer.config_file import config_to_yaml
from trainer.events import Finished, LogLine
from trainer.guards import TROUBLES, is_full, told
from trainer.schema.training import CheckpointConfig
from webapp import broker
from webapp.embedded import leftovers
from webapp.projects.models import ModelSource
from webapp.runs.config_form import ConfigError, config_errors
from webapp.runs.models import Attempt, Checkpoint, Run, RunStatus, Worker
from workers import keeping, lease, memory
from workers.child import TrainerChild
from workers.drain import Batches, Drain
from workers.heartbeat import Heartbeat
from workers.lease import Lease, LeaseLostError
from workers.limits import MAX_CHECKPOINTS_TRIED, RETRY_SECONDS, SHUTDOWN_RECORD_SECONDS
from workers.output import Died, Preempted
from workers.recorder import ConflictError, GapError, Recorder
from workers.spool import Spool, SpoolReader
from workers.watch import Recording, Watch, finished

logger = logging.getLogger(__name__)
T = TypeVar("T")
KEEP_ALL = 1000
TRAINER = (sys.executable, "-m", "trainer")


def trainer_notes() -> Path:
    """Where this machine's trainers are written down for the reaper."""
    folder: Path = settings.DATA_DIR / "workers" / "trainers"
    return folder


class CannotStartError(Exception):
    """The run cannot begin; one of `TROUBLES` and what is filled in says why."""

    def __init__(self, trouble: str, **values: object) -> None:
        super().__init__(trouble)
        self.trouble, self.values = TROUBLES[trouble], values


def supervise(
    held: Lease, *, told_to_leave: Callable[[], int] = lambda: 0, command: Sequence[str] = TRAINER
) -> None:
    """Work on the run until it has ended, or waits for another worker, or is not ours any more.

    `told_to_leave`: how often the worker was told to shut down; the second time there is no time to save.
    `command` is the trainer's, without its arguments.
    """
    with sigterm_means_leave(told_to_leave) as leave:
        attempt = _Attempt(held, leave, command)
        try:
            attempt.run()
        except LeaseLostError as lost:
            logger.warning("Run %s is not this worker's any more: %s.", held.run_id, lost)
        except (OperationalError, InterfaceError):
            logger.exception("Run %s is given up until the database answers", held.run_id)
        except Exception as error:  # a defect of ours must not leave the run "running"
            with contextlib.suppress(LeaseLostError, OperationalError, InterfaceError):
                lease.end(held, *_ending(held, error))
            if not is_full(error):
                raise
            logger.error("Run %s is paused: %s", held.run_id, error)  # no defect to be traced
        finally:
            connections.close_all()


@contextlib.contextmanager
def sigterm_means_leave(told_to_leave: Callable[[], int]) -> Iterator[Callable[[], int]]:
    """A stop of a whole process group or container reaches this process before the worker can speak to it.
    Told twice, there is no time to save.
    """
    signals = 0

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal signals
        signals += 1

    if threading.current_thread() is not threading.main_thread():
        yield told_to_leave
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: max(signals, told_to_leave())
    finally:
        signal.signal(signal.SIGTERM, before)


class _Attempt:
    """What an attempt holds, and the order of things."""

    def __init__(self, held: Lease, told_to_leave: Callable[[], int], command: Sequence[str]) -> None:
        self.lease = held
        self.told_to_leave = told_to_leave
        self.command = command
        self.run_folder = settings.DATA_DIR / "runs" / str(held.run_id)
        self.folder = self.run_folder / f"attempt-{held.epoch}"
        self.notes = trainer_notes()
        self.heart = Heartbeat(held)
        self.queue = ""
        self.keep: CheckpointConfig | None = None
        self.news: list[LogLine] = []  # of earlier attempts, for this one's events

    def run(self) -> None:
        self.heart.start()
        try:
            leftovers.reap(self.notes, self._may_live)
            if self._drain_earlier_attempts():
                return
            self._patiently(lambda: keeping.clear_up(self.lease, self.run_folder))
            self._make_folder()
            self._record(Spool(self.folder / "spool"))
        finally:
            self.heart.leave()
            _forget_sighting(self.lease)

    def _may_live(self, run_id: int, epoch: int) -> bool:
        return run_id != self.lease.run_id or epoch >= self.lease.epoch

    def _drain_earlier_attempts(self) -> bool:
        """Store what dead attempts left on this machine. Returns whether that ended the run."""
        left = {_epoch(path.parent): path for path in self.run_folder.glob("attempt-*/spool")}
        for epoch in sorted(left):
            if not 0 < epoch < self.lease.epoch:
                continue
            reader = SpoolReader(left[epoch])
            batches = Batches(reader, Recorder(self.lease, attempt_epoch=epoch))
            try:
                while recorded := self._patiently(lambda b=batches, r=reader: b.move(r.size())):  # type: ignore[misc]
                    if recorded.ended:
                        return True
                left_over, is_torn = reader.size() - reader.offset, reader.is_torn()
            except (GapError, ConflictError) as error:
                self._set_aside(left[epoch], "unfit spool", epoch=epoch, error=error)
                continue
            finally:
                reader.close()
            if is_torn:  # the rule after a kill
                self._note("info", "torn spool", epoch=epoch, size=left_over, count=reader.n)
            elif left_over:
                self._set_aside(left[epoch], "damaged spool", epoch=epoch, size=left_over, count=reader.n)
                continue
            left[epoch].unlink()
        return False

    def _set_aside(self, spool: Path, trouble: str, **values: object) -> None:
        """Kept for a look."""
        damaged = spool.rename(spool.with_name("spool.damaged"))
        self._note("warning", trouble, file=damaged, **values)

    def _note(self, level: Literal["info", "warning"], trouble: str, **values: object) -> None:
        said = f"{TROUBLES[trouble].said(**values)}."
        logger.warning("Run %s: %s", self.lease.run_id, said)
        self.news.append(LogLine(time=time.time(), level=level, message=said[:8192]))

    def _make_folder(self) -> None:
        if self.folder.exists():
            # A database that was restored from a backup counts epochs again.
            self.folder.rename(self.folder.with_name(f"{self.folder.name}.old-{secrets.token_hex(4)}"))
        self.run_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700)

    def _record(self, spool: Spool) -> None:
        recording = Recording(spool, Drain(spool, Recorder(self.lease, unlist=self._old_checkpoints)))
        recording.drain.start()
        try:
            last = self._train(recording)
            recording.add(last)
            recording.sync()
            self._wait_until_stored(recording, last)
        finally:
            recording.drain.leave()
            if recording.drain.ended:
                spool.remove()
            else:
                spool.close()
        if isinstance(last, Preempted) and self.queue:
            # Another worker may be free; if not, the sweeper offers it again later.
            broker.send_train_run(self.lease.run_id, self.queue)

    def _train(self, recording: Recording) -> Finished | Preempted | Died:
        """Run the trainer to its end. Returns what is to be the attempt's last record."""
        for line in self.news:
            recording.add(line)
        run = self._patiently(lambda: Run.objects.select_related("checkpoint").get(id=self.lease.run_id))
        self.queue = run.queue
        stands = (run.step, None if run.checkpoint is None else run.checkpoint.step)
        mark = f"{run.id}-{self.lease.epoch}-{secrets.token_hex(4)}"
        try:
            arguments = self._arguments(run, recording)
            kills = memory.kernel_kills()
            # Before there is a trainer: whoever dies now has written down what may be left.
            note = leftovers.write(self.notes, run.id, self.lease.epoch, mark, None)
            child = TrainerChild(
                [*self.command, *arguments],
                mark=mark,
                env=os.environ,
                cwd=settings.BASE_DIR,
                log=self.folder / "trainer.log",
            )
        except CannotStartError as error:
            reason = error.trouble.sentence(*stands, **error.values)
            return finished("paused" if error.trouble.then == "paused" else "failed", reason, run.step)
        except OSError as error:
            (self.notes / f"{mark}.json").unlink(missing_ok=True)
            if is_full(error):
                raise
            return finished("failed", TROUBLES["not started"].sentence(*stands, error=error), run.step)
        watch = Watch(child, recording, self.heart, self.told_to_leave, step=stands[0], checkpoint=stands[1])
        try:
            leftovers.write(self.notes, run.id, self.lease.epoch, mark, child.identity)
            self.heart.take(child.kill)
            watch.until_it_ends()
        finally:
            self.heart.take(None)
            status = child.end()
            note.unlink(missing_ok=True)
        now = memory.kernel_kills()
        return watch.ending(status, was_out_of_memory=kills is not None and now is not None and now > kills)

    def _old_checkpoints(self, run: Run) -> list[Path]:
        return [] if self.keep is None else keeping.take_off_the_list(run, self.run_folder, self.keep)

    def _arguments(self, run: Run, recording: Recording) -> list[str]:
        """Write the child's config and choose where it goes on. Raises CannotStartError."""
        try:
            config = stored_config(run.config)
        except ValidationError as error:
            raise CannotStartError(
                "config", error=" ".join(map(_in_words, config_errors(error)[:3]))
            ) from error
        slug = config.model.path
        source = self._patiently(lambda: ModelSource.objects.filter(slug=slug).first())
        if source is None:
            raise CannotStartError("unknown model", slug=slug)
        self.keep = config.checkpoint
        changes = {
            "model": config.model.model_copy(update={"path": source.path}),
            # The worker itself deletes old ones (`keeping`): the trainer does not know who needs them.
            "checkpoint": config.checkpoint.model_copy(update={"keep_last": KEEP_ALL}),
        }
        resolved = config.model_copy(update=changes)
        path = self.folder / "config.yaml"
        path.write_text(config_to_yaml(resolved), encoding="utf-8")
        arguments = [str(path), "--output", str(self.folder)]
        checkpoints = self._checkpoints(run, recording)
        for checkpoint in checkpoints:
            arguments += ["--resume", str(checkpoint)]
        # Whoever retries a run may have made room; what worked is in the checkpoint anyhow.
        attempts = Attempt.objects.filter(run=run, epoch__gt=run.settled_epoch)
        smaller = self._patiently(lambda: attempts.aggregate(least=Min("microbatch_tokens"))["least"])
        if smaller:
            arguments += ["--microbatch-tokens", str(smaller)]
        if not checkpoints and run.parent_step is not None:
            arguments += ["--fork", str(self._first_checkpoint(run))]
        return arguments

    def _first_checkpoint(self, run: Run) -> Path:
        """The one that a fork begins with. Raises CannotStartError."""
        first = self._patiently(lambda: Checkpoint.objects.filter(forks=run).first())
        if first is None:
            raise CannotStartError("no first checkpoint", at=run.parent_step, what="was deleted with its run")
        path: Path = self.run_folder.parent / str(first.run_id) / first.path
        if not (path / "manifest.json").is_file():
            what = f"is not on worker {self.lease.owner}: there is no {path}"
            raise CannotStartError("no first checkpoint", at=run.parent_step, what=what)
        return path

    def _checkpoints(self, run: Run, recording: Recording) -> list[Path]:
        """Those that are on this machine, newest first; the trainer takes the first whose files are as they
        were. Raises CannotStartError when there are some, and none of them here.
        """
        for folder in self.run_folder.glob("attempt-*/checkpoints"):
            _give_names_back(folder)
        saved = self._patiently(lambda: list(Checkpoint.objects.filter(run=run).order_by("-seq")))
        paths = [(checkpoint, self.run_folder / checkpoint.path) for checkpoint in saved]
        here = [(checkpoint, path) for checkpoint, path in paths if path.is_dir()]
        if saved and not here:
            what = f"worker {self.lease.owner} has none of their folders under {self.run_folder}"
            raise CannotStartError("no checkpoint", count=len(saved), what=what)
        if here and here[0][0] != saved[0]:
            recording.say(
                "warning",
                f"The checkpoint of step {saved[0].step} is not on this machine: going on from step "
                f"{here[0][0].step}.",
            )
        return [path for _, path in here[:MAX_CHECKPOINTS_TRIED]]

    def _wait_until_stored(self, recording: Recording, last: Finished | Preempted | Died) -> None:
        """The drain alone says now whether the run is ours: its last record gives the lease back."""
        drain = recording.drain
        gave_up_at: float | None = None
        while not drain.ended and drain.lost is None and drain.broken is None:
            if recording.broken is not None and drain.through == recording.count:
                break
            if self.told_to_leave() and drain.is_away:
                gave_up_at = gave_up_at or time.monotonic() + SHUTDOWN_RECORD_SECONDS
                if time.monotonic() > gave_up_at:
                    logger.warning(
                        "Run %s: %s is stored when the run goes on.", self.lease.run_id, self.folder
                    )
                    return
            time.sleep(0.02)
        if drain.lost is not None:
            raise LeaseLostError(drain.lost)
        if drain.ended:
            return
        if drain.broken is not None:
            # Nothing more can be stored, so the end is written directly.
            reason = TROUBLES["not stored"].sentence(last.step, None, error=drain.broken)
            if isinstance(last, Finished) and last.outcome == "failed":
                reason = last.reason
            self._patiently(lambda: lease.end(self.lease, RunStatus.FAILED, reason))
            logger.error("Run %s failed: %s", self.lease.run_id, reason)
        elif recording.broken is not None:
            # The spool has no room for it. What it has is stored, so this one follows without a gap.
            drain.leave()
            record = [(recording.count + 1, last)]
            self._patiently(lambda: Recorder(self.lease).record(record))
            logger.error("Run %s: the spool has no room (%s)", self.lease.run_id, recording.broken)

    def _patiently(self, do: Callable[[], T]) -> T:
        """`do` again and again while the database is away and the run is ours."""
        failures = 0
        while True:
            try:
                return do()
            except (OperationalError, InterfaceError):
                connection.close()
                if self.heart.lost is not None:
                    raise LeaseLostError(self.heart.lost) from None
                # The first failure may only tell of a connection that was cut while it lay idle.
                if failures:
                    if self.told_to_leave():
                        raise
                    time.sleep(RETRY_SECONDS[min(failures, len(RETRY_SECONDS)) - 1])
                failures += 1


def _ending(held: Lease, error: Exception) -> tuple[RunStatus, str]:
    """What an error of this process makes of the run."""
    run = Run.objects.select_related("checkpoint").defer("config").filter(id=held.run_id).first()
    step = run.step if run is not None else 0
    checkpoint = run.checkpoint.step if run is not None and run.checkpoint is not None else None
    if is_full(error):
        what = f"the worker could not write ({error})"
        return RunStatus.PAUSED, TROUBLES["disk full"].sentence(step, checkpoint, what=what)
    said = f"The worker failed: {type(error).__name__}: {error}"
    return RunStatus.FAILED, told(said, step, checkpoint, "Its log has the traceback. Retry, and report it.")


def _in_words(error: ConfigError) -> str:
    return f"{error.path}: {error.message}" if error.path else error.message


def _epoch(folder: Path) -> int:
    """Of `attempt-3`; 0 for anything else."""
    number = folder.name.removeprefix("attempt-")
    return int(number) if number.isdecimal() and len(number) < 19 else 0


def _give_names_back(folder: Path) -> None:
    """A trainer that was killed between the two renames of a checkpoint that it replaced left it parked. A
    dead trainer's folder has no other process that mends it in time (`trainer.checkpoint`).
    """
    for parked in folder.glob("step-*.old-*"):
        target = parked.with_name(parked.name.partition(".")[0])
        if not target.exists():
            parked.rename(target)


def _forget_sighting(held: Lease) -> None:
    try:
        # Not of one with our name that has the run again.
        seen = Worker.objects.filter(name=held.owner, run_id=held.run_id, run__lease_epoch=held.epoch)
        seen.update(run=None)
    except (OperationalError, InterfaceError) as error:
        logger.info("The health page shows run %s a little longer: %s", held.run_id, error)
