"""Whether the kernel ended processes here for lack of memory."""

from __future__ import annotations

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
