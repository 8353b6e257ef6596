"""What happened during a campaign, one JSON object per line, in the order of one monotonic clock.

    {"t": 12.3, "op": "fault", "type": "invoke", …}

`type`: `invoke` something was begun, `ok` it was done, `fail` it was refused, `info` seen or unknown. `op`
says what: fault, away, link (between a worker and the database), poll, run, holder, trainers, emit, ack,
pointer, read, http, wish, memory, note.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

Kind = Literal["invoke", "ok", "fail", "info"]
Line = dict[str, Any]  # JSON


class History:
    """Written by every part of the driver, from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.began = time.monotonic()
        self._file = path.open("w", encoding="utf-8")
        self._lock = threading.Lock()
        self.lines: list[Line] = []

    def now(self) -> float:
        """Seconds since the campaign began."""
        return time.monotonic() - self.began

    def add(self, op: str, kind: Kind = "info", **more: Any) -> Line:
        with self._lock:
            line: Line = {"t": round(self.now(), 3), "op": op, "type": kind} | more
            self.lines.append(line)
            self._file.write(json.dumps(line, default=str) + "\n")
        return line

    def close(self) -> None:
        with self._lock:
            self._file.close()


def read(path: Path) -> Iterator[Line]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def of(lines: list[Line], op: str, kind: Kind | None = None) -> Iterator[Line]:
    """The lines of one operation, in order."""
    return (line for line in lines if line["op"] == op and (kind is None or line["type"] == kind))
