"""The fault matrix: one small class each. `inject` breaks something, `heal` mends it `hold` seconds later."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg

from tests.campaign.stack import CLOCKED, WORKERS
from tests.campaign.watching import is_frozen
from webapp.embedded import processes
from webapp.embedded.processes import Identity

if TYPE_CHECKING:
    from tests.campaign.driver import Campaign
    from tests.campaign.watching import RunSeen


MORE_WAL_MB = 160  # as large as its disk
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
LEAVE_SECONDS = 10.0  # a web process that is told to leave does
NO_MOUNT = "it takes root to mount a small disk"


def kill(pid: int, number: int) -> None:
    """A signal to what may have ended meanwhile; 0 is nobody."""
    if pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def processes_below(pid: int) -> list[int]:
    """The process and all that it has started, and they in turn; the first one first."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    return found


def fill(path: Path) -> int:
    """Take all the room there is, as `path`. Returns the bytes."""
    taken = 0
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            taken += file.write(bytes(2**16))
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            taken += file.write(bytes(512))
    return taken


class Fault:
    """`touches`: parts that no other fault may hold meanwhile. `moments`: S start-up, R sampling, T training,
    C saving, I idle, D while the spool is drained."""

    name: ClassVar[str] = ""
    what: ClassVar[str] = ""
    touches: tuple[str, ...] = ()
    moments: ClassVar[str] = "R"
    patience = 3.0  # seconds that the moment is waited for
    hold = 4.0
    ends_by_itself = False  # is given its time also at the end of the schedule

    def __init__(self, campaign: Campaign, rng: random.Random) -> None:
        self.campaign, self.rng = campaign, rng
        self.system = campaign.system
        self.moment = rng.choice(self.moments)
        self.prepare()

    def prepare(self) -> None:
        """Draw what it hits."""

    def impossible(self) -> str:
        """Why this machine cannot have this fault; "" if it can."""
        return ""

    def is_moment(self) -> bool:
        runs = self.campaign.leased()
        match self.moment:
            case "S":
                return any(run.status == "starting" for run in runs)
            case "R":
                return any(run.phase == "sampling" for run in runs)
            case "T":
                return any(run.phase == "training" for run in runs)
            case "C":
                return any(self.system.folder.root.glob("runs/*/attempt-*/checkpoints/step-*.tmp-*"))
        return True

    def inject(self) -> str:
        """Break it. Returns what was done, in a few words."""
        raise NotImplementedError

    def go_on(self) -> None:
        """Called again and again until it is healed."""

    def is_over(self) -> bool:
        """Whether there is nothing to wait for any more: it is healed at once, whatever `hold` says."""
        return False

    def heal(self) -> None:
        """Mend it."""


class WorkerFault(Fault):
    """Hits one of the two workers."""

    moments = "SRTC"

    def prepare(self) -> None:
        self.worker = self.rng.choice(WORKERS)
        self.touches = (self.worker,)


class HolderFault(WorkerFault):
    """Hits a worker that holds a run which has come so far that there is something to lose."""

    touches = WORKERS
    patience = 15.0

    def prepare(self) -> None:
        self.worker = ""

    def holders(self) -> list[str]:
        found = {worker: self.campaign.run(self.campaign.run_of(worker)) for worker in WORKERS}
        trained = {(run, epoch) for run, epoch, _ in self.campaign.watcher.trainers}
        return [
            worker
            for worker, run in found.items()
            if (run.id, run.epoch) in trained and self.is_far_enough(run)
        ]

    def is_far_enough(self, run: RunSeen) -> bool:
        return run.status == "running" and run.step > 0

    def is_moment(self) -> bool:
        return bool(self.holders())

    def inject(self) -> str:
        if not (holders := self.holders()):
            return "nobody held a run that had come far enough"
        self.worker = self.rng.choice(holders)
        return self.strike_at(self.worker)

    def strike_at(self, worker: str) -> str:
        raise NotImplementedError

    def is_over(self) -> bool:
        return not self.worker

    def heal(self) -> None:
        if self.worker:
            self.system.reconnect(self.worker)
            self.system.launch(self.worker)


class WorkerKilled(WorkerFault):
    name, what = "F1", "worker's main process killed"

    def inject(self) -> str:
        self.system.down(self.worker)
        return f"kill -9 of {self.worker} ({self.moment})"

    def heal(self) -> None:
        self.system.launch(self.worker)


class ChildKilled(WorkerFault):
    name, what = "F2", "worker's task process killed"
    moments = "RT"
    hold = 1.0

    def inject(self) -> str:
        child = self.system.pool_child(self.worker)
        kill(child.pid if child else 0, signal.SIGKILL)
        return f"kill -9 of {self.worker}'s child {child.pid if child else 'that is not there'}"


class TrainerKilled(Fault):
    """The engine samples in the trainer's own process here, so this is the engine's death, too."""

    name, what = "F3", "trainer with its engine killed"
    moments = "SRTC"
    hold = 0.5

    def inject(self) -> str:
        pid = self.campaign.a_trainer(self.rng)
        kill(pid, signal.SIGKILL)
        return f"kill -9 of trainer {pid}"


class WorkerToldToStop(WorkerFault):
    name, what = "F4", "worker told to stop"
    ends_by_itself = True
    hold = 75.0  # what a trainer may take to save, and a shutdown

    def inject(self) -> str:
        self.system.down(self.worker, signal.SIGTERM)
        return f"SIGTERM to {self.worker} ({self.moment})"

    def is_over(self) -> bool:
        return not self.system.parts[self.worker].is_alive()

    def heal(self) -> None:
        if not self.is_over():
            self.system.history.add("note", text=f"{self.worker} did not leave within {self.hold:.0f} s")
            self.system.down(self.worker)
        self.system.launch(self.worker)


class WorkerFrozen(WorkerFault):
    name, what = "F5", "worker frozen, then continued"
    moments = "RTC"

    def prepare(self) -> None:
        super().prepare()
        self.hold = self.rng.choice((6.0, 24.0, 34.0))
        self.with_trainer = self.rng.random() < 0.5

    def inject(self) -> str:
        self.pids = self.campaign.processes_of(self.worker, trainers=self.with_trainer)
        for pid in self.pids:
            kill(pid, signal.SIGSTOP)
        self.system.note_away(self.worker)
        return (
            f"SIGSTOP of {self.worker}{' and its trainer' if self.with_trainer else ''} for {self.hold:.0f} s"
        )

    def heal(self) -> None:
        for pid in reversed(self.pids):
            kill(pid, signal.SIGCONT)
        self.system.note_back(self.worker)


class WorkerFrozenForEver(WorkerFrozen):
    name, what = "F6", "worker frozen for ever"
    moments = "R"

    def prepare(self) -> None:
        super().prepare()
        self.hold = 36.0

    def heal(self) -> None:
        self.system.down(self.worker)
        self.system.launch(self.worker)


class MessageTwice(Fault):
    name, what = "F7", "the same message several times"
    moments = "SRI"
    hold = 0.5

    def inject(self) -> str:
        from webapp import broker

        runs = [run for run in self.campaign.config_of if self.campaign.run(run).status != "succeeded"]
        sent = sum(broker.send_train_run(run, "cpu") for run in runs for _ in range(4))
        return f"{sent} messages for {len(runs)} runs"


class TrainerStuck(Fault):
    """The trainer hangs with its worker alive, and a person asks it to stop."""

    name, what = "F8", "training loop stuck, heartbeat alive"
    hold = 14.0

    def inject(self) -> str:
        self.pid = self.campaign.a_trainer(self.rng)
        run = next((run for run, _, pid in self.campaign.watcher.trainers if pid == self.pid), 0)
        kill(self.pid, signal.SIGSTOP)
        asked = bool(run) and self.campaign.wish(run, "stop")
        return f"SIGSTOP of trainer {self.pid}; stop of run {run} {'asked for' if asked else 'not taken'}"

    def heal(self) -> None:
        kill(self.pid, signal.SIGCONT)


class HostOutOfMemory(Fault):
    name, what = "F9", "kernel ends the trainer for lack of memory"
    moments = "RTC"
    hold = 6.0

    def prepare(self) -> None:
        self.group = MEMORY_GROUPS / f"arborist-campaign-{os.getpid()}"

    def impossible(self) -> str:
        if (MEMORY_GROUPS / "memory.limit_in_bytes").exists() and os.access(MEMORY_GROUPS, os.W_OK):
            return ""
        return "no memory control group that we may write to"

    def inject(self) -> str:
        if not (pid := self.campaign.a_trainer(self.rng)):
            return "no trainer lived"  # for the kernel 0 is who asks
        self.group.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            (self.group / "cgroup.procs").write_text(str(pid))
            (self.group / "memory.limit_in_bytes").write_text(str(2**20))
        return f"a limit of 1 MB for trainer {pid}"

    def heal(self) -> None:
        with contextlib.suppress(OSError):
            (self.group / "memory.limit_in_bytes").write_text("-1")
            for pid in (self.group / "cgroup.procs").read_text().split():
                (MEMORY_GROUPS / "cgroup.procs").write_text(pid)
            self.group.rmdir()


class RunsDiskFull(Fault):
    name, what = "F12", "worker's disk full"
    moments = "RC"
    touches = ("runs disk",)

    def prepare(self) -> None:
        self.ballast = self.system.folder.root / "runs" / ".ballast"
        self.hold = self.rng.uniform(3, 10)

    def impossible(self) -> str:
        return "" if self.system.folder.root / "runs" in self.system.mounts else NO_MOUNT

    def inject(self) -> str:
        return f"{fill(self.ballast) // 2**20} MB of ballast where runs lie"

    def heal(self) -> None:
        self.ballast.unlink(missing_ok=True)


class FileSizeLimit(Fault):
    name, what = "F13", "file-size limit of the trainer"
    moments = "C"
    hold = 8.0

    def inject(self) -> str:
        self.pid = self.campaign.a_trainer(self.rng)
        if not self.pid:
            return "no trainer lived"  # for the kernel 0 is who asks
        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        return f"files of trainer {self.pid} may have 100 kB"

    def is_over(self) -> bool:
        return not self.pid

    def heal(self) -> None:
        if not self.pid:
            return
        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


class CheckpointDamaged(HolderFault):
    """The newest checkpoint is damaged and its worker killed, so that it is what would be resumed from."""

    name, what = "F14", "checkpoint damaged on disk"
    moments = "R"

    def is_far_enough(self, run: RunSeen) -> bool:
        return run.checkpoint is not None

    def strike_at(self, worker: str) -> str:
        run = self.campaign.run_of(worker)
        found = sorted(
            (
                path
                for path in self.system.folder.root.glob(f"runs/{run}/attempt-*/checkpoints/step-*")
                if path.name[5:].isdecimal()
            ),
            key=lambda path: (int(path.name[5:]), path.parent.parent.name),
        )
        self.system.down(self.worker)
        if not found:
            return f"run {run} had no checkpoint; {self.worker} killed"
        path = found[-1]
        self.campaign.damaged.add(path)
        file = path / self.rng.choice(("model/model.safetensors", "optimiser.safetensors", "state.json"))
        how = self.rng.choice(("a byte flipped", "cut in half", "deleted"))
        with contextlib.suppress(OSError):
            if how == "deleted":
                file.unlink()
            elif how == "cut in half":
                os.truncate(file, file.stat().st_size // 2)
            else:
                content = bytearray(file.read_bytes())
                content[self.rng.randrange(len(content))] ^= 1
                file.write_bytes(content)
        return (
            f"{file.name} of {path.parent.parent.name}/{path.name} of run {run} {how}; {self.worker} killed"
        )


class KilledWhileSaving(HolderFault):
    """A trainer, or everything of its worker, dies in one of the moments around a checkpoint."""

    name, what = "F15", "killed during a checkpoint"
    moments = "C"
    hold = 25.0
    ends_by_itself = True
    SEAMS: ClassVar[dict[str, str]] = {  # where the trainer stands still: what dies there has done
        "unsynced": "written, nothing of it synced",
        "synced": "its manifest written and synced",
        "before its name": "all synced, not renamed",
        "named": "renamed, and nobody told",
        "told": "told to the worker, not listed yet",
        "listed": "just listed",
    }

    def prepare(self) -> None:
        super().prepare()
        self.seam = self.rng.choice(sorted(self.SEAMS))
        self.with_worker = self.seam in ("told", "listed") or self.rng.random() < 0.5
        self.trainer = self.run = self.pointer = 0
        self.file: Path | None = None
        self.is_done = False

    def strike_at(self, worker: str) -> str:
        who = f"{self.worker} and its trainer" if self.with_worker else f"the trainer of {self.worker}"
        self.file = self.system.seams[self.worker]
        self.file.write_text("named" if self.seam in ("told", "listed") else self.seam)
        return f"{who} to be killed at its next checkpoint: {self.SEAMS[self.seam]}"

    def go_on(self) -> None:
        if self.is_done or self.file is None or self.file.exists():
            return
        if not self.trainer:
            self.run = self.campaign.run_of(self.worker)
            stopped = [
                pid for run, _, pid in self.campaign.watcher.trainers if run == self.run and is_frozen(pid)
            ]
            if not stopped:
                return
            self.trainer = stopped[0]
            self.pointer = self.campaign.run(self.run).checkpoint
            self.told = self.campaign.watcher.checkpoints_told(self.run)
            if self.seam == "told":
                self.system.cut_off(self.worker)
            if self.seam in ("told", "listed"):
                kill(self.trainer, signal.SIGCONT)
        is_there = {
            "told": lambda: self.campaign.watcher.checkpoints_told(self.run) > self.told,
            "listed": lambda: self.campaign.run(self.run).checkpoint != self.pointer,
        }.get(self.seam, lambda: True)
        if is_there():
            self.strike()

    def strike(self) -> None:
        self.is_done = True
        if self.with_worker:
            for pid in self.campaign.processes_of(self.worker, trainers=True):
                kill(pid, signal.SIGKILL)
            self.system.down(self.worker)
        kill(self.trainer, signal.SIGKILL)
        self.campaign.hits[f"F15 {self.SEAMS[self.seam]}"] += 1

    def is_over(self) -> bool:
        return self.is_done or super().is_over()

    def heal(self) -> None:
        if self.file is not None:
            self.file.unlink(missing_ok=True)
        kill(self.trainer, signal.SIGCONT)
        super().heal()


class WebKilled(Fault):
    name, what = "F16", "web process killed"
    moments = "I"
    touches = ("web",)
    hold = 2.0

    def inject(self) -> str:
        self.system.down("web")
        return "kill -9 of web"

    def heal(self) -> None:
        self.system.launch("web")


class WebFrozen(Fault):
    name, what = "F17", "web process frozen"
    moments = "I"
    touches = ("web",)

    def prepare(self) -> None:
        self.hold = self.rng.choice((5.0, 12.0, 30.0))

    def inject(self) -> str:
        kill(self.system.parts["web"].pid, signal.SIGSTOP)
        self.system.note_away("web")
        return f"SIGSTOP of web for {self.hold:.0f} s"

    def heal(self) -> None:
        kill(self.system.parts["web"].pid, signal.SIGCONT)
        self.system.note_back("web")


class WebReplaced(Fault):
    """A new web process takes over while the old one answers what it has begun, as in a deployment."""

    name, what = "F18", "web processes replaced"
    moments = "I"
    touches = ("web",)
    hold = 90.0
    ends_by_itself = True

    def inject(self) -> str:
        self.old = self.system.begin_replacing_web()
        self.told_at = 0.0
        return "another web process is started; then the old one is told to leave"

    def go_on(self) -> None:
        if not self.told_at and self.system.is_up("web"):
            self.system.send_to_new_web(self.old)
            self.told_at = time.monotonic()

    def is_over(self) -> bool:
        return bool(self.told_at) and not self.old.is_alive()

    def heal(self) -> None:
        seconds = time.monotonic() - self.told_at
        if seconds > LEAVE_SECONDS:
            self.system.history.add("note", text=f"the old web process took {seconds:.0f} s to leave")
        if self.old.child is not None:
            self.old.child.end()


class SweeperKilled(Fault):
    name, what = "F19", "sweeper killed"
    touches = ("sweeper",)

    def prepare(self) -> None:
        self.hold = self.rng.uniform(2, 8)

    def inject(self) -> str:
        self.system.down("sweeper")
        return "kill -9 of the sweeper"

    def heal(self) -> None:
        self.system.launch("sweeper")


class DatabaseStopped(Fault):
    name, what = "F20", "PostgreSQL stopped at once, and started"
    moments = "RTCD"
    touches = ("database",)

    def prepare(self) -> None:
        self.hold = self.rng.choice((2.0, 5.0, 12.0, 25.0))

    def inject(self) -> str:
        self.system.down("database", signal.SIGQUIT)
        return f"immediate stop of PostgreSQL for {self.hold:.0f} s ({self.moment})"

    def heal(self) -> None:
        self._start()
        if self.moment == "D":
            time.sleep(self.rng.uniform(0.2, 1.5))  # what waited in the spools is on its way
            self.system.down("database", signal.SIGQUIT)
            self._start()

    def _start(self) -> None:
        child = self.system.parts["database"].child
        if child is not None:
            child.wait(20)
        self.system.up("database")


class DatabaseFrozen(Fault):
    """All of PostgreSQL stands still: connections stay open, and nothing is answered or refused."""

    name, what = "F20-frozen", "PostgreSQL frozen, then continued"
    moments = "RTC"
    touches = ("database",)

    def prepare(self) -> None:
        self.hold = self.rng.choice((3.0, 10.0, 26.0))

    def inject(self) -> str:
        self.system.note_away("database")
        self.pids = processes_below(self.system.parts["database"].pid)
        for pid in self.pids:
            kill(pid, signal.SIGSTOP)
        return f"SIGSTOP of {len(self.pids)} processes of PostgreSQL for {self.hold:.0f} s ({self.moment})"

    def heal(self) -> None:
        for pid in self.pids:
            kill(pid, signal.SIGCONT)
        self.system.note_back("database")


class BackendKilled(Fault):
    name, what = "F21", "a PostgreSQL backend killed"
    touches = ("database",)
    hold = 2.0

    def inject(self) -> str:
        self.system.note_away("database")
        pids = self.campaign.sessions("arborist%")
        pid = self.rng.choice(sorted(pids)) if pids else 0
        kill(pid, signal.SIGKILL)
        return f"kill -9 of backend {pid}"

    def heal(self) -> None:
        self.system.up("database")
        self.system.note_back("database")


class SessionsCut(Fault):
    name, what = "F22", "all database sessions cut, again and again"
    touches = ("database",)

    def prepare(self) -> None:
        self.hold = self.rng.uniform(4, 10)
        self.cut = 0

    def inject(self) -> str:
        self.go_on()
        return f"pg_terminate_backend in a loop for {self.hold:.0f} s"

    def go_on(self) -> None:
        self.cut += self.campaign.terminate("arborist%")


class DataVolumeFull(Fault):
    name, what = "F23", "PostgreSQL's data volume full"
    touches = ("database",)

    def prepare(self) -> None:
        self.hold = self.rng.uniform(4, 10)
        self.volume = self.system.folder.postgres

    def impossible(self) -> str:
        return "" if self.volume in self.system.mounts else NO_MOUNT

    def inject(self) -> str:
        self.system.note_away("database")
        return f"{fill(self.volume / 'ballast') // 2**20} MB of ballast beside the tables"

    def heal(self) -> None:
        (self.volume / "ballast").unlink(missing_ok=True)
        self.system.up("database")
        self.system.note_back("database")


class WalVolumeFull(DataVolumeFull):
    name, what = "F24", "PostgreSQL's WAL volume full"

    def prepare(self) -> None:
        super().prepare()
        self.volume = self.system.folder.postgres / "pg_wal"

    def inject(self) -> str:
        self.system.parts["database"].held = True
        said = super().inject()
        # What is there already of the log would last for a while: more is written than it holds.
        with contextlib.suppress(psycopg.Error), self.campaign.watcher.connect() as link:
            for _ in range(MORE_WAL_MB):
                link.execute("SELECT pg_logical_emit_message(false, 'campaign', repeat('x', 1000000))")
        return said

    def heal(self) -> None:
        child = self.system.parts["database"].child
        if child is not None and child.is_alive():
            self.system.history.add("note", text="PostgreSQL outlived a full WAL volume")
        else:
            self.campaign.hits["F24 the server went down"] += 1
        super().heal()
        self.system.parts["database"].held = False


class TableLocked(Fault):
    name, what = "F25", "the table of runs locked"
    moments = "I"
    touches = ("database",)

    def prepare(self) -> None:
        self.hold = self.rng.uniform(4, 9)

    def inject(self) -> str:
        self.system.history.add("away", "invoke", what="lock")
        self.link = self.campaign.watcher.connect()
        self.link.autocommit = False
        try:
            self.link.execute("LOCK TABLE arborist_run IN ACCESS EXCLUSIVE MODE")
        except psycopg.Error as error:
            return f"the lock was not had: {error}"
        return f"LOCK TABLE for {self.hold:.0f} s"

    def heal(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self.link.rollback()
            self.link.close()
        self.system.history.add("away", "ok", what="lock")


class ConnectionsUsedUp(Fault):
    name, what = "F26", "all connections used up"
    moments = "I"
    touches = ("database",)

    def prepare(self) -> None:
        self.hold = self.rng.uniform(4, 9)
        self.links: list[psycopg.Connection[Any]] = []

    def inject(self) -> str:
        self.system.history.add("away", "invoke", what="lock")
        self.go_on()
        return f"{len(self.links)} connections taken for {self.hold:.0f} s"

    def go_on(self) -> None:
        with contextlib.suppress(psycopg.Error):
            while len(self.links) < 100:
                self.links.append(self.campaign.watcher.connect())

    def heal(self) -> None:
        for link in self.links:
            with contextlib.suppress(psycopg.Error):
                link.close()
        self.system.history.add("away", "ok", what="lock")


class BrokerKilled(Fault):
    name, what = "F27", "broker killed"
    moments = "RI"
    touches = ("broker",)

    def prepare(self) -> None:
        self.hold = self.rng.choice((3.0, 8.0, 20.0))

    def inject(self) -> str:
        self.system.down("broker")
        return f"kill -9 of the broker for {self.hold:.0f} s"

    def heal(self) -> None:
        self.system.up("broker")


class BrokerEmptied(Fault):
    name, what = "F28", "broker emptied"
    moments = "RI"
    touches = ("broker",)
    hold = 0.5

    def inject(self) -> str:
        return f"FLUSHALL: {self.campaign.tell_broker('FLUSHALL')}"


class BrokerFrozen(Fault):
    name, what = "F29", "broker frozen"
    touches = ("broker",)

    def prepare(self) -> None:
        self.hold = self.rng.choice((5.0, 12.0, 30.0))

    def inject(self) -> str:
        kill(self.system.parts["broker"].pid, signal.SIGSTOP)
        return f"SIGSTOP of the broker for {self.hold:.0f} s"

    def heal(self) -> None:
        kill(self.system.parts["broker"].pid, signal.SIGCONT)


class BrokerOutOfMemory(Fault):
    name, what = "F30", "broker out of memory"
    moments = "I"
    touches = ("broker",)
    hold = 8.0

    def inject(self) -> str:
        return f"maxmemory 1: {self.campaign.tell_broker('CONFIG', 'SET', 'maxmemory', '1')}"

    def heal(self) -> None:
        self.campaign.tell_broker("CONFIG", "SET", "maxmemory", "64mb")


class PokesLost(Fault):
    name, what = "F31", "pokes lost"

    def prepare(self) -> None:
        self.hold = self.rng.uniform(4, 9)

    def inject(self) -> str:
        self.go_on()
        return f"the listener's connection cut in a loop for {self.hold:.0f} s"

    def go_on(self) -> None:
        self.campaign.terminate("arborist-live")


class SocketHalfOpen(Fault):
    name, what = "F32", "half-open socket of a viewer"
    moments = "I"
    touches = ("frozen viewer",)

    def prepare(self) -> None:
        self.hold = self.rng.choice((8.0, 20.0, 50.0))

    def inject(self) -> str:
        self.system.proxies["frozen"].is_stalled = True
        return f"nothing passes to a viewer for {self.hold:.0f} s"

    def heal(self) -> None:
        self.system.proxies["frozen"].mend()


class NetworkSlow(Fault):
    name, what = "F33", "slow network of a viewer"
    moments = "I"
    touches = ("slow viewer",)
    hold = 12.0

    def inject(self) -> str:
        self.system.proxies["slow"].bytes_per_second = 1000
        return "1 kB/s to a viewer"

    def heal(self) -> None:
        self.system.proxies["slow"].mend()


class WorkerCutOff(WorkerFault):
    name, what = "F34", "network cut between worker and database"
    moments = "R"

    def prepare(self) -> None:
        super().prepare()
        self.how = self.rng.choice(("cut", "a black hole"))
        self.hold = self.rng.choice((5.0, 15.0, 45.0))

    def inject(self) -> str:
        self.system.note_away(self.worker)
        self.system.cut_off(self.worker, is_told=self.how == "cut")
        return f"{self.worker}'s way to the database is {self.how} for {self.hold:.0f} s"

    def heal(self) -> None:
        self.system.reconnect(self.worker)
        self.system.note_back(self.worker)


class AnswerLost(WorkerFault):
    """The commit arrives, its answer does not: the worker must do it again, and it must count once."""

    name, what = "F35", "cut between commit and answer"
    moments = "R"

    def prepare(self) -> None:
        super().prepare()
        self.hold = self.rng.uniform(3, 7)

    def inject(self) -> str:
        self.system.proxies[self.worker].cut_after = b"COMMIT"
        return f"{self.worker} hears of no commit for {self.hold:.0f} s"

    def heal(self) -> None:
        proxy = self.system.proxies[self.worker]
        proxy.mend()
        self.system.history.add("note", text=f"{proxy.cuts} answers to {self.worker} were lost so far")


class SpoolTorn(HolderFault):
    """Records wait in the spool, for the way to the database is cut off, when its worker dies and the machine
    with it, so that the end of the file is lost.
    """

    name, what = "F36", "spool torn at its end"
    moments = "R"
    hold = 12.0
    ends_by_itself = True

    def prepare(self) -> None:
        super().prepare()
        self.is_done = False

    def strike_at(self, worker: str) -> str:
        self.run = self.campaign.run_of(worker)
        self.epoch = self.campaign.run(self.run).epoch
        self.system.cut_off(self.worker)
        return f"{self.worker} to be killed with events of run {self.run} in its spool, and the end cut off"

    def go_on(self) -> None:
        if self.worker and not self.is_done and self.campaign.watcher.waiting(self.run, self.epoch) >= 2:
            self.strike()

    def strike(self) -> None:
        self.is_done = True
        pids = self.campaign.processes_of(self.worker, trainers=True)
        for pid in pids:
            kill(pid, signal.SIGKILL)
        self.system.down(self.worker)
        processes.wait_until(lambda: not any(Identity.of(pid) for pid in pids), 5)
        spool = self.system.folder.root / f"runs/{self.run}/attempt-{self.epoch}/spool"
        if not spool.exists() or not spool.stat().st_size:
            return
        cut = self.rng.randint(1, 50)
        os.truncate(spool, max(0, spool.stat().st_size - cut))
        self.campaign.torn.add((self.run, self.epoch))
        self.campaign.hits["F36 records waited, the last one was torn"] += 1

    def is_over(self) -> bool:
        return self.is_done or super().is_over()


class ClockJumps(Fault):
    name, what = "F37", "the worker's clock jumps"
    touches = ("clock",)
    hold = 8.0

    def impossible(self) -> str:
        return "" if self.system.clock is not None else "no C compiler"

    def inject(self) -> str:
        what, jump = self.rng.choice(
            (("2 h ahead", 7200), ("2 h back", -7200), ("10 years back", -315_360_000))
        )
        self.system.set_clock(jump)
        return f"the clock of {CLOCKED} is set {what}"

    def heal(self) -> None:
        self.system.set_clock(0)


class ModelGone(Fault):
    """A run from a folder of its own; the folder is moved away and the run's worker killed."""

    name, what = "F39", "model folder gone during the run"
    moments = "R"
    touches = WORKERS
    hold = 20.0
    patience = 15.0

    def is_moment(self) -> bool:
        return any(self.campaign.is_own_model(run.id) and run.step >= 2 for run in self.campaign.leased())

    def inject(self) -> str:
        self.folder = self.campaign.own_model
        self.aside = self.folder.with_name("moved")
        self.folder.rename(self.aside)
        run = next((run for run in self.campaign.leased() if self.campaign.is_own_model(run.id)), None)
        self.worker = run.owner.partition("@")[0] if run is not None else self.rng.choice(WORKERS)
        self.system.down(self.worker)
        return f"model folder moved; {self.worker} killed; run {run.id if run else 'of it not begun'}"

    def go_on(self) -> None:
        if not self.system.parts[self.worker].is_alive():
            self.system.launch(self.worker)

    def heal(self) -> None:
        self.aside.rename(self.folder)


class VerifierHangs(Fault):
    """An answer that a killed verifier was at is judged again. What a frozen one had to judge has no verdict
    in the end, so such a run is no twin's equal any more.
    """

    name, what = "F40", "verifier hangs or dies"
    hold = 12.0
    patience = 10.0

    def prepare(self) -> None:
        self.is_killed = self.rng.random() < 0.5

    def is_moment(self) -> bool:
        return bool(self.campaign.a_verifier(self.rng)[0])

    def inject(self) -> str:
        self.pid, run = self.campaign.a_verifier(self.rng)
        if not self.pid:
            return "nobody verified anything"
        if self.is_killed:
            kill(self.pid, signal.SIGKILL)
            self.campaign.hits["F40 killed"] += 1
            return f"kill -9 of verifier {self.pid} of run {run}"
        self.campaign.config_of[run] = ""
        kill(self.pid, signal.SIGSTOP)
        self.campaign.hits["F40 frozen"] += 1
        return f"SIGSTOP of verifier {self.pid} of run {run}"

    def heal(self) -> None:
        if not self.is_killed:
            kill(self.pid, signal.SIGCONT)


class Asked(Fault):
    """What a person asks for is in the schedule like a fault."""

    action = ""
    hold = 0.5

    def inject(self) -> str:
        runs = [run.id for run in self.campaign.leased()]
        if not runs:
            return f"nobody to {self.action}"
        run = self.rng.choice(runs)
        return f"{self.action} of run {run}: {'taken' if self.campaign.wish(run, self.action) else 'refused'}"


class Paused(Asked):
    name, what, action = "pause", "a person pauses a run", "pause"
    moments = "SRTC"


class Stopped(Asked):
    name, what, action = "stop", "a person stops a run", "stop"
    moments = "SRTC"


class StoppedNow(Asked):
    name, what, action = "stop-now", "a person stops a run at once", "stop-now"
    moments = "SRTC"


def catalogue() -> dict[str, type[Fault]]:
    """By name, in the order of the matrix."""
    found: list[type[Fault]] = []
    waiting = [Fault]
    while waiting:
        one = waiting.pop(0)
        waiting += one.__subclasses__()
        if one.name:
            found.append(one)
    return {one.name: one for one in sorted(found, key=lambda one: _order(one.name))}


def _order(name: str) -> tuple[int, str]:
    digits = "".join(letter for letter in name if letter.isdecimal())
    return int(digits or 999), name
