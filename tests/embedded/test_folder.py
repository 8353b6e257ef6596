from __future__ import annotations

import os
import stat
from pathlib import Path

import psycopg.conninfo
import pytest

from webapp.embedded.errors import EmbeddedError
from webapp.embedded.folder import (
    POSTGRES_SOCKET,
    SOCKET_PATH_BYTES_MAX,
    Account,
    DataFolder,
    fits_a_socket,
    own_folder,
    reachable,
)

SOMEBODY = Account(uid=54321, gid=54321, name="somebody")


def test_a_socket_path_of_107_bytes_fits_and_one_of_108_does_not() -> None:
    # sockaddr_un.sun_path holds 108 bytes, the last of them NUL.
    assert fits_a_socket(Path("/" + "a" * (SOCKET_PATH_BYTES_MAX - 1)))
    assert not fits_a_socket(Path("/" + "a" * SOCKET_PATH_BYTES_MAX))
    # Bytes count, not letters: each ä is two.
    assert not fits_a_socket(Path("/" + "ä" * 54))


def test_sockets_of_a_deep_folder_move_aside_and_the_database_stays(tmp_path: Path) -> None:
    deep = DataFolder.at(Path("/srv") / ("d" * 120))
    assert deep.postgres_socket_folder.parent == deep.side
    assert deep.broker_socket.is_relative_to(deep.side)
    assert fits_a_socket(deep.postgres_socket_folder / POSTGRES_SOCKET)
    assert fits_a_socket(deep.broker_socket)
    assert deep.postgres == deep.root / "postgres"


def test_two_folders_never_share_what_stands_aside() -> None:
    assert DataFolder.at("/srv/a").side != DataFolder.at("/srv/b").side


def test_the_database_url_survives_odd_characters_in_the_path() -> None:
    folder = DataFolder.at("/srv/a b/50% &c=d")
    parsed = psycopg.conninfo.conninfo_to_dict(folder.database_url)
    assert parsed["host"] == "/srv/a b/50% &c=d/postgres"
    assert parsed["dbname"] == parsed["user"] == "arborist"


@pytest.mark.parametrize(
    ("mode", "passes"),
    [(0o700, False), (0o711, True), (0o710, False), (0o755, True), (0o766, False)],
)
def test_an_account_reaches_a_folder_if_every_folder_above_lets_it_pass(
    tmp_path: Path, mode: int, passes: bool
) -> None:
    # Not in tmp_path, which itself lies below folders that are closed to others.
    gate = Path("/var/tmp") / f"arborist-test-{os.getpid()}"
    (gate / "inside").mkdir(parents=True)
    try:
        gate.chmod(mode)
        assert reachable(gate / "inside" / "not-made-yet", SOMEBODY) is passes
    finally:
        gate.chmod(0o700)
        (gate / "inside").rmdir()
        gate.rmdir()


def test_a_private_folder_that_is_another_users_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, SOMEBODY.uid, SOMEBODY.gid)
    with pytest.raises(EmbeddedError, match=r"belongs to another user \(id 54321\)"):
        own_folder(theirs, mode=0o700)


def test_a_link_in_place_of_a_private_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(EmbeddedError, match="private folder"):
        own_folder(tmp_path / "link", mode=0o700)


def test_the_secret_key_is_made_once_and_readable_by_us_alone(tmp_path: Path) -> None:
    folder = DataFolder.at(tmp_path)
    assert folder.read_secret_key() is None
    key = folder.make_secret_key()
    assert len(key) >= 50
    assert folder.make_secret_key() == folder.read_secret_key() == key
    assert stat.S_IMODE(folder.secret_key.stat().st_mode) == 0o600
