"""What stands before Django: body limits, origins, and the refusal to serve carelessly."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

import webapp.body_limit
from webapp.body_limit import BodyLimit
from webapp.checks import check_data_folder, check_database, is_loopback, public_address_errors
from webapp.embedded.folder import DataFolder
from webapp.embedded.stack import Stack
from webapp.embedded.terminal import Terminal
from webapp.limits import MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_UPLOAD_BYTES, UPLOADS_AT_ONCE
from webapp.origin import OwnOrigin, is_own_origin

EVERYWHERE = "0.0.0.0"  # noqa: S104 (nothing is bound)
REPOSITORY = Path(__file__).resolve().parents[2]


# ------------------------------------------------------------------------------------------------ bodies


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers with how many bytes came."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


async def nobody(_scope: dict[str, Any]) -> None:
    """Whose upload it is."""


async def call(
    chunks: Iterator[bytes], headers: list[tuple[bytes, bytes]] | None = None
) -> tuple[int, bytes, int]:
    """Status, body, and how many chunks were taken from the client."""
    sent: list[dict[str, Any]] = []
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        try:
            chunk = next(chunks)
        except StopIteration:
            return {"type": "http.request", "body": b"", "more_body": False}
        taken += 1
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await BodyLimit(echo, nobody)({"type": "http", "headers": headers or []}, receive, send)
    return sent[0]["status"], sent[1]["body"], taken


async def test_bodies_up_to_the_limit_arrive_whole() -> None:
    for size in (0, 1, MAX_BODY_BYTES - 1, MAX_BODY_BYTES):
        status, body, _ = await call(iter([b"a" * size]))
        assert (status, body) == (200, str(size).encode())


async def test_one_byte_more_is_413() -> None:
    status, body, _ = await call(iter([b"a" * MAX_BODY_BYTES, b"a"]))
    assert status == 413
    assert b"larger than 1,000,000 bytes" in body


async def test_an_endless_chunked_body_is_refused_early() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"a" * 10_000

    status, _, taken = await call(endless())
    assert (status, taken) == (413, 101)


@pytest.mark.parametrize("length", [b"1000001", b"50000000", b"-1", b"x", b"9" * 40])
async def test_an_announced_length_over_the_limit_is_refused_unread(length: bytes) -> None:
    status, _, taken = await call(iter([b"a"]), [(b"content-length", length)])
    assert (status, taken) == (413, 0)


async def test_a_length_that_lies_changes_nothing() -> None:
    status, _, _ = await call(iter([b"a" * 600_000, b"a" * 600_000]), [(b"content-length", b"5")])
    assert status == 413


async def test_headers_over_the_limit_are_431() -> None:
    flood = [(b"x-a", b"b" * 100)] * 2000
    assert (await call(iter([]), flood))[0] == 431
    edge = [(b"x", b"b" * (MAX_HEADER_BYTES - 1))]
    assert (await call(iter([]), edge))[0] == 200
    assert (await call(iter([]), [*edge, (b"y", b"")]))[0] == 431


async def test_a_slow_body_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webapp.body_limit, "BODY_SECONDS", 0.05)
    sent: list[dict[str, Any]] = []

    async def never() -> dict[str, Any]:
        await asyncio.sleep(5)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await BodyLimit(echo, nobody)({"type": "http", "headers": []}, never, send)
    assert sent[0]["status"] == 408


async def test_an_upload_says_its_length_is_handed_on_as_it_comes_and_few_are_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started, all_started, go = 0, asyncio.Event(), asyncio.Event()

    async def reading(scope: dict[str, Any], receive: Any, send: Any) -> None:
        nonlocal started
        size, message = 0, await receive()
        started += 1
        if started == UPLOADS_AT_ONCE:
            all_started.set()
        await go.wait()
        while message["type"] == "http.request" and message.get("more_body"):
            size += len(message["body"])
            message = await receive()
        gone = message["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 400 if gone else 200, "headers": []})
        await send({"type": "http.response.body", "body": str(size).encode()})

    async def sender(scope: dict[str, Any]) -> int | None:
        user: int | None = scope["user"]
        return user

    limit = BodyLimit(reading, sender)

    async def upload(
        chunks: list[bytes], *, length: int | None, path: str = "/p/lab/import", user: int | None = 0
    ) -> int:
        sent: list[dict[str, Any]] = []
        waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        waiting.append({"type": "http.request", "body": b"", "more_body": False})

        async def receive() -> dict[str, Any]:
            return waiting.pop(0)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        headers = [] if length is None else [(b"content-length", str(length).encode())]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "user": user}
        await limit(scope, receive, send)
        return int(sent[0]["status"])

    big = [b"a" * MAX_BODY_BYTES] * 2
    first = asyncio.create_task(upload(big, length=2 * MAX_BODY_BYTES, user=1))
    await asyncio.sleep(0)
    assert await upload(big, length=2 * MAX_BODY_BYTES, user=1) == 503  # another one of theirs
    others = range(2, UPLOADS_AT_ONCE + 1)
    both = [first, *(asyncio.create_task(upload(big, length=2 * MAX_BODY_BYTES, user=n)) for n in others)]
    await all_started.wait()
    assert await upload(big, length=2 * MAX_BODY_BYTES) == 503
    assert await upload(big, length=2 * MAX_BODY_BYTES, user=None) == 401
    go.set()
    assert [await one for one in both] == [200] * UPLOADS_AT_ONCE
    assert await upload(big, length=None) == 411
    assert await upload(big, length=2 * MAX_UPLOAD_BYTES) == 413
    assert await upload(big, length=5) == 400  # more came than was announced
    assert await upload(big, length=2 * MAX_BODY_BYTES, path="/p/lab/new") == 413
    assert await upload(big, length=2 * MAX_BODY_BYTES) == 200  # nothing is held


@pytest.mark.process
@pytest.mark.django_db(transaction=True)
def test_endless_headers_end_by_themselves(database_url: str, tmp_path: Path) -> None:
    """With the options that the site is served with."""
    stack = Stack(DataFolder.at(tmp_path), Terminal(steps=1))
    environment = os.environ | {"ARBORIST_DATABASE_URL": database_url, "ARBORIST_DATA_DIR": str(tmp_path)}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = probe.getsockname()
    served = subprocess.Popen(stack._web(address[1], environment).argv, cwd=REPOSITORY, env=environment)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(address, timeout=5) as client,
            ):
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
                with contextlib.suppress(OSError):
                    for _ in range(1000):
                        client.sendall((b"X-A: " + b"b" * 1000 + b"\r\n") * 10)
                assert b" 400 " in client.recv(100)
                return
            time.sleep(0.2)
        pytest.fail("the server did not answer")
    finally:
        served.terminate()
        served.wait(30)


# ------------------------------------------------------------------------------------------------ origins


@pytest.mark.parametrize(
    ("origin", "host", "scheme", "own"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "ws", True),
        ("http://localhost:8000", "localhost:8000", "ws", True),
        ("https://localhost", "localhost", "wss", True),
        ("http://localhost:8001", "localhost:8000", "ws", False),
        ("https://localhost:8000", "localhost:8000", "ws", False),
        ("http://localhost", "localhost", "wss", False),
        ("https://evil.example", "localhost", "ws", False),
        ("http://evil.example", "evil.example", "ws", False),  # rebinding: the host is not ours
        ("http://localhost.evil.example", "localhost", "ws", False),
        ("http://localhost:8000/", "localhost:8000", "ws", False),
        ("null", "localhost", "ws", False),
        ("", "localhost", "ws", False),
        ("http://", "", "ws", False),
    ],
)
def test_origins(origin: str, host: str, scheme: str, own: bool) -> None:
    assert is_own_origin(origin, host, scheme) is own


@override_settings(HTTPS=True, CSRF_TRUSTED_ORIGINS=["https://arborist.example"])
def test_behind_a_proxy_the_origin_is_https_or_trusted() -> None:
    assert is_own_origin("https://localhost", "localhost", "ws")
    assert not is_own_origin("http://localhost", "localhost", "ws")
    assert is_own_origin("https://arborist.example", "whatever", "ws")


async def test_a_foreign_handshake_never_reaches_the_application() -> None:
    async def application(*_: Any) -> None:
        pytest.fail("reached")

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    for headers in (
        [(b"host", b"localhost")],
        [(b"host", b"localhost"), (b"origin", b"https://evil.example")],
    ):
        coming: list[dict[str, Any]] = [
            {"type": "websocket.disconnect", "code": 1006},
            {"type": "websocket.connect"},
        ]

        async def receive(coming: list[dict[str, Any]] = coming) -> dict[str, Any]:
            return coming.pop()

        await OwnOrigin(application)(
            {"type": "websocket", "scheme": "ws", "headers": headers, "path": "/ws/v1"}, receive, send
        )
    assert [message["type"] for message in sent] == ["websocket.close", "websocket.close"]


# ------------------------------------------------------------------------------------------------ checks


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("", True),
        ("/run/arborist.sock", True),
        (EVERYWHERE, False),
        ("::", False),
        ("10.0.0.1", False),
        ("arborist.example", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_public_address_needs_key_and_hosts() -> None:
    with override_settings(SECRET_KEY_IS_TEMPORARY=True, CHOSEN_HOSTS=[], DEBUG=True):
        assert [error.id for error in public_address_errors(EVERYWHERE)] == [
            "arborist.E001",
            "arborist.E002",
            "arborist.E003",
        ]
        assert all(error.hint for error in public_address_errors(EVERYWHERE))
        assert public_address_errors("127.0.0.1") == []
    with override_settings(SECRET_KEY_IS_TEMPORARY=False, CHOSEN_HOSTS=["*"]):
        assert [error.id for error in public_address_errors(EVERYWHERE)] == ["arborist.E002"]
    with override_settings(SECRET_KEY_IS_TEMPORARY=False, CHOSEN_HOSTS=["arborist.example"]):
        assert public_address_errors(EVERYWHERE) == []


@pytest.mark.process
@pytest.mark.parametrize("told", [["--host", EVERYWHERE], ["--host=::"]])
def test_the_server_does_not_start_on_a_public_address_without_them(told: list[str], tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ARBORIST_")}
    environment |= {"ARBORIST_DATA_DIR": str(tmp_path)}
    argv = [sys.executable, "-m", "uvicorn", "webapp.asgi:application", *told, "--port", "0"]
    ended = subprocess.run(
        argv, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode != 0
    assert "with a secret key that nobody chose" in ended.stderr
    assert "Set ARBORIST_ALLOWED_HOSTS" in ended.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_data_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with override_settings(DATA_DIR=tmp_path / "data"):
        assert [error.id for error in check_data_folder(None)] == ["arborist.E004"]


def test_a_data_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with override_settings(DATA_DIR=tmp_path / "data"):
        (error,) = check_data_folder(None)
    assert error.id == "arborist.E004"
    with override_settings(DATA_DIR=tmp_path / "not" / "yet"):
        assert check_data_folder(None) == []


@pytest.mark.django_db
def test_an_old_database_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_database(None, ["default"]) == []
    monkeypatch.setattr("webapp.checks.POSTGRES_FLOOR", 99)
    (error,) = check_database(None, ["default"])
    assert error.id == "arborist.E006"
    assert "needs 99 or newer" in error.msg
