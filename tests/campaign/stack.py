"""The real system in a temporary folder: PostgreSQL, broker, web, sweeper, two run workers, each a process
that the campaign may kill, freeze and start again, and a proxy on every way to the database and to the web.

Everything is started as the product's own launcher starts it. Start processes from the thread that stays.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from urllib.parse import quote

from tests.campaign.history import History
from tests.campaign.proxy import Loop, Proxy
from webapp.embedded import processes
from webapp.embedded.broker import BrokerServer
from webapp.embedded.folder import DATABASE, POSTGRES_SOCKET, ROLE, Account, DataFolder
from webapp.embedded.postgres import PostgresServer
from webapp.embedded.processes import Child, Identity
from webapp.embedded.stack import Program, Server, Stack, answers
from webapp.embedded.terminal import Terminal

WORKERS = ("worker1", "worker2")
# What the campaign's time goes into; the product's own limits (lease, back-off, patience) stay as they are.
DATABASE_SETTINGS = {"max_connections": "60", "shared_buffers": "32MB", "max_wal_size": "96MB"}
START_SECONDS = 90.0
RUNS_MB = 256  # of checkpoints and spools, where that is a disk of its own
DATABASE_MB = 400
WAL_MB = 160
VIEWED = ("front", "slow", "frozen")  # ways to the web
CLOCKED = "worker2"  # whose clock can be set
NICE = 5
PREFIX = "arborist-campaign-"  # of the folder
NOTE = "campaign.pid"  # in it, as long as the campaign runs: its pid and start


@dataclass
class Part:
    """A process of the system. `held`: down on purpose, so that nobody starts it again. `late_at`: when one
    that is starting has taken too long; 0 if none is.
    """

    name: str
    server: Server
    child: Child | None = None
    held: bool = False
    is_leaving: bool = False  # it was sent the signal that ends it
    died_at: float = 0.0
    late_at: float = 0.0

    @property
    def pid(self) -> int:
        return self.child.popen.pid if self.child is not None else 0

    def is_alive(self) -> bool:
        return self.child is not None and self.child.is_alive()


class System:
    """Use as a context manager."""

    def __init__(self, history_name: str = "history.jsonl") -> None:
        self.folder = DataFolder.at(tempfile.mkdtemp(prefix=PREFIX))
        self.folder.prepare()
        self.note = self.folder.root / NOTE
        self.note.write_text(" ".join(map(str, astuple(Identity.of(os.getpid()) or Identity(0, 0)))))
        self.history = History(self.folder.root / history_name)
        self.loop = Loop()
        self.parts: dict[str, Part] = {}
        self.proxies: dict[str, Proxy] = {}
        self.mounts: list[Path] = []
        self.extra_env: dict[str, dict[str, str]] = {name: {} for name in WORKERS}
        self.temporary = self.folder.root / "tmp"
        self.temporary.mkdir(mode=0o1777)
        self.temporary.chmod(0o1777)
        self.is_ending = False
        self.clock: Path | None = None
        self.seams: dict[str, Path] = {}  # by worker; what is written there, `seams` obeys
        launcher = Stack(self.folder, Terminal(io.StringIO()))
        launcher.secret_key = self.folder.make_secret_key()
        self.launcher = launcher
        self.env: dict[str, str] = {}

    # Starting and stopping

    def __enter__(self) -> System:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.is_ending = True
        for part in reversed(self.parts.values()):
            if part.child is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(part.pid, signal.SIGCONT)
                part.server.stop(part.child, hurry=lambda: False)
        self.left = processes.end_marked(self.folder.digest)
        self.loop.end()
        self.history.close()
        unmount_below(self.folder.root)
        self.note.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder; only when nobody wants to look at it."""
        self.folder.remove()

    def _start(self) -> None:
        self.set_environment()
        database = PostgresServer(self.folder, settings=DATABASE_SETTINGS)
        database.prepare()
        account = self.folder.database_account
        if account is not None:
            self.mount(self.folder.postgres, DATABASE_MB, account)
            self.mount(self.folder.postgres / "pg_wal", WAL_MB, account)
        self.parts["database"] = Part("database", database)
        self.up("database")
        self._proxy_database()
        self._migrate()
        self.parts["broker"] = Part("broker", BrokerServer(self.folder))
        self.up("broker")
        (self.folder.root / "runs").mkdir(mode=0o700)
        self.mount(self.folder.root / "runs", RUNS_MB)
        self._prepare_clock()
        self._prepare_seams()
        self.web_port = free_port()
        for name in VIEWED:
            self.proxies[name] = Proxy(self.loop, 0, self.web_port)
        self.parts["web"] = Part("web", self.launcher._web(self.web_port, self.environment("web")))
        self.parts["sweeper"] = Part("sweeper", self.launcher._sweeper(self.environment("sweeper")))
        for name in WORKERS:
            self.parts[name] = Part(name, self._worker(name))
        for name in ("web", "sweeper", *WORKERS):
            self.launch(name)
        for name in ("web", "sweeper", *WORKERS):
            self._wait_ready(name)

    def set_environment(self) -> None:
        """For Django in this process, too: it asks the database directly, never through a proxy."""
        for name in ("ARBORIST_DATABASE_URL", "ARBORIST_BROKER_URL"):
            os.environ.pop(name, None)
        os.environ["ARBORIST_DATA_DIR"] = str(self.folder.root)
        os.environ["ARBORIST_SECRET_KEY"] = self.launcher.secret_key
        self.env = self.launcher._environment() | {"TMPDIR": str(self.temporary)}

    def environment(self, name: str) -> dict[str, str]:
        """A part's: its own way to the database."""
        folder = self.folder.root / "proxy" / name
        url = f"postgresql://{ROLE}@/{DATABASE}?host={quote(str(folder), safe='')}"
        return self.env | {"ARBORIST_DATABASE_URL": url} | self.extra_env.get(name, {})

    def _proxy_database(self) -> None:
        there = self.folder.postgres_socket_folder / POSTGRES_SOCKET
        for name in ("web", "sweeper", *WORKERS):
            folder = self.folder.root / "proxy" / name
            folder.mkdir(mode=0o700, parents=True)
            self.proxies[name] = Proxy(self.loop, folder / POSTGRES_SOCKET, there)

    def _migrate(self) -> None:
        self.launcher._run_once("migrate", ["manage.py", "migrate", "--noinput"], self.env)

    def _prepare_clock(self) -> None:
        """One worker's time of day is what we say, where a C compiler can be had."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        library = self.folder.root / "clock.so"
        source = Path(__file__).with_name("clock.c")
        argv = [compiler or "cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        if compiler is None or subprocess.run(argv, check=False, capture_output=True).returncode:
            return
        self.clock = self.folder.root / "clock"
        self.set_clock(0)
        self.extra_env[CLOCKED] |= {"LD_PRELOAD": str(library), "ARBORIST_CLOCK": str(self.clock)}

    def _prepare_seams(self) -> None:
        """Trainers stand still where we say. They get little of their worker's environment, but this."""
        for name in WORKERS:
            home = self.folder.root / f"seams-{name}"
            home.mkdir()
            shutil.copy(Path(__file__).with_name("seams.py"), home / "sitecustomize.py")
            self.seams[name] = home / "seam"
            self.extra_env[name] |= {"PYTHONPATH": str(home)}

    def _worker(self, name: str) -> Program:
        program = self.launcher._celery(name, "cpu", 1, self.environment(name))
        program.argv = [shutil.which("nice") or "/usr/bin/nice", "-n", str(NICE), *program.argv]
        return program

    def up(self, name: str) -> None:
        """Start a part and wait until it answers."""
        self.launch(name)
        self._wait_ready(name)

    def launch(self, name: str) -> None:
        """Start a part if it does not run; `keep_up` sees it answer."""
        part = self.parts[name]
        if part.is_alive() and not part.is_leaving:
            return
        if part.child is not None:
            part.child.end()
        if name in WORKERS:
            part.server = self._worker(name)
        part.held = part.is_leaving = False
        part.child = part.server.start(self.folder.digest)
        part.late_at = time.monotonic() + START_SECONDS

    def _wait_ready(self, name: str) -> None:
        """Raises RuntimeError when it does not come."""
        while not self.is_up(name):
            time.sleep(0.05)

    def is_up(self, name: str) -> bool:
        """Whether it has answered since it was started. Raises RuntimeError if it ends or takes too long."""
        part = self.parts[name]
        if not part.late_at:
            return part.is_alive()
        if not part.is_alive():
            raise RuntimeError(f"{name} ended while it started: {part.server.explain()}")
        if not part.server.is_ready():
            if time.monotonic() > part.late_at:
                raise RuntimeError(f"{name} did not start: {part.server.explain()}")
            return False
        part.late_at = 0.0
        if part.died_at:
            part.died_at = 0.0
            self.history.add("away", "ok", what=_kind(name))
        return True

    def down(self, name: str, number: int = signal.SIGKILL) -> None:
        """End a part by a signal and leave it down until `up`."""
        part = self.parts[name]
        part.held = part.is_leaving = True
        part.late_at = 0.0
        self.note_away(name)
        if part.child is not None:
            part.child.signal(number)

    def note_away(self, name: str) -> None:
        part = self.parts[name]
        if not part.died_at:
            part.died_at = self.history.now() or 0.001
            self.history.add("away", "invoke", what=_kind(name))

    def note_back(self, name: str) -> None:
        """It works again, without a start."""
        part = self.parts[name]
        if part.died_at and part.is_alive() and not part.late_at:
            part.died_at = 0.0
            self.history.add("away", "ok", what=_kind(name))

    def cut_off(self, worker: str, *, is_told: bool = False) -> None:
        """No way from this worker to the database: what it sends is swallowed, or it is told."""
        self.history.add("link", "invoke", worker=worker)
        if is_told:
            self.proxies[worker].cut()
        else:
            self.proxies[worker].is_stalled = True

    def reconnect(self, worker: str) -> None:
        self.proxies[worker].mend()
        self.history.add("link", "ok", worker=worker)

    def begin_replacing_web(self) -> Part:
        """Start another web process beside the old one, which is returned."""
        old = self.parts["web"]
        self.next_port = free_port()
        self.parts["web"] = Part("web", self.launcher._web(self.next_port, self.environment("web")))
        self.launch("web")
        return old

    def send_to_new_web(self, old: Part) -> None:
        """The new one answers: everybody goes there, and the old one is told to leave."""
        self.web_port = self.next_port
        for name in VIEWED:
            self.proxies[name].there = self.web_port
        if old.child is not None:
            old.child.signal(signal.SIGTERM)

    def set_clock(self, jump_seconds: int) -> None:
        """What the clock of one worker is wrong by."""
        assert self.clock is not None
        fresh = self.clock.with_suffix(".new")
        fresh.write_text(f"{jump_seconds}\n")
        fresh.rename(self.clock)

    def keep_up(self) -> None:
        """What the launcher does: start again what ended without being asked to, and see it answer. A part
        that ends while it starts was killed by a fault, or the database was away just then.
        """
        for name, part in self.parts.items():
            if part.held:
                continue
            if not part.is_alive():
                self.note_away(name)
                status = part.child.end() if part.child is not None else None
                self.history.add("note", text=f"{name} ended by itself ({status})")
                self.launch(name)
            else:
                self.is_up(name)

    # Looking

    def pool_child(self, name: str) -> Identity | None:
        """The process of a worker that supervises its run."""
        try:
            children = Path(f"/proc/{self.parts[name].pid}/task/{self.parts[name].pid}/children").read_text()
        except OSError:
            return None
        for pid in children.split():
            if (identity := Identity.of(int(pid))) is not None:
                return identity
        return None

    def url(self, proxy: str = "front") -> str:
        return f"http://127.0.0.1:{self.proxies[proxy].port}"

    # Disks

    def mount(self, path: Path, megabytes: int, owner: Account | None = None) -> bool:
        """A small disk at `path`, if we may. What was there is put into it."""
        if os.geteuid() != 0:
            return False
        aside = path.with_name(f"{path.name}.aside-{secrets.token_hex(4)}")
        path.rename(aside)
        path.mkdir(mode=0o700)
        options = f"size={megabytes}m,mode=700" + (
            "" if owner is None else f",uid={owner.uid},gid={owner.gid}"
        )
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "arborist-campaign", path],
            check=False,
            capture_output=True,
        )
        if mounted.returncode:
            path.rmdir()
            aside.rename(path)
            return False
        self.mounts.append(path)
        subprocess.run(["cp", "-a", f"{aside}/.", path], check=True)
        shutil.rmtree(aside)
        return True


def unmount_below(folder: Path) -> None:
    """The small disks of a campaign, the innermost first."""
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in sorted((p for p in places if Path(p).is_relative_to(folder)), key=len, reverse=True):
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def clear_killed() -> list[Path]:
    """Take away what campaigns left that could not do it themselves. Returns their folders."""
    found = []
    for note in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{NOTE}"):
        try:
            is_alive = Identity(*map(int, note.read_text().split())).is_alive()
        except (OSError, ValueError, TypeError):
            continue
        if not is_alive:
            folder = DataFolder.at(note.parent)
            processes.end_marked(folder.digest)
            unmount_below(folder.root)
            folder.remove()
            found.append(folder.root)
    return found


def _kind(name: str) -> str:
    return "worker" if name in WORKERS else name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def environment_kept() -> Iterator[None]:
    """Puts the environment back as it was."""
    before: Mapping[str, str] = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


__all__ = ["WORKERS", "Part", "System", "answers", "environment_kept", "free_port", "time"]
