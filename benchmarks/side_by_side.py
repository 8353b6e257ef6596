"""How much of a process's CPU time was spent while several of its threads had something to do: running, or
ready to. The rest of the time they waited for one another, for Python's lock, or for something else.

That does not depend on how busy the machine is, as wall time does. It is looked at from another process, 200
times a second, which takes no lock of the one that it looks at.

    python -m benchmarks.side_by_side PROCESS    from a byte on standard input until its end
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

LOOK_SECONDS = 0.005


class SideBySide:
    """Of this process, from `begin` to `end`."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.side_by_side", str(os.getpid())]
        self._other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        return self

    def begin(self) -> None:
        if self._other.stdin is not None:
            self._other.stdin.write(b".")

    def end(self) -> float:
        """The share, 0 to 1."""
        together, everything = json.loads(self._other.communicate()[0])
        return float(together / everything)

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._other.kill()
        self._other.wait()


def look(process: int) -> tuple[int, int]:
    """Nanoseconds of CPU time that were spent side by side, and all."""
    before: dict[str, int] = {}
    together = everything = 0
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        ready, spent, now = 0, 0, {}
        for thread in Path(f"/proc/{process}/task").iterdir():
            try:
                ready += (thread / "stat").read_text().rpartition(")")[2].split()[0] == "R"
                now[thread.name] = int((thread / "schedstat").read_text().split()[0])
            except OSError:
                continue  # it has ended
            spent += now[thread.name] - before.get(thread.name, now[thread.name])
        before = now
        everything += spent
        together += spent if ready > 1 else 0
    return together, everything


if __name__ == "__main__":
    sys.stdin.buffer.read1(1)
    print(json.dumps(look(int(sys.argv[1]))))
