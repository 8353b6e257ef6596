"""Why a trainer ended without saying so itself, in one sentence that a researcher understands. Pure."""

from __future__ import annotations

import re
import signal

_OUT_OF_MEMORY = re.compile(r"\b(MemoryError|OutOfMemoryError|out of memory|Cannot allocate memory)\b")
_ERROR_LINE = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning)?(?::|$)")
_SMALLER = (
    "Lower training.problems_per_step, the branching or training.microbatch_tokens, or use a larger machine."
)
_WAY_ON = "The last lines of its log are under Events."


def describe(status: int, stderr: str, *, kernel_was_out_of_memory: bool = False) -> str:
    """`status` as subprocess gives it: minus the signal's number, or the exit status.

    `kernel_was_out_of_memory`: the kernel ended processes for lack of memory while the trainer ran.
    """
    if -status == signal.SIGKILL:
        if kernel_was_out_of_memory:
            return f"The machine ran out of memory and ended the trainer. {_SMALLER}"
        return f"The trainer was ended by signal 9, as happens when a machine runs out of memory. {_SMALLER}"
    if status < 0:
        return f"The trainer was ended by signal {-status} ({_signal_name(-status)}). {_WAY_ON}"
    if _OUT_OF_MEMORY.search(stderr):
        return f"The trainer ran out of memory. {_SMALLER}"
    if status == 0:
        return f"The trainer left without saying how it went. {_WAY_ON}"
    last = last_error(stderr)
    return (
        f"The trainer failed: {last}" if last else f"The trainer ended with exit status {status}. {_WAY_ON}"
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def last_error(stderr: str) -> str:
    """The line that names the error: the last that looks like `SomeError: …`, else the last at all."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    for line in reversed(lines):
        if _ERROR_LINE.match(line):
            return line[:500]
    return lines[-1][:500] if lines else ""
