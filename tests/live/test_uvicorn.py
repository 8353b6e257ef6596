"""Sockets through the real server, as the stack starts it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import websockets
from asgiref.sync import sync_to_async
from django.conf import settings

from tests.live.page import cookie_of
from tests.webapp.material import worked_tree
from tests.workers.factories import log, make_user, metrics, numbered, started
from trainer.tree_lines import TreeLine, write_line
from webapp.accounts.models import User
from webapp.embedded import processes
from webapp.embedded.stack import WEB_LEAVE_SECONDS
from webapp.imports.models import Import
from webapp.projects.models import Project
from webapp.runs.models import Run
from workers import lease
from workers.recorder import Recorder

pytestmark = pytest.mark.process
REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Site:
    port: int
    popen: subprocess.Popen[bytes]

    def connect(self, cookie: str, **options: Any) -> Any:
        """`Any`: websockets' connection, under whichever name its release has it."""
        headers = {"Cookie": f"{settings.SESSION_COOKIE_NAME}={cookie}"}
        origin = options.pop("origin", f"http://127.0.0.1:{self.port}")
        return websockets.connect(
            f"ws://127.0.0.1:{self.port}/ws/v1", additional_headers=headers, origin=origin, **options
        )

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    port = free_port()
    argv = [sys.executable, "-m", "uvicorn", "webapp.asgi:application", "--host", "127.0.0.1"]
    argv += ["--port", str(port), "--no-access-log", "--ws-max-size", "65536"]
    argv += ["--timeout-graceful-shutdown", str(WEB_LEAVE_SECONDS)]
    environment = os.environ | {"ARBORIST_DATABASE_URL": database_url, "ARBORIST_DATA_DIR": str(tmp_path)}
    log_path = tmp_path / "web.log"
    with log_path.open("ab") as output:
        popen = subprocess.Popen(argv, cwd=REPOSITORY, env=environment, stdout=output, stderr=output)

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return popen.poll() is not None

    try:
        assert processes.wait_until(answers, 60)
        assert popen.poll() is None, log_path.read_text()
        yield Site(port, popen)
    finally:
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(10) in (0, -signal.SIGTERM)
    text = log_path.read_text()
    assert "Traceback" not in text, text


async def hear(socket: Any, kind: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            message: dict[str, Any] = json.loads(await socket.recv())
            if message["type"] == kind:
                return message


async def say_and_hear(socket: Any, text: str) -> None:
    await socket.send(text)
    await hear(socket, "an answer that never comes")


async def test_live_events_over_the_real_server(site: Site, run: Run, user: User) -> None:
    cookie = await sync_to_async(cookie_of)(user)
    held = await sync_to_async(lease.claim)(run.id, "w")
    assert held is not None
    record = sync_to_async(Recorder(held).record)
    async with site.connect(cookie) as page:
        await page.send(json.dumps({"type": "subscribe", "run": run.id, "from_seq": 0}))
        await hear(page, "subscribed")
        assert (await hear(page, "frame"))["last_seq"] == 2
        await asyncio.sleep(0.3)  # the listener may just have come up
        await record(numbered([started(), metrics(1, reward__mean=float("nan"))]))
        began = time.monotonic()
        frame = await hear(page, "frame")
        assert time.monotonic() - began < 1
        assert frame["events"][1]["values"] == {"reward/mean": {"v": None, "k": "nan"}}

        with pytest.raises(websockets.ConnectionClosed) as closed:
            await say_and_hear(page, "x" * 70_000)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009

    for origin in ("https://evil.example", None):
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with site.connect(cookie, origin=origin):
                pass
        assert refused.value.response.status_code == 403
    async with site.connect("f" * 32) as stranger:
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await stranger.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401


async def test_reader_that_takes_nothing_costs_no_memory_and_nobody_else(
    site: Site, run: Run, user: User
) -> None:
    cookie = await sync_to_async(cookie_of)(user)
    held = await sync_to_async(lease.claim)(run.id, "w")
    assert held is not None
    record = sync_to_async(Recorder(held).record)
    subscribe = json.dumps({"type": "subscribe", "run": run.id, "from_seq": 2})

    stuck = socket.create_connection(("127.0.0.1", site.port))
    stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    handshake = (
        f"GET /ws/v1 HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nOrigin: http://127.0.0.1:{site.port}\r\n"
        f"Cookie: {settings.SESSION_COOKIE_NAME}={cookie}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    stuck.sendall(handshake.encode())
    await asyncio.sleep(0.5)
    assert stuck.recv(1024).startswith(b"HTTP/1.1 101")
    payload = subscribe.encode()
    # A masked text frame with a mask of zeros. After it nothing is read.
    stuck.sendall(bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload)

    async with site.connect(cookie, max_size=None) as page:
        await page.send(subscribe)
        await hear(page, "state")
        before = site.resident_bytes()
        n, delays = 1, []
        # 60 frames of 400 kB: the stuck reader would have to be kept 24 MB.
        for _ in range(60):
            await record(numbered([log("x" * 8000) for _ in range(50)], n))
            n += 50
            began = time.monotonic()
            await hear(page, "frame")
            delays.append(time.monotonic() - began)
        assert max(delays) < 2
        assert site.resident_bytes() - before < 15_000_000
    stuck.close()


def uploading(site: Site, project: Project, cookie: str, name: str) -> tuple[socket.socket, bytes]:
    """An upload of a file of trees that is half there, and its other half."""
    trees = b"".join(write_line(TreeLine(name, n, None, worked_tree(n + 1))) for n in range(20))
    fields = {"csrfmiddlewaretoken": "c" * 32, "name": name}
    body = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    )
    body += b'--x\r\nContent-Disposition: form-data; name="file"; filename="trees.jsonl"\r\n\r\n'
    body += trees + b"\r\n--x--\r\n"
    head = (
        f"POST /p/{project.slug}/import HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\n"
        f"Cookie: {settings.SESSION_COOKIE_NAME}={cookie}; csrftoken={'c' * 32}\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    half = len(body) // 2
    link = socket.create_connection(("127.0.0.1", site.port), timeout=15)
    link.sendall(head.encode() + body[:half])
    return link, body[half:]


def test_a_web_process_that_leaves_ends_the_uploads_it_can_and_leaves_nothing_of_the_others(
    site: Site, project: Project, tmp_path: Path
) -> None:
    """As in a deployment: one file comes to its end in time, another one never does."""
    cookies = [cookie_of(make_user("editor", project)) for _ in range(2)]  # one file of each at a time
    quick, rest = uploading(site, project, cookies[0], "quick")
    stuck, _ = uploading(site, project, cookies[1], "stuck")
    time.sleep(0.5)
    told = time.monotonic()
    site.popen.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    quick.sendall(rest)
    answer = quick.recv(1000)
    assert answer.startswith(b"HTTP/1.1 302"), answer
    site.popen.wait(10)
    assert time.monotonic() - told < 10
    said = b""
    with contextlib.suppress(ConnectionError):
        said = stuck.recv(1000)
    assert not said or said.startswith(b"HTTP/1.1 503"), said
    (taken,) = Import.objects.all()
    assert (taken.run_name, taken.status) == ("quick", "queued")
    # And nothing lies about of the other one.
    assert [file.stat().st_size for file in (tmp_path / "exports" / "uploads").iterdir()] == [
        taken.size_bytes
    ]
