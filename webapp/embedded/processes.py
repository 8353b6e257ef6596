"""Child processes that cannot be lost: started through `guard.py`, written down, and found again.

Three nets, one behind the other. Every child gets a death signal, so the kernel ends it with us, also after
`kill -9`. The signal does not reach grandchildren, so every child carries a mark in its environment that its
own children inherit, by which `end_marked` finds them. And pids with their start times are written to a
file, by which the next supervisor ends what outlived the last one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from webapp.embedded.folder import Account

GUARD = Path(__file__).with_name("guard.py")
MARK = "ARBORIST_SUPERVISED_BY"
POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, told from a later one with the same pid: by its start in clock ticks since boot."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """None when there is no such process, or only its exit status is left."""
        try:
            line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        # The second field is the program's name in brackets, which may itself hold spaces and brackets.
        fields = line.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    def is_alive(self) -> bool:
        return Identity.of(self.pid) == self


@dataclass(slots=True)
class Child:
    name: str
    popen: subprocess.Popen[bytes]
    identity: Identity
    log: Path

    def is_alive(self) -> bool:
        if self.popen.returncode is not None:
            return False
        # Look without reaping: until `end` has reaped it, neither its pid nor its group can be anyone else's.
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.popen.pid, flags) is None

    def wait(self, seconds: float, *, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Whether it ended within the time; `hurry` cuts the waiting short."""
        return wait_until(lambda: not self.is_alive(), seconds, hurry=hurry)

    def signal(self, number: int) -> None:
        """Does nothing once the child has ended."""
        if self.popen.returncode is None:
            os.kill(self.popen.pid, number)

    def end(self) -> int:
        """Kill the child and whatever still shares its process group, and reap it. Returns its exit status,
        which is minus the signal's number when a signal ended it.
        """
        if self.popen.returncode is None:
            os.killpg(self.popen.pid, signal.SIGKILL)
        return self.popen.wait()


def guarded(argv: Sequence[str | Path], *, death_signal: int, account: Account | None = None) -> list[str]:
    """The command that becomes `argv` under a death signal, as `account`. The parent must be this process."""
    who = "-" if account is None else f"{account.uid}:{account.gid}"
    guard = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), str(int(death_signal)), who]
    return [*guard, *(str(part) for part in argv)]


def start(
    name: str,
    argv: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str],
    cwd: Path,
    death_signal: int = signal.SIGKILL,
    account: Account | None = None,
) -> Child:
    """Start `argv` in a process group of its own, with its output appended to `log`.

    Call it from a thread that lives as long as the child may: the death signal is sent when the *thread*
    ends.
    """
    with log.open("ab") as output:
        popen = subprocess.Popen(
            guarded(argv, death_signal=death_signal, account=account),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    # Not reaped before we ask, so the pid is still this child's, even if it ended at once.
    identity = Identity.of(popen.pid) or Identity(popen.pid, 0)
    return Child(name, popen, identity, log)


def stop_politely(
    child: Child, number: int, seconds: float, *, hurry: Callable[[], bool] = lambda: False
) -> bool:
    """Ask the child to end, and say whether it did within the time."""
    if child.is_alive():
        child.signal(number)
    return child.wait(seconds, hurry=hurry)


def wait_until(
    condition: Callable[[], bool], seconds: float, *, hurry: Callable[[], bool] = lambda: False
) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if hurry() or time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def marked(mark: str, *, variable: str = MARK) -> list[Identity]:
    """Our own user's processes that carry the mark in their environment, this one excepted."""
    wanted = f"{variable}={mark}".encode()
    found = []
    for pid in pids():
        if pid == os.getpid():
            continue
        identity = Identity.of(pid)
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # it ended, or it is another user's
            continue
        if identity is not None and wanted in environment.split(b"\0"):
            found.append(identity)
    return found


def end_marked(mark: str, *, variable: str = MARK, seconds: float = 5.0) -> list[Identity]:
    """Kill every process that carries the mark, also one started meanwhile. Returns what was found first."""
    first = left = marked(mark, variable=variable)
    deadline = time.monotonic() + seconds
    while left and time.monotonic() < deadline:
        kill(left)
        time.sleep(POLL_SECONDS)
        left = marked(mark, variable=variable)
    return first


def kill(processes: Iterable[Identity]) -> None:
    for process in processes:
        if process.is_alive():
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def last_line(log: Path, *, offset: int = 0) -> str:
    """What a program said last, which after a failed start is mostly why."""
    lines = read_from(log, offset).strip().splitlines()
    return lines[-1].strip() if lines else ""


def read_from(log: Path, offset: int, *, max_bytes: int = 1 << 16) -> str:
    """The end of what was written to the log after `offset`; empty when there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(offset, file.seek(0, os.SEEK_END) - max_bytes))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def write_record(path: Path, children: Iterable[Child]) -> None:
    record = {
        "boot": boot_id(),
        "processes": [
            {"name": child.name, "pid": child.identity.pid, "started": child.identity.started}
            for child in children
        ],
    }
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_record(path: Path) -> list[tuple[str, Identity]]:
    """What an earlier supervisor wrote down and is still alive. Empty after a reboot, or when it is
    unreadable: a record cut short by a full disk must not keep anyone from starting.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["boot"] != boot_id():
            return []
        entries = [(str(e["name"]), Identity(int(e["pid"]), int(e["started"]))) for e in record["processes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [(name, identity) for name, identity in entries if identity.is_alive()]
