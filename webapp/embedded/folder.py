"""Where the local stack keeps things. All follows from one path, so that the settings, and with them
`manage.py shell`, find a stack that is running without asking anyone. Nothing is started here.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import shutil
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from webapp.embedded.errors import EmbeddedError

# sockaddr_un holds 108 bytes with the closing NUL.
SOCKET_PATH_BYTES_MAX = 107
POSTGRES_PORT = 5432
POSTGRES_SOCKET = f".s.PGSQL.{POSTGRES_PORT}"
DATABASE = "arborist"
ROLE = "arborist"


@dataclass(frozen=True, slots=True)
class Account:
    """An operating-system user that a program is run as."""

    uid: int
    gid: int
    name: str


@dataclass(frozen=True)
class DataFolder:
    """The data folder and the few places outside it that its path may force on us.

    Two things can be wrong with a path. It can be too long for a unix socket; and when root starts the stack,
    PostgreSQL, which refuses to run as root, runs as another user who may not be able to reach it (a checkout
    in /root). What then cannot live in the folder lives in `side`, a folder of our own under /var/tmp whose
    name follows from the path.
    """

    root: Path

    @classmethod
    def at(cls, path: str | Path) -> DataFolder:
        return cls(Path(path).expanduser().resolve())

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]

    @property
    def side(self) -> Path:
        return Path("/var/tmp") / f"arborist-{os.geteuid()}-{self.digest}"  # noqa: S108 (checked in own_folder)

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def lock(self) -> Path:
        return self.root / "run" / "supervisor.lock"

    @property
    def processes(self) -> Path:
        return self.root / "run" / "processes.json"

    @property
    def secret_key(self) -> Path:
        return self.root / "secret_key"

    @cached_property
    def database_account(self) -> Account | None:
        """Who PostgreSQL runs as when we are root: the owner of the data that is there, else `postgres`, else
        `nobody`. None when we are not root: then it runs as ourselves.
        """
        if os.geteuid() != 0:
            return None
        for existing in (self.root / "postgres", self.side / "postgres"):
            try:
                uid = existing.stat().st_uid
            except OSError:
                continue
            if uid != 0:
                try:
                    entry = pwd.getpwuid(uid)
                except KeyError:
                    return Account(uid, existing.stat().st_gid, str(uid))
                return Account(entry.pw_uid, entry.pw_gid, entry.pw_name)
        for name in ("postgres", "nobody"):
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return Account(entry.pw_uid, entry.pw_gid, entry.pw_name)
        raise EmbeddedError(
            "PostgreSQL refuses to run as root, and this machine has neither a user 'postgres' nor "
            "'nobody' to run it as. Make one of them, start as a normal user, or set ARBORIST_DATABASE_URL."
        )

    @cached_property
    def postgres(self) -> Path:
        """PGDATA."""
        account = self.database_account
        # The folder itself is not asked: `prepare` opens it to that account.
        if account is not None and not reachable(self.root.parent, account):
            return self.side / "postgres"
        return self.root / "postgres"

    @property
    def postgres_socket_folder(self) -> Path:
        # PGDATA itself is open to its owner alone, which is what a socket needs.
        if fits_a_socket(self.postgres / POSTGRES_SOCKET):
            return self.postgres
        return self.side / "database"

    @property
    def broker_socket(self) -> Path:
        inside = self.root / "broker" / "broker.sock"
        return inside if fits_a_socket(inside) else self.side / "broker" / "broker.sock"

    def prepare(self) -> None:
        """Make the folders, private to us; if PostgreSQL runs as another user, its group may pass."""
        account = self.database_account
        own_folder(self.root, mode=0o700 if account is None else 0o710, group=account)
        for name in ("run", "logs", "broker"):
            own_folder(self.root / name, mode=0o700)
        if (
            self.root not in self.postgres_socket_folder.parents
            or self.root not in self.broker_socket.parents
        ):
            own_folder(self.side, mode=0o700 if account is None else 0o710, group=account)
            (self.side / "belongs-to").write_text(f"{self.root}\n", encoding="utf-8")
        own_folder(self.broker_socket.parent, mode=0o700)
        if self.postgres_socket_folder != self.postgres:
            own_folder(self.postgres_socket_folder, mode=0o700, owner=account)

    def remove(self) -> None:
        """Delete the data folder and what stands beside it. For temporary stacks."""
        for path in (self.root, self.side):
            shutil.rmtree(path, ignore_errors=True)

    def read_secret_key(self) -> str | None:
        try:
            return self.secret_key.read_text(encoding="ascii").strip() or None
        except FileNotFoundError:
            return None

    def make_secret_key(self) -> str:
        """The site's key, made once and readable by us alone."""
        if (key := self.read_secret_key()) is not None:
            return key
        key = secrets.token_urlsafe(50)
        temporary = self.secret_key.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(key + "\n")
        temporary.rename(self.secret_key)
        return key

    @property
    def database_url(self) -> str:
        return f"postgresql://{ROLE}@/{DATABASE}?host={quote(str(self.postgres_socket_folder), safe='')}"

    @property
    def broker_url(self) -> str:
        return f"redis+socket://{quote(str(self.broker_socket))}"


def fits_a_socket(path: Path) -> bool:
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX


def reachable(path: Path, account: Account) -> bool:
    """Whether `account` may pass through every folder down to `path`, by the permission bits.

    Folders that do not exist yet are ours to make and count as open.
    """
    for folder in (path, *path.parents):
        try:
            status = folder.stat()
        except FileNotFoundError:
            continue
        except OSError:
            return False
        if status.st_uid == account.uid:
            bit = stat.S_IXUSR
        elif status.st_gid == account.gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not status.st_mode & bit:
            return False
    return True


def own_folder(path: Path, *, mode: int, owner: Account | None = None, group: Account | None = None) -> Path:
    """Make `path`, or make sure that it is a folder of ours (or of `owner`) that nobody else can write to."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    uid = os.geteuid() if owner is None else owner.uid
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (uid, os.geteuid()):
        raise EmbeddedError(
            f"{path} is needed as a private folder, but it belongs to another user (id {status.st_uid}). "
            "Remove it, or choose another data folder with ARBORIST_DATA_DIR."
        )
    gid = owner.gid if owner is not None else group.gid if group is not None else status.st_gid
    if (status.st_uid, status.st_gid) != (uid, gid):
        os.chown(path, uid, gid)
    if stat.S_IMODE(status.st_mode) != mode:
        path.chmod(mode)
    return path
