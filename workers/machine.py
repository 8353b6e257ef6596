"""What a worker stands on: processors, memory, GPUs, as the workers page shows it. What cannot be known says
so.
"""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

from workers import memory

SMI = "nvidia-smi"
SMI_SECONDS = 5.0
_FIELDS = "index,name,memory.used,memory.total,utilization.gpu"


def measured() -> dict[str, Any]:
    """`host`, `cpus` that this process may use, `load` of the machine, `memory_bytes` of it and
    `memory_used_bytes`, `gpus`; `gpu_trouble` says why `gpus` is empty where there may be some.
    """
    found, trouble = gpus()
    return {
        "host": socket.gethostname()[:120],
        "cpus": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "memory_bytes": memory.machine_bytes(),
        "memory_used_bytes": memory.machine_bytes() - available_bytes(),
        "gpus": found,
        "gpu_trouble": trouble,
    }


def available_bytes() -> int:
    """Memory that can still be had without swapping; 0 when the kernel does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0


def gpus() -> tuple[list[dict[str, Any]], str]:
    """Every NVIDIA GPU as the driver's own tool tells of it, and what went wrong. ([], ""): there is none."""
    command = [SMI, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except FileNotFoundError:
        return [], ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"{SMI} did not answer: {type(error).__name__}"
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return [], f"{SMI} failed: {said[-1][:200] if said else f'exit status {done.returncode}'}"
    return [gpu for line in done.stdout.splitlines() if (gpu := read_line(line)) is not None], ""


def read_line(line: str) -> dict[str, Any] | None:
    """One line of nvidia-smi's CSV; what it does not know (`[N/A]`) is None. None for any other line."""
    parts = [part.strip() for part in line.split(",")]
    if len(parts) < 5 or not parts[0].isdecimal():
        return None
    used, total, busy = (int(part) if part.isdecimal() else None for part in parts[-3:])
    return {
        "index": int(parts[0]),
        "name": ", ".join(parts[1:-3])[:120],
        "memory_used_bytes": None if used is None else used * 2**20,
        "memory_bytes": None if total is None else total * 2**20,
        "busy_share": None if busy is None else busy / 100,
    }
