from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest

from webapp.embedded import postgres, processes
from webapp.embedded.errors import EmbeddedError
from webapp.embedded.folder import DataFolder, own_folder
from webapp.embedded.postgres import PostgresServer
from webapp.embedded.processes import Child, Identity

pytestmark = pytest.mark.process

REPOSITORY = Path(__file__).resolve().parents[2]
is_root = os.geteuid() == 0


@pytest.fixture(scope="module")
def template() -> Iterator[DataFolder]:
    """A database made once; most tests start on a copy of it, which takes 50 ms instead of 600."""
    with temporary_folder() as folder:
        PostgresServer(folder).prepare()
        yield folder


@pytest.fixture
def folder(template: DataFolder) -> Iterator[DataFolder]:
    with temporary_folder() as folder:
        subprocess.run(["cp", "-a", template.postgres, folder.postgres], check=True)
        yield folder


@contextmanager
def temporary_folder(below: str = "") -> Iterator[DataFolder]:
    # Not pytest's tmp_path: that is closed to other users, and so to a server that is not root.
    above = Path(tempfile.mkdtemp(prefix="arborist-pg-"))
    above.chmod(0o711)
    folder = DataFolder.at(above / below if below else above)
    folder.prepare()
    try:
        yield folder
    finally:
        folder.remove()
        shutil.rmtree(above, ignore_errors=True)


@contextmanager
def running(server: PostgresServer) -> Iterator[Child]:
    server.prepare()
    child = server.start("test")
    try:
        assert processes.wait_until(lambda: server.is_ready() or not child.is_alive(), 30.0)
        assert child.is_alive(), server.explain()
        yield child
    finally:
        server.stop(child)
        assert server.backends() == []


def query(folder: DataFolder, text: LiteralString, *values: object) -> object:
    with psycopg.connect(folder.database_url, autocommit=True) as connection:
        cursor = connection.execute(text, values or None)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def test_a_fresh_database_speaks_utf8_listens_on_no_port_and_syncs_to_disk(folder: DataFolder) -> None:
    with running(PostgresServer(folder)):
        assert query(folder, "SHOW server_encoding") == "UTF8"
        assert query(folder, "SHOW listen_addresses") == ""
        assert query(folder, "SHOW fsync") == "on"
        assert query(folder, "SHOW data_checksums") == "on"
        assert query(folder, "SELECT current_user") == "arborist"
        assert query(folder, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        assert int(str(query(folder, "SHOW server_version_num"))) >= postgres.OLDEST_MAJOR * 10000


def test_rows_outlive_an_orderly_restart(folder: DataFolder) -> None:
    with running(PostgresServer(folder)):
        query(folder, "CREATE TABLE kept AS SELECT 'ä' AS letter")
    with running(PostgresServer(folder)):
        assert query(folder, "SELECT letter FROM kept") == "ä"


def test_no_committed_row_is_lost_to_kill_9(folder: DataFolder) -> None:
    server = PostgresServer(folder)
    with running(server) as child:
        query(folder, "CREATE TABLE counted (number int)")
        for number in range(20):
            query(folder, "INSERT INTO counted VALUES (%s)", number)
        child.signal(signal.SIGKILL)
        assert child.wait(5.0)
        child.end()
        assert (folder.postgres / "postmaster.pid").exists()
        with running(PostgresServer(folder)):
            assert query(folder, "SELECT count(*) FROM counted") == 20


def test_a_pid_file_that_names_a_stranger_is_no_obstacle(folder: DataFolder) -> None:
    # After `kill -9` and a reboot the pid may be any program's. Here it is a sleep that the server's user
    # owns, which PostgreSQL by itself takes for a running server.
    server = PostgresServer(folder)
    command = processes.guarded(
        ["/bin/sleep", "60"], death_signal=signal.SIGKILL, account=folder.database_account
    )
    with subprocess.Popen(command) as stranger:
        pid_file = folder.postgres / "postmaster.pid"
        socket_lock = folder.postgres_socket_folder / ".s.PGSQL.5432.lock"
        for file in (pid_file, socket_lock):
            file.write_text(f"{stranger.pid}\n{folder.postgres}\n1700000000\n5432\n{folder.postgres}\n\n\n")
            if folder.database_account is not None:
                os.chown(file, folder.database_account.uid, folder.database_account.gid)
        with running(server):
            assert query(folder, "SELECT 1") == 1
        assert stranger.poll() is None, "the stranger was ended"
        stranger.kill()


def test_a_server_left_by_an_earlier_supervisor_is_ended_and_replaced(folder: DataFolder) -> None:
    first, second = PostgresServer(folder), PostgresServer(folder)
    with running(first) as left:
        query(folder, "CREATE TABLE kept AS SELECT 1 AS number")
        with running(second) as new:
            assert not left.is_alive()
            assert new.is_alive()
            assert query(folder, "SELECT number FROM kept") == 1


def test_backends_without_a_postmaster_are_ended(folder: DataFolder) -> None:
    with running(PostgresServer(folder)) as child:
        busy = psycopg.connect(folder.database_url)
        backend = busy.info.backend_pid
        os.kill(backend, signal.SIGSTOP)  # a stopped process cannot notice that its postmaster is gone
        os.kill(child.identity.pid, signal.SIGKILL)
        assert child.wait(5.0)
        assert Identity.of(backend) is not None
        server = PostgresServer(folder)
        with running(server):
            assert Identity.of(backend) is None
            assert query(folder, "SELECT 1") == 1
        busy.close()


def test_the_server_stops_cleanly_when_its_supervisor_is_killed(folder: DataFolder) -> None:
    supervisor = textwrap.dedent(
        f"""
        import time
        from webapp.embedded.folder import DataFolder
        from webapp.embedded.postgres import PostgresServer
        server = PostgresServer(DataFolder.at({str(folder.root)!r}))
        server.prepare()
        server.start("test")
        while not server.is_ready():
            time.sleep(0.02)
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    server = PostgresServer(folder)
    with subprocess.Popen(
        [sys.executable, "-c", supervisor], stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as popen:
        assert popen.stdout is not None
        assert popen.stdout.readline() == b"ready\n"
        assert len(server.backends()) > 1
        popen.kill()
        popen.wait()
        assert processes.wait_until(lambda: server.backends() == [], 15.0)
    assert "database system is shut down" in server.log.read_text()
    assert not (folder.postgres / "postmaster.pid").exists()


def test_a_path_too_long_for_a_socket_works_all_the_same() -> None:
    with temporary_folder(below="d" * 120) as folder:
        with running(PostgresServer(folder)):
            assert query(folder, "SELECT 1") == 1
            assert folder.postgres.is_relative_to(folder.root)
            assert not folder.postgres_socket_folder.is_relative_to(folder.root)
        side = folder.side
        assert side.exists()
    assert not side.exists()


@pytest.mark.skipif(not is_root, reason="only root runs the server as another user")
def test_as_root_a_folder_closed_to_the_servers_user_moves_the_database_aside(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    folder = DataFolder.at(closed / "data")
    folder.prepare()
    try:
        with running(PostgresServer(folder)):
            assert folder.postgres.is_relative_to(folder.side)
            assert query(folder, "SELECT 1") == 1
            assert (folder.side / "belongs-to").read_text() == f"{folder.root}\n"
    finally:
        folder.remove()


@pytest.mark.skipif(not is_root, reason="only root runs the server as another user")
def test_as_root_programs_closed_to_the_servers_user_are_copied(
    tmp_path: Path, folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The libraries that the programs need lie beside the wheel's package, so the whole layout is copied.
    best = next(postgres.installed()).bin.parent
    closed = own_folder(tmp_path / "closed", mode=0o700)
    package = closed / best.parent.name
    shutil.copytree(best, package / best.name)
    libraries = best.parent.with_name(f"{best.parent.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, closed / libraries.name)
    monkeypatch.setenv("ARBORIST_POSTGRES_BIN", str(package / best.name / "bin"))
    server = PostgresServer(folder)
    with running(server) as child:
        assert query(folder, "SELECT 1") == 1
        program = Path(f"/proc/{child.identity.pid}/exe").readlink()
        assert program.is_relative_to(folder.side / "programs")


def test_another_user_of_the_machine_is_not_let_in(folder: DataFolder) -> None:
    if not is_root:
        pytest.skip("only root can try as another user")
    # The folder's mode alone keeps others out; open it, to see that the server itself asks who is there.
    command = processes.guarded(
        ["/bin/sh", "-c", 'exec "$0" -h "$1" -U arborist -c "SELECT 1" arborist', "", ""],
        death_signal=signal.SIGKILL,
        account=folder.database_account,
    )
    psql = next(p for p in (programs.bin / "psql" for programs in postgres.installed()) if p.exists())
    command[-2:] = [str(psql), str(folder.postgres_socket_folder)]
    with running(PostgresServer(folder)):
        refused = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert refused.returncode == 2
    assert "Peer authentication failed" in refused.stderr


def test_a_database_of_another_version_is_named_and_left_alone(folder: DataFolder) -> None:
    version = folder.postgres / "PG_VERSION"
    version.write_text("14\n")
    with pytest.raises(EmbeddedError, match=r"was made by PostgreSQL 14, and this machine has .*Install"):
        PostgresServer(folder).prepare()
    assert version.read_text() == "14\n"


def test_a_damaged_version_file_is_named(folder: DataFolder) -> None:
    (folder.postgres / "PG_VERSION").write_text("\x00garbage")
    with pytest.raises(EmbeddedError, match="damaged"):
        PostgresServer(folder).prepare()


def test_too_little_room_is_said_before_anything_is_made() -> None:
    with temporary_folder() as folder:
        with pytest.raises(EmbeddedError, match=r"MB free; the database needs .* Make room"):
            PostgresServer(folder, free_bytes_needed=1 << 62).prepare()
        assert not folder.postgres.exists()


def test_a_disk_that_fills_while_the_database_is_made_is_said_in_one_sentence() -> None:
    with temporary_folder() as folder:
        server = PostgresServer(folder)
        # A file-size limit stands for the full disk: the same write fails, with the same consequence.
        script = textwrap.dedent(
            f"""
            import resource, signal
            from webapp.embedded.errors import EmbeddedError
            from webapp.embedded.folder import DataFolder
            from webapp.embedded.postgres import PostgresServer
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                PostgresServer(DataFolder.at({str(folder.root)!r})).prepare()
            except EmbeddedError as error:
                print(error)
            """
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True
        )
        assert "is full, so the database cannot run" in done.stdout
        assert not folder.postgres.exists(), "half a database was left"
        with running(server):
            assert query(folder, "SELECT 1") == 1


def test_a_bin_folder_without_a_server_is_refused(
    tmp_path: Path, folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARBORIST_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(EmbeddedError, match=r"ARBORIST_POSTGRES_BIN is .*Name a folder that does"):
        PostgresServer(folder).prepare()


def test_an_old_server_is_not_taken(tmp_path: Path) -> None:
    for name, output in (("postgres", "postgres (PostgreSQL) 14.9"), ("initdb", "")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{output}'\n")
        program.chmod(0o755)
    assert postgres.probe(tmp_path) is None
    (tmp_path / "postgres").write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 15.1 (Debian)'\n")
    assert postgres.probe(tmp_path) == postgres.Programs(tmp_path, 15)


NORMAL_USER_SCRIPT = """
import os, sys
from webapp.embedded import processes
from webapp.embedded.folder import DataFolder
from webapp.embedded.postgres import PostgresServer
folder = DataFolder.at(sys.argv[1])
folder.prepare()
server = PostgresServer(folder)
server.prepare()
child = server.start("test")
assert processes.wait_until(server.is_ready, 30.0), server.explain()
print(os.geteuid(), folder.postgres.stat().st_uid, len(server.backends()) > 0)
server.stop(child)
assert server.backends() == []
"""


@pytest.mark.skipif(not is_root, reason="every other test here is one as a normal user")
def test_a_normal_user_gets_a_database_too(tmp_path: Path) -> None:
    nobody = 65534
    python = interpreter_for(nobody)
    if python is None:
        pytest.skip("no Python of this version that user nobody can start")
    home = Path(tempfile.mkdtemp(prefix="arborist-nobody-"))
    try:
        os.chown(home, nobody, nobody)
        done = subprocess.run(
            [*python, "-c", NORMAL_USER_SCRIPT, str(home / "data")],
            capture_output=True,
            text=True,
            check=False,
            user=nobody,
            group=nobody,
            extra_groups=[],
            cwd="/",
            env={"PATH": os.environ["PATH"], "PYTHONPATH": python_path()},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [str(nobody), str(nobody), "True"]
    finally:
        shutil.rmtree(home)


def python_path() -> str:
    packages = Path(psycopg.__file__).parents[1]
    return f"{REPOSITORY}:{packages}"


def interpreter_for(uid: int) -> list[str] | None:
    """An interpreter of our version that this user may start and that finds our packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        try:
            tried = subprocess.run(
                [python, "-c", "import psycopg, webapp.embedded.postgres"],
                capture_output=True,
                check=False,
                user=uid,
                group=uid,
                extra_groups=[],
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "PYTHONPATH": python_path()},
            )
        except OSError:
            continue
        if tried.returncode == 0:
            return [python]
    return None


def test_a_link_in_the_data_folder_is_replaced_and_never_written_through(folder: DataFolder) -> None:
    server = PostgresServer(folder)
    server.prepare()
    target = folder.root / "precious"
    target.write_text("mine\n", encoding="utf-8")
    target.chmod(0o600)
    before = target.stat()
    rules = server.data / "pg_hba.conf"
    rules.unlink()
    rules.symlink_to(target)
    server.prepare()
    assert target.read_text(encoding="utf-8") == "mine\n"
    assert target.stat().st_uid == before.st_uid
    assert target.stat().st_mode == before.st_mode
    assert not rules.is_symlink()
    assert rules.read_text(encoding="utf-8") == "local all all peer map=arborist\n"
