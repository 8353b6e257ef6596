"""Healthy is a worker that was seen: it writes so into its row every few seconds. Exit status 0 or 1."""

from __future__ import annotations

import os
import socket
import sys

import psycopg

SEEN = "SELECT heartbeat_at > now() - interval '90 seconds' FROM arborist_worker WHERE name = %s"


def is_seen(database_url: str, worker: str) -> bool:
    with psycopg.connect(database_url, connect_timeout=5) as connection:
        return connection.execute(SEEN, [worker]).fetchone() == (True,)


if __name__ == "__main__":
    # The name that the worker's command gives it: worker@%h.
    sys.exit(not is_seen(os.environ["ARBORIST_DATABASE_URL"], f"worker@{socket.gethostname()}"))
