"""What the person who started the stack sees: numbered steps, log lines with a name before them, one live
line.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

COLOURS = {"database": 34, "broker": 35, "web": 32, "sweeper": 36, "worker": 33, "prober": 33, "migrate": 90}
NAME_WIDTH = max(len(name) for name in COLOURS)
# What is written somewhere else than to a terminal is read later, where a line every few seconds only buries.
PLAIN_STATUS_SECONDS = 15.0


class Terminal:
    def __init__(self, stream: IO[str] | None = None, *, steps: int = 0) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.live = self.stream.isatty()
        self.colour = self.live and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.steps = steps
        self._step = 0
        self._unfinished = False  # the cursor stands behind a line that will be written anew
        self._status_at = 0.0

    def say(self, text: str) -> None:
        self._clear()
        self._write(text + "\n")

    @contextmanager
    def step(self, name: str, *, note: str = "") -> Iterator[None]:
        """One numbered step. `note` says what takes long, and how long, when it does."""
        self._step += 1
        title = f"{self._step}/{self.steps} {name}"
        started = time.monotonic()
        if self.live:
            self._clear()
            self._write(f"{title} … {note}")
            self._unfinished = True
        elif note:
            self._write(f"{title} … {note}\n")
        yield
        self.say(f"{title}  {time.monotonic() - started:.1f} s")

    def status(self, text: str) -> None:
        """The one line that is written anew in place."""
        if self.live:
            width = shutil.get_terminal_size((100, 24)).columns
            self._clear()
            self._write(visible(text)[: max(10, width - 1)])
            self._unfinished = True
        elif time.monotonic() - self._status_at >= PLAIN_STATUS_SECONDS:
            self._status_at = time.monotonic()
            self._write(visible(text) + "\n")

    def log(self, name: str, line: str) -> None:
        self._clear()
        prefix = f"{name:<{NAME_WIDTH}} |"
        if self.colour:
            prefix = f"\033[{COLOURS.get(name, 37)}m{prefix}\033[0m"
        self._write(f"{prefix} {visible(line)}\n")

    def _clear(self) -> None:
        if self._unfinished:
            self._write("\r\033[K")
            self._unfinished = False

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:
            # Whoever read us is gone (`make up | head`); the stack and its orderly stop must not depend on
            # it.
            self.stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
            self.live = False


def visible(text: str) -> str:
    """Control characters as `\\x1b`: a log line may quote what a model wrote, and must not steer the
    terminal.
    """
    return "".join(c if c == "\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LogTail:
    """The lines that a log gets from now on."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.offset = path.stat().st_size if path.exists() else 0

    def lines(self, *, max_bytes: int = 1 << 18) -> list[str]:
        try:
            size = self.path.stat().st_size
            if size < self.offset:  # it was cut, see `Stack._cut_logs`
                self.offset = 0
            if size == self.offset:
                return []
            with self.path.open("rb") as file:
                file.seek(self.offset)
                chunk = file.read(max_bytes)
        except FileNotFoundError:
            return []
        whole = chunk.rpartition(b"\n")[0]
        if not whole and len(chunk) < max_bytes:
            return []  # the line is still being written
        self.offset += len(whole) + 1 if whole else len(chunk)
        return (whole or chunk).decode("utf-8", errors="replace").splitlines()
