"""The supervisor: database, tables, broker, web, sweeper, worker, exporter, started in this order and stopped
in reverse.

It lives in the main thread of one process and polls; nothing here knows what a run is. It must be usable
before there is a database, so nothing of Django's models is imported.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from webapp.embedded import broker, postgres, processes
from webapp.embedded.broker import BrokerServer
from webapp.embedded.errors import EmbeddedError
from webapp.embedded.folder import DataFolder
from webapp.embedded.postgres import PostgresServer
from webapp.embedded.processes import Child
from webapp.embedded.terminal import LogTail, Terminal

REPOSITORY = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
FIRST_PORT = 8000
PORTS_TRIED = 20
SOCKET_MESSAGE_BYTES_MAX = 64 * 1024
PROGRAM_START_SECONDS = 90.0
WEB_LEAVE_SECONDS = 7  # to answer what was asked before: a statement may take 5 s, an upload some
TICK_SECONDS = 0.2
BACK_OFF_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
# After this long a restart counts as a success, and the back-off begins anew.
STEADY_SECONDS = 60.0
LOG_BYTES_MAX = 20 * 1024 * 1024
# A second Ctrl-C forces. Signals that come together are one wish: make passes on what the terminal sent us
# too.
TOGETHER_SECONDS = 1.0
# PostgreSQL's answer to our own knocking, and to connections that are open when it is stopped.
ORDINARY = (
    "FATAL:  the database system is starting up",
    "FATAL:  terminating connection due to administrator command",
)
STEPS = ("database", "tables", "broker", "web", "sweeper and workers")


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """Somebody asked us to stop while we were starting."""


class Interrupts:
    """Ctrl-C, SIGTERM and a closed terminal, counted instead of raised: a stop is always orderly."""

    def __init__(self) -> None:
        self.count = 0
        self._last = 0.0

    def __bool__(self) -> bool:
        return self.count > 0

    def force(self) -> bool:
        return self.count > 1

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.count == 0 or now - self._last > TOGETHER_SECONDS:
            self.count += 1
        self._last = now

    @contextmanager
    def caught(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Server(Protocol):
    """What the stack can run: the embedded servers, and our own programs."""

    @property
    def name(self) -> str: ...
    @property
    def log(self) -> Path: ...
    def start(self, mark: str) -> Child: ...
    def is_ready(self) -> bool: ...
    def explain(self) -> str: ...
    def stop(self, child: Child, *, hurry: Callable[[], bool]) -> None: ...


@dataclass
class Program:
    """One of our own processes: web, sweeper, workers."""

    name: str
    argv: Sequence[str]
    log: Path
    env: dict[str, str]
    stop_seconds: float
    ready: Callable[[], bool] = lambda: True

    def start(self, mark: str) -> Child:
        env = self.env | {processes.MARK: mark}
        return processes.start(self.name, self.argv, log=self.log, env=env, cwd=REPOSITORY)

    def is_ready(self) -> bool:
        return self.ready()

    def explain(self) -> str:
        said = processes.last_line(self.log) or "it said nothing"
        return f"The {self.name} process ended or did not answer: {said} (in {self.log})"

    def stop(self, child: Child, *, hurry: Callable[[], bool]) -> None:
        processes.stop_politely(child, signal.SIGTERM, self.stop_seconds, hurry=hurry)
        child.end()


@dataclass
class Service:
    server: Server
    start_seconds: float
    child: Child | None = None
    tail: LogTail | None = None
    started: float = 0.0
    failures: int = 0
    restart_at: float | None = None


@dataclass
class Stack:
    """`with stack.running():` and inside it `stack.watch(…)`."""

    folder: DataFolder
    terminal: Terminal
    port: int | None = None
    show_logs: bool = True
    runs_at_once: int = 1
    interrupts: Interrupts = field(default_factory=Interrupts)
    services: list[Service] = field(default_factory=list)
    url: str = ""
    secret_key: str = ""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start everything, hand over, stop everything, whatever happened in between."""
        if sys.platform != "linux":
            raise EmbeddedError(
                "The embedded servers need Linux. On another system, use the files in docker/."
            )
        with self.interrupts.caught(), self._lock():
            try:
                self._start()
                yield
            finally:
                self._stop()

    def watch(self, until: Callable[[], bool] = lambda: False) -> None:
        """Keep the services alive and their logs visible until `until()`, or until somebody asks to stop."""
        while not self.interrupts and not until():
            self.tick()
            time.sleep(TICK_SECONDS)

    def tick(self) -> None:
        for service in self.services:
            self._show_log(service)
            if service.restart_at is None and service.child is not None and not service.child.is_alive():
                self._note_death(service)
            elif service.restart_at is not None and time.monotonic() >= service.restart_at:
                self._restart(service)
        self._cut_logs()

    # Starting

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One supervisor per data folder. The kernel drops the lock with its holder, so it is never stale."""
        self.folder.prepare()
        with self.folder.lock.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise EmbeddedError(self._already_running(file.read())) from None
            self._lock_file = file
            self._write_lock()
            try:
                yield
            finally:
                file.truncate(0)

    def _write_lock(self) -> None:
        self._lock_file.seek(0)
        self._lock_file.truncate()
        json.dump({"pid": os.getpid(), "url": self.url}, self._lock_file)
        self._lock_file.flush()

    def _already_running(self, text: str) -> str:
        try:
            holder = json.loads(text)
            who = f"process {holder['pid']}" + (f", {holder['url']}" if holder["url"] else "")
        except (ValueError, KeyError, TypeError):  # it is being written just now
            who = "another process"
        return (
            f"Arborist is already running on {self.folder.root} ({who}). Stop it with Ctrl-C where it was "
            "started, or choose another data folder with ARBORIST_DATA_DIR."
        )

    def _start(self) -> None:
        self._end_leftovers()
        port = choose_port(self.port)
        self.url = f"http://{HOST}:{port}"
        if self.port is None and port != FIRST_PORT:
            self.terminal.say(f"port {FIRST_PORT} is used by another program; taking {port}")
        self._write_lock()
        self.secret_key = os.environ.get("ARBORIST_SECRET_KEY") or self.folder.make_secret_key()
        own_database = not os.environ.get("ARBORIST_DATABASE_URL")
        own_broker = not os.environ.get("ARBORIST_BROKER_URL")
        env = self._environment()

        if own_database:
            server = PostgresServer(self.folder)
            note = "" if server.is_made else "made once, about 3 s"
            with self.terminal.step("database", note=note):
                server.prepare()
                self._start_service(Service(server, postgres.START_SECONDS))
            if self.folder.postgres.parent != self.folder.root:
                why = f"user {server.account_name!r} may not enter {self.folder.root}"
                self.terminal.say(f"    it lives in {self.folder.postgres}, as {why}")
        else:
            with self.terminal.step("database from ARBORIST_DATABASE_URL"):
                pass
        with self.terminal.step("tables"):
            if not tables_are_current():
                self._run_once("migrate", ["manage.py", "migrate", "--noinput"], env)
        if own_broker:
            with self.terminal.step("broker"):
                self._start_service(Service(BrokerServer(self.folder), broker.START_SECONDS))
        else:
            with self.terminal.step("broker from ARBORIST_BROKER_URL"):
                pass
        # They do not wait for one another, and a start is mostly reading modules: side by side, then.
        web, *others = (
            Service(program, PROGRAM_START_SECONDS)
            for program in (
                self._web(port, env),
                self._sweeper(env),
                self._worker(env),
                self._exporter(env),
                self._prober(env),
            )
        )
        with self.terminal.step("web"):
            for service in (web, *others):
                self.services.append(service)
                self._launch(service)
            self._wait_ready(web)
        with self.terminal.step("sweeper and workers"):
            for service in others:
                self._wait_ready(service)

    def _environment(self) -> dict[str, str]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        addresses = {
            "ARBORIST_DATA_DIR": str(self.folder.root),
            "ARBORIST_DATABASE_URL": self.folder.database_url,
            "ARBORIST_BROKER_URL": self.folder.broker_url,
            "ARBORIST_SECRET_KEY": self.secret_key,
            "PYTHONUNBUFFERED": "1",
        }
        # What the person set wins, where it says anything.
        chosen = {name: value for name, value in os.environ.items() if value or name not in addresses}
        return threads | addresses | chosen | {"ARBORIST_DATA_DIR": str(self.folder.root)}

    def _web(self, port: int, env: dict[str, str]) -> Program:
        argv = [sys.executable, "-m", "uvicorn", "webapp.asgi:application"]
        argv += ["--host", HOST, "--port", str(port), "--no-access-log", "--no-server-header"]
        # h11 bounds a request's headers, httptools does not. No proxy stands before us, so what a request
        # says of addresses is nothing.
        argv += ["--http", "h11", "--h11-max-incomplete-event-size", "65536", "--no-proxy-headers"]
        argv += ["--ws-max-size", str(SOCKET_MESSAGE_BYTES_MAX)]
        argv += ["--timeout-graceful-shutdown", str(WEB_LEAVE_SECONDS)]
        log, patience = self.folder.logs / "web.log", WEB_LEAVE_SECONDS + 3.0
        return Program("web", argv, log, env, patience, ready=lambda: answers(port))

    def _sweeper(self, env: dict[str, str]) -> Program:
        argv = [sys.executable, "manage.py", "sweep"]
        return Program("sweeper", argv, self.folder.logs / "sweeper.log", env, 8.0)

    def _worker(self, env: dict[str, str]) -> Program:
        return self._celery("worker", "cpu", self.runs_at_once, env)

    def _exporter(self, env: dict[str, str]) -> Program:
        """A worker of its own: a run may keep the other one busy for days."""
        return self._celery("exporter", "exports", 1, env)

    def _prober(self, env: dict[str, str]) -> Program:
        """Likewise: what somebody samples by hand waits for no run and no export."""
        return self._celery("prober", "probes.cpu", 1, env)

    def _celery(self, name: str, queue: str, at_once: int, env: dict[str, str]) -> Program:
        argv = [sys.executable, "-m", "celery", "--app", "workers.celery:app", "worker"]
        argv += ["--pool", "prefork", "--concurrency", str(at_once), "--queues", queue, "--loglevel", "INFO"]
        argv += ["--hostname", f"{name}@%h", "--without-gossip", "--without-mingle"]
        log = self.folder.logs / f"{name}.log"
        return Program(name, argv, log, env, 30.0, ready=LogSays(log, " ready."))

    def _start_service(self, service: Service) -> None:
        self.services.append(service)
        self._launch(service)
        self._wait_ready(service)

    def _launch(self, service: Service) -> None:
        self._raise_if_interrupted()
        service.tail = service.tail or LogTail(service.server.name, service.server.log)
        service.started = time.monotonic()
        service.restart_at = None
        service.child = service.server.start(self.folder.digest)
        self._write_record()

    def _wait_ready(self, service: Service) -> None:
        deadline = time.monotonic() + service.start_seconds
        child = service.child
        while child is not None and not service.server.is_ready():
            self._raise_if_interrupted()
            self._show_log(service)
            if not child.is_alive() or time.monotonic() > deadline:
                raise EmbeddedError(service.server.explain())
            time.sleep(processes.POLL_SECONDS)

    def _run_once(self, name: str, arguments: Sequence[str], env: dict[str, str]) -> None:
        log = self.folder.logs / f"{name}.log"
        program = Program(name, [sys.executable, *arguments], log, env, 10.0)
        self._raise_if_interrupted()
        child = program.start(self.folder.digest)
        processes.wait_until(lambda: not child.is_alive() or bool(self.interrupts), 600.0)
        if child.is_alive():
            program.stop(child, hurry=self.interrupts.force)
            self._raise_if_interrupted()
            raise EmbeddedError(f"'{name}' did not finish within 10 minutes; {log} says how far it came.")
        if child.end() != 0:
            raise EmbeddedError(f"'{name}' failed: {processes.last_line(log)} (in {log})")

    def _raise_if_interrupted(self) -> None:
        if self.interrupts:
            raise Interrupted

    def _write_record(self) -> None:
        children = [service.child for service in self.services if service.child is not None]
        processes.write_record(self.folder.processes, children)

    def _end_leftovers(self) -> None:
        """We hold the lock, so whatever carries this folder's mark was left by a supervisor that was killed.
        The database is not touched here: PostgresServer ends its own gently.
        """
        recorded = {identity: name for name, identity in processes.read_record(self.folder.processes)}
        left = [identity for identity, name in recorded.items() if name != "database"]
        processes.kill(left)
        left += [
            identity for identity in processes.end_marked(self.folder.digest) if identity not in recorded
        ]
        if left:
            self.terminal.say(f"ended {len(left)} processes that an earlier start had left behind")

    # Watching

    def _show_log(self, service: Service) -> None:
        if service.tail is not None:
            for line in service.tail.lines():
                if self.show_logs or is_alarming(line):
                    self.terminal.log(service.server.name, line)

    def _note_death(self, service: Service) -> None:
        if service.child is None:
            return
        self._show_log(service)
        status = service.child.end()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        if time.monotonic() - service.started > STEADY_SECONDS:
            service.failures = 0
        wait = BACK_OFF_SECONDS[min(service.failures, len(BACK_OFF_SECONDS) - 1)]
        service.failures += 1
        service.restart_at = time.monotonic() + wait
        name = service.server.name
        self.terminal.say(f"the {name} process ended ({how}); starting it again in {wait:.0f} s")
        if status > 0:  # else a signal ended it, and its last words say nothing about that
            self.terminal.say(f"    {service.server.explain()}")

    def _restart(self, service: Service) -> None:
        try:
            self._launch(service)
        except (EmbeddedError, OSError) as error:
            # A full disk or a missing program may be put right meanwhile; everything else goes on.
            self.terminal.say(str(error))
            service.restart_at = time.monotonic() + BACK_OFF_SECONDS[-1]

    def _cut_logs(self) -> None:
        """Keep each log within its size. The writers append, so they go on at the new end."""
        for service in self.services:
            log = service.server.log
            if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
                log.with_suffix(".log.1").write_bytes(log.read_bytes())
                os.truncate(log, 0)

    # Stopping

    def _stop(self) -> None:
        if any(service.child is not None for service in self.services):
            self.terminal.say("stopping … (Ctrl-C again to force)")
        for service in reversed(self.services):
            if service.child is not None:
                service.server.stop(service.child, hurry=self.interrupts.force)
                self._show_log(service)
        left = processes.end_marked(self.folder.digest)
        if left:
            self.terminal.say(f"ended {len(left)} processes that had not stopped by themselves")
        self.folder.processes.unlink(missing_ok=True)
        if self.services:
            self.terminal.say("stopped")
        self.services.clear()


class LogSays:
    """Whether a log, from now on, contains a text."""

    def __init__(self, log: Path, text: str) -> None:
        self.tail = LogTail("", log)
        self.text = text
        self.said = False

    def __call__(self) -> bool:
        self.said = self.said or any(self.text in line for line in self.tail.lines())
        return self.said


def tables_are_current() -> bool:
    """Whether every migration was applied. Asking takes a tenth of the time that `migrate` takes."""
    # Only now: the rest of this module works without a database, and without Django's settings.
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    try:
        executor = MigrationExecutor(connection)
        return not executor.migration_plan(executor.loader.graph.leaf_nodes())
    finally:
        connection.close()


def is_alarming(line: str) -> bool:
    if line.endswith(ORDINARY):
        return False
    return any(word in line for word in (" ERROR ", "ERROR:", "CRITICAL", "FATAL:", "PANIC:", "Traceback"))


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the web server does it: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def choose_port(wanted: int | None) -> int:
    if wanted is not None:
        if not 1 <= wanted <= 65535:
            raise EmbeddedError(f"--port {wanted} is no port. Choose one from 1024 to 65535.")
        if not is_free(wanted):
            raise EmbeddedError(
                f"Port {wanted} of {HOST} cannot be had: another program uses it, or it is reserved. Choose "
                "another with --port, or leave --port out to take the next free one."
            )
        return wanted
    for port in range(FIRST_PORT, FIRST_PORT + PORTS_TRIED):
        if is_free(port):
            return port
    raise EmbeddedError(
        f"The ports {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1} of {HOST} are all used. Choose another "
        "with --port."
    )


def answers(port: int) -> bool:
    """Whether the web server answers at all; what it says of its health is for the health page."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
