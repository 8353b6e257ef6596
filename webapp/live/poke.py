"""The wake-up: "run 12 has something new, go and read". A few bytes by PostgreSQL NOTIFY; it may be lost."""

from __future__ import annotations

import json
from dataclasses import dataclass

from django.db import connection

CHANNEL = "arborist_poke"


@dataclass(frozen=True, slots=True)
class Poke:
    run: int
    project: int
    last_seq: int


def poke(run_id: int, project_id: int, last_seq: int) -> None:
    """Wake everybody who watches the run. Within a transaction it goes out with the commit, or not at all."""
    text = json.dumps({"run": run_id, "project": project_id, "last_seq": last_seq})
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, text])


def parse(text: str) -> Poke | None:
    """None for what is no poke; anyone with a database login can notify."""
    try:
        found = json.loads(text)
        return Poke(int(found["run"]), int(found["project"]), int(found["last_seq"]))
    except (ValueError, KeyError, TypeError):
        return None
