"""How much memory processes take here, and whether the kernel ended any for lack of it."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def kernel_kills() -> int | None:
    """How often it did so, as a number that only grows: of our own control group (version 2 or 1) where the
    kernel counts there, else of the whole machine. None where this cannot be known.
    """
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        groups = []
    for group in groups:
        _, controllers, own = group.split(":", 2)
        if not controllers:
            found = _counted(_CGROUPS / own.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found = _counted(_CGROUPS / "memory" / own.lstrip("/") / "memory.oom_control")
        else:
            continue
        if found is not None:
            return found
    return _counted(Path("/proc/vmstat"))


def _counted(path: Path) -> int | None:
    """The line `oom_kill N` of a file."""
    try:
        lines = path.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def machine_bytes() -> int:
    """All of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident_bytes(pid: int) -> int:
    """What a process holds in memory now; 0 when it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
