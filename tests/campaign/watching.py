"""What happens, seen from outside while it happens: processes, run rows, spools, HTTP answers, memory."""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.campaign.checker import LEASED
from tests.campaign.content import of_event
from tests.campaign.history import History
from tests.campaign.stack import WORKERS, System
from webapp.database.connections import HastyConnection
from webapp.embedded import processes
from webapp.embedded.folder import DATABASE, ROLE
from webapp.embedded.processes import Identity
from workers.child import MARK
from workers.output import UnreadableEventError, read_event
from workers.spool import SpoolReader

LOOK_SECONDS = 0.25
MEMORY_SECONDS = 5.0
ASK_SECONDS = 1.0


@dataclass
class RunSeen:
    """A run's row as it was seen last."""

    id: int
    status: str = ""
    epoch: int = 0
    owner: str = ""
    step: int = 0
    phase: str = ""
    last_seq: int = 0
    checkpoint: tuple[int, int] | None = None  # epoch, step
    reason: str = ""
    wish_seen: bool = False


@dataclass
class Spool:
    reader: SpoolReader
    read_on: int = 0


class BlindError(Exception):
    """Nobody watches any more, so nothing that follows could be judged."""


@dataclass
class Watcher:
    """Threads that look and write down. `runs` is what they saw last."""

    system: System
    runs: dict[int, RunSeen] = field(default_factory=dict)
    trainers: list[tuple[int, int, int]] = field(default_factory=list)  # run, epoch, pid

    def __post_init__(self) -> None:
        self.history: History = self.system.history
        self._holders: dict[tuple[int, int], tuple[Identity | None, bool | None]] = {}
        self._unmarked: dict[Identity, tuple[int, int]] = {}  # verifiers have a bare environment
        self._checkpoints_told: Counter[int] = Counter()
        self._acks: dict[tuple[int, int], int] = {}
        self._spools: dict[tuple[int, int], Spool] = {}
        self._link: psycopg.Connection[Any] | None = None
        self._leave = threading.Event()
        self._memory_at = 0.0
        self.latest_memory: dict[str, float] = {}
        self.lag = 0.0  # longest time between two looks
        self._threads = [
            threading.Thread(target=self._look_on, name="campaign-watch", daemon=True),
            threading.Thread(target=self._tail_on, name="campaign-spools", daemon=True),
        ]

    def raise_if_blind(self) -> None:
        """Raises BlindError when one of the threads has ended by itself; its traceback is printed."""
        for thread in self._threads:
            if not thread.is_alive() and not self._leave.is_set():
                raise BlindError(f"{thread.name} ended by itself after {self.history.now():.0f} s")

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._leave.set()
        for thread in self._threads:
            thread.join(10)

    # Rows and processes

    def _look_on(self) -> None:
        before = time.monotonic()
        while not self._leave.wait(LOOK_SECONDS):
            now = time.monotonic()
            self.lag, before = max(self.lag, now - before), now
            self._look_at_rows()
            self._look_at_processes()
            if now - self._memory_at > MEMORY_SECONDS:
                self._memory_at = now
                self._look_at_memory()

    def connect(self) -> psycopg.Connection[Any]:
        """A link of the campaign's own, past all proxies. Raises psycopg.Error."""
        return HastyConnection.connect(  # it is not to hang where the database does
            host=str(self.system.folder.postgres_socket_folder),
            dbname=DATABASE,
            user=ROLE,
            autocommit=True,
            connect_timeout=2,
            application_name="campaign",
            options="-c statement_timeout=2000 -c lock_timeout=1500",
        )

    def _look_at_rows(self) -> None:
        try:
            if self._link is None:
                self._link = self.connect()
            runs = self._link.execute(_ROWS).fetchall()
            attempts = self._link.execute(
                "SELECT run_id, epoch, recorded_through FROM arborist_attempt"
            ).fetchall()
        except psycopg.Error as error:
            self.history.add("poll", "fail", why=str(error).strip()[:120])
            if self._link is not None:
                with contextlib.suppress(psycopg.Error):
                    self._link.close()
                self._link = None
            return
        for row in runs:
            pointer = None if row[7] is None else (row[7], row[8])
            self._note_run(RunSeen(*row[:7], checkpoint=pointer, reason=row[9], wish_seen=row[10]))
        for run, epoch, through in attempts:
            if self._acks.get((run, epoch)) != through:
                self._acks[run, epoch] = through
                self.history.add("ack", "ok", run=run, epoch=epoch, through=through)

    def _note_run(self, seen: RunSeen) -> None:
        before = self.runs.get(seen.id, RunSeen(seen.id))
        self.runs[seen.id] = seen
        if (before.status, before.epoch) != (seen.status, seen.epoch):
            self.history.add(
                "run",
                run=seen.id,
                status=seen.status,
                epoch=seen.epoch,
                owner=seen.owner,
                step=seen.step,
                reason=seen.reason,
            )
        if seen.checkpoint is not None and before.checkpoint != seen.checkpoint:
            self.history.add("pointer", "ok", run=seen.id, epoch=seen.checkpoint[0], step=seen.checkpoint[1])
        if seen.status in LEASED:
            key = (seen.id, seen.epoch)
            if key not in self._holders:
                name = seen.owner.partition("@")[0]
                self._holders[key] = (self.system.pool_child(name) if name in WORKERS else None, None)

    def _look_at_processes(self) -> None:
        for key, (holder, was) in list(self._holders.items()):
            is_alive = holder is not None and holder.is_alive() and not is_frozen(holder.pid)
            if is_alive != was:
                self._holders[key] = (holder, is_alive)
                self.history.add(
                    "holder", run=key[0], epoch=key[1], alive=is_alive, pid=holder.pid if holder else 0
                )
            if holder is None or not holder.is_alive():
                run = self.runs.get(key[0])
                if run is not None and (run.epoch != key[1] or run.status not in LEASED):
                    self._holders.pop(key)
        found = sorted(self._started())
        if found != self.trainers:
            self.trainers = found
            self.history.add("trainers", alive=found)

    def _started(self) -> list[tuple[int, int, int]]:
        """(run, epoch, pid) of every process that an attempt has started and that lives. Those that carry no
        mark are known by who started them, as long as they live.
        """
        found = self._marked()
        for run, epoch, pid in found:
            with contextlib.suppress(OSError):
                for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                    if (identity := Identity.of(int(child))) is not None:
                        self._unmarked.setdefault(identity, (run, epoch))
        known = {pid for _, _, pid in found}
        for identity, (run, epoch) in list(self._unmarked.items()):
            if not identity.is_alive():
                del self._unmarked[identity]
            elif identity.pid not in known:
                found.append((run, epoch, identity.pid))
        return found

    def _marked(self) -> list[tuple[int, int, int]]:
        found = []
        ours = f"{processes.MARK}={self.system.folder.digest}".encode()
        mark = f"{MARK}=".encode()
        for pid in processes.pids():
            try:
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if ours not in variables or Identity.of(pid) is None:
                continue
            value = next((v[len(mark) :].decode() for v in variables if v.startswith(mark)), "")
            parts = value.split("-")
            if len(parts) == 3 and parts[0].isdecimal() and parts[1].isdecimal():
                found.append((int(parts[0]), int(parts[1]), pid))
        return found

    def _look_at_memory(self) -> None:
        for name in ("web", "sweeper"):
            pid = self.system.parts[name].pid
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (OSError, ValueError, IndexError):
                continue
            if not pages:
                continue  # it has just ended
            mb = round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
            self.latest_memory[name] = mb
            self.history.add("memory", name=name, pid=pid, mb=mb)

    # Spools

    def waiting(self, run: int, epoch: int) -> int:
        """How many records of this attempt are in its spool and were not seen stored."""
        spool = self._spools.get((run, epoch))
        return 0 if spool is None else spool.reader.n - self._acks.get((run, epoch), 0)

    def checkpoints_told(self, run: int) -> int:
        """How many checkpoints came into spools of this run."""
        return self._checkpoints_told[run]

    def _tail_on(self) -> None:
        while not self._leave.wait(0.1):
            self._tail()
        self._tail()

    def _tail(self) -> None:
        for path in (self.system.folder.root / "runs").glob("*/attempt-*/spool"):
            key = (int(path.parts[-3]), _epoch(path.parts[-2]))
            if key not in self._spools and key[1]:
                with contextlib.suppress(OSError):
                    self._spools[key] = Spool(SpoolReader(path))
        for (run, epoch), spool in list(self._spools.items()):
            # Deleted files can be read as long as they are open.
            while records := spool.reader.take(spool.reader.size(), 200, 2**24):
                for record in records:
                    try:
                        said = of_event(read_event(record.payload))
                    except UnreadableEventError:
                        said = ("unreadable", None, "unreadable")
                    if said and said[0] == "checkpoint":
                        self._checkpoints_told[run] += 1
                    self.history.add(
                        "emit",
                        run=run,
                        epoch=epoch,
                        n=record.n,
                        kind=said[0] if said else "",
                        step=said[1] if said else None,
                        digest=said[2] if said else None,
                    )
                spool.reader.advance(records[-1])


_ROWS = """
    SELECT r.id, r.status, r.lease_epoch, r.lease_owner, r.step, r.phase, r.last_seq, c.epoch, c.step,
           r.reason, r.wish_seen_at IS NOT NULL
    FROM arborist_run r LEFT JOIN arborist_checkpoint c ON c.id = r.checkpoint_id
"""


def _epoch(folder: str) -> int:
    number = folder.removeprefix("attempt-")
    return int(number) if number.isdecimal() else 0


def is_frozen(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False


class Asker(threading.Thread):
    """Somebody who looks at pages and the API all the time."""

    def __init__(self, system: System, headers: dict[str, str], paths: list[str]) -> None:
        super().__init__(name="campaign-asker", daemon=True)
        self.system, self.headers, self.paths = system, headers, paths
        self.slowest = 0.0
        self.count = 0
        self._leave = threading.Event()

    def run(self) -> None:
        turn = 0
        while not self._leave.wait(ASK_SECONDS):
            path = self.paths[turn % len(self.paths)]
            turn += 1
            began = time.monotonic()
            try:
                status, retry_after, _ = ask(self.system.proxies["front"].port, "GET", path, self.headers)
            except (OSError, http.client.HTTPException) as error:
                self.system.history.add(
                    "http", "fail", path=path, status=0, why=f"{type(error).__name__}: {error}"
                )
                continue
            seconds = time.monotonic() - began
            self.slowest = max(self.slowest, seconds)
            self.count += 1
            self.system.history.add(
                "http", "ok", path=path, status=status, seconds=round(seconds, 3), retry_after=retry_after
            )

    def end(self) -> None:
        self._leave.set()
        self.join(15)


def ask(
    port: int, method: str, path: str, headers: dict[str, str], body: bytes | None = None, seconds: float = 12
) -> tuple[int, str, bytes]:
    """(status, Retry-After, body). Raises OSError or HTTPException when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Retry-After", ""), answer.read()
    finally:
        connection.close()
