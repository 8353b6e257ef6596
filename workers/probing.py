"""One probe, from the claim to its last row.

A child process loads the policy, samples and judges (`python -m trainer.probing`); this process reads what it
says, stores each continuation as it comes, keeps the lease, and ends the child when it must go: cancelled,
too long, too much memory, told to leave, not ours any more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, connections, transaction
from django.db.models import F
from django.db.models.functions import Coalesce, Now
from pydantic import ValidationError

from trainer.config import stored_config
from trainer.probing import Begun, Ended, ProbeRequest, read_line
from trainer.probing import Continuation as Sampled
from trainer.text import storable
from trainer.tree import ROOT, FinishReason, RolloutTree
from webapp import broker
from webapp.embedded import leftovers
from webapp.limits import HEARTBEAT_SECONDS, PROBE_LEASE_SECONDS, PROBE_SECONDS
from webapp.probes.checkpoints import BASE, kept_policies, not_kept
from webapp.probes.models import Continuation, Probe, ProbeStatus
from webapp.projects.models import ModelSource
from webapp.runs.models import Checkpoint, Run
from workers import endings, memory
from workers.child import TrainerChild
from workers.limits import PROBE_LOOK_SECONDS, PROBE_MEMORY_SHARE, PROBE_TICK_SECONDS, RETRY_SECONDS
from workers.supervisor import sigterm_means_leave

logger = logging.getLogger(__name__)
PROBER = (sys.executable, "-m", "trainer.probing")
LEASE = timedelta(seconds=PROBE_LEASE_SECONDS)


class LostError(Exception):
    """The probe is not this worker's any more; nothing more is written."""


class CannotSampleError(Exception):
    """The probe cannot begin; the message is one sentence for people."""


@dataclass(frozen=True, slots=True)
class Held:
    """The right to write to a probe."""

    probe_id: int
    epoch: int
    owner: str


def notes() -> Path:
    """Where this machine's sampling processes are written down for the reaper."""
    folder: Path = settings.DATA_DIR / "workers" / "probes"
    return folder


def is_current(probe_id: int, epoch: int) -> bool:
    """Whether that attempt may still have a process."""
    return Probe.objects.filter(id=probe_id, epoch=epoch, status=ProbeStatus.RUNNING).exists()


def claim(probe_id: int, owner: str) -> Held | None:
    """Take the probe if it waits. None: it does not, or another was faster."""
    with transaction.atomic():
        won = Probe.objects.filter(id=probe_id, status=ProbeStatus.QUEUED).update(
            status=ProbeStatus.RUNNING,
            reason="",
            epoch=F("epoch") + 1,
            owner=owner[:120],
            lease_until=Now() + LEASE,
            started_at=Coalesce("started_at", Now()),
        )
        if not won:
            return None
        epoch = Probe.objects.values_list("epoch", flat=True).get(id=probe_id)
    return Held(probe_id, epoch, owner)


def renew(held: Held) -> bool:
    """Keep the probe a while longer. Returns whether somebody wants it cancelled. Raises LostError."""
    ours = Probe.objects.filter(id=held.probe_id, epoch=held.epoch, status=ProbeStatus.RUNNING)
    if not ours.update(lease_until=Now() + LEASE):
        raise LostError(f"probe {held.probe_id} is not at epoch {held.epoch} and running any more")
    return ours.filter(cancel_requested_by__isnull=False).exists()


def store(held: Held, sampled: Sequence[Sampled]) -> None:
    """Continuations under the lease; one that is stored already stays as it is. Raises LostError."""
    with transaction.atomic():
        renew(held)  # the row stays locked to the commit
        Continuation.objects.bulk_create([_row(held.probe_id, one) for one in sampled], ignore_conflicts=True)


def _row(probe_id: int, one: Sampled) -> Continuation:
    return Continuation(
        probe_id=probe_id,
        number=one.number,
        tokens=list(one.tokens),
        logprobs=list(one.logprobs),
        entropies=list(one.entropies),
        n_tokens=len(one.tokens),
        mean_logprob=_mean(one.logprobs),
        mean_entropy=_mean(one.entropies),
        text=storable(one.text),
        finish=one.finish,
        verdict=one.verdict,
        answer=storable(one.answer),
        reward=one.reward,
    )


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def settle(held: Held, status: ProbeStatus, reason: str) -> None:
    """Give the probe back: ended, or QUEUED again. Raises LostError."""
    is_over = status != ProbeStatus.QUEUED
    ours = Probe.objects.filter(id=held.probe_id, epoch=held.epoch, status=ProbeStatus.RUNNING)
    if not ours.update(
        status=status,
        reason=storable(reason)[:2000],
        owner="",
        lease_until=None,
        ended_at=Now() if is_over else None,
        queued_at=F("queued_at") if is_over else Now(),
    ):
        raise LostError(f"probe {held.probe_id} is not at epoch {held.epoch} and running any more")


def sample(held: Held, *, told_to_leave: Callable[[], int], command: Sequence[str] = PROBER) -> None:
    """Work on the probe until it has ended, or waits for another worker, or is not ours any more."""
    with sigterm_means_leave(told_to_leave) as leave:
        try:
            _Sampling(held, lambda: leave() > 0, command).run()
        except LostError as lost:
            logger.warning("%s.", lost)
        except (OperationalError, InterfaceError):
            logger.exception("Probe %s is given up until the database answers", held.probe_id)
        except Exception as error:  # a defect of ours must not leave the probe "running"
            reason = f"The worker failed: {type(error).__name__}: {error}. Its log has the traceback."
            with contextlib.suppress(LostError, OperationalError, InterfaceError):
                settle(held, ProbeStatus.FAILED, reason)
            raise
        finally:
            connections.close_all()


class _Sampling:
    """What one attempt holds. `outcome`: how it ends, once that is known."""

    def __init__(self, held: Held, told_to_leave: Callable[[], int], command: Sequence[str]) -> None:
        self.held, self.told_to_leave, self.command = held, told_to_leave, command
        self.folder: Path = (
            settings.DATA_DIR / "probes" / f"{held.probe_id}-{held.epoch}-{secrets.token_hex(4)}"
        )
        self.outcome: tuple[ProbeStatus, str] | None = None
        self.waiting: list[Sampled] = []  # said, not stored yet
        self.prefix_tokens: int | None = None
        self.queue = ""
        self._failures = 0
        self._retry_at = 0.0
        self._beat = self._looked = time.monotonic()
        self._deadline = time.monotonic() + PROBE_SECONDS
        share = int(memory.machine_bytes() * PROBE_MEMORY_SHARE)
        self._most_bytes = settings.PROBE_MEMORY_MB * 2**20 or share

    def run(self) -> None:
        leftovers.reap(notes(), is_current)
        _remove_leftovers(self.folder.parent)
        self.folder.mkdir(mode=0o700, parents=True)
        try:
            status, reason = self._sample()
            self._store_rest()
            settle(self.held, status, reason)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        if status == ProbeStatus.QUEUED:
            broker.send_sample_probe(self.held.probe_id, self.queue)

    def _sample(self) -> tuple[ProbeStatus, str]:
        try:
            request = self._request()
        except CannotSampleError as error:
            return ProbeStatus.FAILED, str(error)
        if request is None:
            return ProbeStatus.DONE, ""
        path = self.folder / "request.json"
        path.write_text(json.dumps(request.model_dump(mode="json")), encoding="utf-8")
        try:
            child = TrainerChild(
                [*self.command, str(path)],
                mark=f"probe-{self.held.probe_id}-{self.held.epoch}-{secrets.token_hex(4)}",
                env=os.environ,
                cwd=settings.BASE_DIR,
                log=self.folder / "log",
            )
        except OSError as error:
            return ProbeStatus.FAILED, f"The sampling process could not be started: {error}"
        note: Path | None = None
        try:
            note = leftovers.write(notes(), self.held.probe_id, self.held.epoch, child.mark, child.identity)
            self._watch(child)
        finally:
            status = child.end()
            if note is not None:
                note.unlink(missing_ok=True)
        return self.outcome or (ProbeStatus.FAILED, self._last_words(child, status))

    # What to sample

    def _request(self) -> ProbeRequest | None:
        """The child's orders; None when every continuation is stored already. Raises CannotSampleError."""
        probe = Probe.objects.select_related("tree__run").get(id=self.held.probe_id)
        self.queue = probe.queue
        run = probe.tree.run
        try:
            tree = RolloutTree.from_payload(bytes(probe.tree.payload))
            node = tree.find(probe.node)
            config = stored_config(run.config)
        except (ValueError, KeyError) as error:
            raise CannotSampleError(f"The tree cannot be read: {error}") from error
        source = ModelSource.objects.filter(slug=config.model.path).first()
        if source is None:
            raise CannotSampleError(
                f"The base model {config.model.path!r} is not known any more. Register it again, then ask "
                "again."
            )
        known = set(Continuation.objects.filter(probe=probe).values_list("number", flat=True))
        numbers = tuple(number for number in range(probe.n) if number not in known)
        if not numbers:
            return None
        path = [part for part in tree.path(node) if part != ROOT]
        exact = [token for part in path for token in _tokens(tree, part)]
        # What was given to the policy, such as a token budget, is no part of its answer.
        own = "".join(tree.texts[part] for part in path if tree.finish[part] != FinishReason.GIVEN)
        return ProbeRequest(
            model=source.path,
            checkpoint=self._checkpoint(run, probe.policy_version),
            device="cuda" if run.queue.startswith("gpu") else "cpu",
            problem_id=tree.problem_id,
            reference_answer=tree.reference_answer,
            prompt_tokens=tuple(_tokens(tree, ROOT)),
            answer_tokens=tuple(exact) if probe.prefix is None else None,
            answer_text=own if probe.prefix is None else probe.prefix,
            numbers=numbers,
            temperature=probe.temperature,
            max_tokens=probe.max_tokens,
            seed=probe.seed,
            verifier=config.verifier if probe.verify else None,
        )

    def _checkpoint(self, run: Run, version: int) -> str:
        if version == BASE:
            return ""
        folder: Path = settings.DATA_DIR / "runs" / str(run.id)
        saved = Checkpoint.objects.filter(run=run, step=version).order_by("-seq")
        for row in saved:
            if (folder / row.path / "manifest.json").is_file():
                return str(folder / row.path)
        here = [kept for kept in kept_policies(run) if kept.version == BASE or (folder / kept.path).is_dir()]
        raise CannotSampleError(f"{not_kept(here, version)} (On this worker's disk.)")

    # While it samples

    def _watch(self, child: TrainerChild) -> None:
        """Returns when all is said or the child has to go. Raises LostError."""
        while self.outcome is None and not child.is_silent:
            for line in child.read(PROBE_TICK_SECONDS):
                self._take(line)
            self._store()
            if self.outcome is None:
                self._look_around(child)
        # What it said last may still wait for the database.
        while self.waiting and time.monotonic() < self._deadline:
            time.sleep(PROBE_TICK_SECONDS)
            self._store()

    def _take(self, line: bytes) -> None:
        if self.outcome is not None or not line.strip():
            return
        try:
            said = read_line(line)
        except ValidationError as error:
            logger.error("Probe %s: %r: %s", self.held.probe_id, line[:500], error)
            self._fail("The sampling process wrote a line that cannot be read; the log has it.")
            return
        match said:
            case Begun():
                self.prefix_tokens = said.prefix_tokens
            case Sampled():
                self.waiting.append(said)
            case Ended():
                self.outcome = ProbeStatus.DONE if said.outcome == "done" else ProbeStatus.FAILED, said.reason

    def _store(self) -> None:
        """What waits, and the heartbeat; later, while the database is away. Raises LostError."""
        now = time.monotonic()
        is_due = self.waiting or self.prefix_tokens is not None or now - self._beat >= HEARTBEAT_SECONDS
        if not is_due or now < self._retry_at:
            return
        try:
            self._write()
        except (OperationalError, InterfaceError) as error:
            if not self._failures:
                logger.warning("Probe %s: the database does not answer (%s).", self.held.probe_id, error)
            connection.close()
            self._retry_at = now + RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS) - 1)]
            self._failures += 1
        else:
            self._failures = 0
            self._beat = now

    def _write(self) -> None:
        store(self.held, self.waiting)
        self.waiting = []
        if self.prefix_tokens is not None:
            Probe.objects.filter(id=self.held.probe_id, epoch=self.held.epoch).update(
                prefix_tokens=self.prefix_tokens
            )
            self.prefix_tokens = None

    def _store_rest(self) -> None:
        if self.waiting:
            self._write()

    def _look_around(self, child: TrainerChild) -> None:
        now = time.monotonic()
        if self.told_to_leave():
            self.outcome = ProbeStatus.QUEUED, "Its worker was told to stop; another one goes on."
        elif now > self._deadline:
            minutes = PROBE_SECONDS // 60
            self._fail(
                f"It took longer than {minutes} minutes. What was sampled is kept; lower n or max tokens."
            )
        elif child.lines.is_overlong:
            self._fail("The sampling process wrote an endless line.")
        elif now - self._looked >= PROBE_LOOK_SECONDS:
            self._looked = now
            if memory.resident_bytes(child.identity.pid) > self._most_bytes:
                most = self._most_bytes // 2**20
                self._fail(
                    f"It needed more than {most:,} MB, the most that a probe may take here. Lower n or max "
                    "tokens, or raise ARBORIST_PROBE_MEMORY_MB."
                )
            elif (by := self._wish()) is not None:
                self.outcome = ProbeStatus.CANCELLED, f"Cancelled by {by}. What was sampled is kept."

    def _fail(self, reason: str) -> None:
        self.outcome = ProbeStatus.FAILED, reason

    def _wish(self) -> str | None:
        """Who wants it cancelled."""
        try:
            row = Probe.objects.filter(id=self.held.probe_id, cancel_requested_by__isnull=False)
            return row.values_list("cancel_requested_by__username", flat=True).first()
        except (OperationalError, InterfaceError):
            connection.close()  # `_store` tells of it
            return None

    def _last_words(self, child: TrainerChild, status: int) -> str:
        """For a process that ended without saying how it went."""
        tail = child.error_tail()
        logger.error(
            "Probe %s: its process ended (%s). Its last words:\n%s", self.held.probe_id, status, tail[-4000:]
        )
        if status < 0:
            return (
                f"The sampling process was ended by signal {-status}, as happens when a machine runs out of "
                "memory. What was sampled is kept; lower n or max tokens."
            )
        return f"The sampling process failed: {endings.last_error(tail) or f'exit status {status}'}"


def _remove_leftovers(folder: Path) -> None:
    """What workers that were killed left of their probes."""
    for left in folder.glob("*-*-*"):
        probe_id, epoch, _ = left.name.split("-", 2)
        if probe_id.isdecimal() and epoch.isdecimal() and not is_current(int(probe_id), int(epoch)):
            shutil.rmtree(left, ignore_errors=True)


def _tokens(tree: RolloutTree, node: int) -> list[int]:
    return [int(token) for token in tree.tokens[tree.token_offsets[node] : tree.token_offsets[node + 1]]]
