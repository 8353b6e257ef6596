"""How much memory processes take here, and whether the kernel ended any for lack of it."""

from __future__ import annotations

import os
from pathlib import Path


def kernel_kills() -> int | None:
    """How often it did so in our control group since that was made; None where this cannot be known."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line.partition("::")[2] for line in groups if line.startswith("0::"))
        events = Path("/sys/fs/cgroup", own.lstrip("/"), "memory.events").read_text()
        return next(int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill "))
    except (OSError, StopIteration, ValueError):
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
