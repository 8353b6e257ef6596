"""The real parts in a temporary data folder, for measuring: database, broker, worker, site.

Import it first: it points the settings at the folder before Django reads them.
"""

from __future__ import annotations

import atexit
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from webapp.embedded import processes
from webapp.embedded.broker import BrokerServer
from webapp.embedded.folder import DataFolder
from webapp.embedded.postgres import PostgresServer
from webapp.embedded.processes import Child

REPOSITORY = Path(__file__).resolve().parents[1]
JOINED = "ARBORIST_BENCHMARK_FOLDER"  # set for processes that a benchmark starts from its own module
FOLDER = DataFolder.at(os.environ.get(JOINED) or tempfile.mkdtemp(prefix="arborist-bench-"))
MARK = secrets.token_hex(8)
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

if JOINED not in os.environ:
    # Ended from outside, too, everything that was started is stopped.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    FOLDER.prepare()
    atexit.register(FOLDER.remove)
    for _name in ("ARBORIST_DATABASE_URL", "ARBORIST_BROKER_URL"):
        os.environ.pop(_name, None)
    os.environ |= {
        JOINED: str(FOLDER.root),
        "ARBORIST_DATA_DIR": str(FOLDER.root),
        "ARBORIST_SECRET_KEY": secrets.token_urlsafe(50),
        "DJANGO_SETTINGS_MODULE": "webapp.settings",
        "OMP_NUM_THREADS": "1",
        processes.MARK: MARK,
    }


@contextmanager
def database() -> Iterator[Child]:
    """PostgreSQL with its normal settings (fsync on) and our tables; Django is set up."""
    server = PostgresServer(FOLDER)
    server.prepare()
    child = server.start(MARK)
    _wait(lambda: server.is_ready(), "the database")
    try:
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        yield child
    finally:
        from django.db import connections

        connections.close_all()
        server.stop(child)


@contextmanager
def broker() -> Iterator[Child]:
    server = BrokerServer(FOLDER)
    child = server.start(MARK)
    _wait(server.is_ready, "the broker")
    try:
        yield child
    finally:
        server.stop(child)


@contextmanager
def program(name: str, argv: list[str], is_ready: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    with (FOLDER.logs / f"{name}.log").open("ab") as output:
        popen = subprocess.Popen(
            [sys.executable, *argv], cwd=REPOSITORY, stdout=output, stderr=output, env=dict(os.environ)
        )
    try:
        _wait(lambda: is_ready() or popen.poll() is not None, name)
        if popen.poll() is not None:
            sys.exit((FOLDER.logs / f"{name}.log").read_text())
        yield popen
    finally:
        popen.send_signal(signal.SIGTERM)
        popen.wait(30)


@contextmanager
def worker() -> Iterator[subprocess.Popen[bytes]]:
    argv = ["-m", "celery", "--app", "workers.celery:app", "worker", "--queues", "cpu", "--loglevel", "INFO"]
    log = FOLDER.logs / "worker.log"
    with program(
        "worker", [*argv, "--without-gossip", "--without-mingle"], lambda: " ready." in _text(log)
    ) as it:
        yield it


@contextmanager
def web(port: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    argv = ["-m", "uvicorn", "webapp.asgi:application", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--no-access-log", "--ws-max-size", "65536", "--timeout-graceful-shutdown", "3", *options]
    with program("web", argv, answers) as it:
        yield it


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _wait(condition: Callable[[], bool], what: str) -> None:
    if not processes.wait_until(condition, 90):
        sys.exit(f"{what} did not start within 90 s; see {FOLDER.logs}")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of all its descendants, dead ones that were reaped included."""
    return own_cpu_seconds(pid, with_reaped=True) + sum(cpu_seconds(child) for child in children(pid))


def own_cpu_seconds(pid: int, *, with_reaped: bool = False) -> float:
    """User and system time of one process, all its threads."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # utime, stime, and those of waited-for children
    return sum(int(field) for field in fields[11 : 15 if with_reaped else 13]) / CLOCK_TICKS


def children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    except OSError:
        return found
    return found


def machine() -> str:
    """One line about where a figure was measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown CPU",
    )
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]
