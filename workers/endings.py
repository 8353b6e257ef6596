"""Why a trainer ended without saying so itself, in one sentence that a researcher understands. Pure."""

from __future__ import annotations

import re
import signal

from trainer.guards import TROUBLES, BeginSmallerError, told
from trainer.launcher import RANK_DIED
from trainer.supervised import BEGIN_SMALLER, ENGINE_HANGS, HANG_SECONDS

_GPU_MEMORY = re.compile(r"\bOutOfMemoryError\b|\bCUDA out of memory\b")
_HOST_MEMORY = re.compile(r"\b(MemoryError|out of memory|[Cc]an(?:'t|not) allocate memory)\b")
_OUT_OF_ROOM = re.compile(r"\bOutOfRoomError: (.+)")
_ERROR_LINE = re.compile(r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning)?(?::|$)")
_IMPORT_ERROR = re.compile(r"^(ModuleNotFoundError|ImportError)\b")
BAD_CONFIG = 2  # the trainer's exit status for a config that it cannot read


def describe(
    status: int,
    stderr: str,
    *,
    step: int = 0,
    checkpoint: int | None = None,
    kernel_was_out_of_memory: bool = False,
) -> str:
    """`status` as subprocess gives it: minus the signal's number, or the exit status.

    step, checkpoint: the last complete step and that of the last checkpoint. `kernel_was_out_of_memory`: the
    kernel ended processes for lack of memory while the trainer ran.
    """
    if said := _OUT_OF_ROOM.findall(stderr):  # of a rank that does not speak for the run
        what, _, do = max(said, key=len).partition(". ")
        return told(what, step, checkpoint, do)
    key, values = _found(status, stderr, kernel_was_out_of_memory)
    return TROUBLES[key].sentence(step, checkpoint, **values)


def _found(status: int, stderr: str, kernel_was_out_of_memory: bool) -> tuple[str, dict[str, object]]:
    """Which trouble, and what is filled in."""
    if -status == signal.SIGKILL and kernel_was_out_of_memory:
        return "host memory", {"what": "the machine had none left, and its kernel ended the trainer"}
    if status == RANK_DIED:
        if kernel_was_out_of_memory:
            return "host memory", {"what": "the machine had none left, and its kernel ended a process"}
        return "rank died", {"which": _which_rank(stderr)}
    if status == ENGINE_HANGS:
        return "engine hangs", {"seconds": HANG_SECONDS}
    if status < 0:
        return "died", {"number": -status, "name": _signal_name(-status)}
    last = last_error(stderr)
    if _GPU_MEMORY.search(stderr):
        return "gpu memory", {"place": "GPU", "doing": "working", "sizes": f"what its log names: {last}"}
    if _HOST_MEMORY.search(stderr):
        return "host memory", {"what": f"the trainer asked for more than there is ({last})"}
    if status == 0:
        return "silent", {}
    if _IMPORT_ERROR.match(last):
        return "import", {"error": last}
    if status == BAD_CONFIG:
        return "config", {"error": last or "the trainer does not say what"}
    return ("error", {"error": last}) if last else ("status", {"status": status})


def is_death(status: int) -> bool:
    """Whether a signal ended the trainer, or one of its processes, or its engine hung: it may go well another
    time.
    """
    return status < 0 or status in (RANK_DIED, ENGINE_HANGS)


def death(status: int, stderr: str) -> str:
    """What happened to a trainer that died, as a sentence to be gone on with: "… after step 3"."""
    if status == RANK_DIED:
        return TROUBLES["rank died"].said(which=_which_rank(stderr))
    if status == ENGINE_HANGS:
        return TROUBLES["engine hangs"].said(seconds=HANG_SECONDS)
    return TROUBLES["died"].said(number=-status, name=_signal_name(-status))


def begin_smaller(status: int, stderr: str) -> BeginSmallerError | None:
    """What the next attempt begins with when memory ran out on one of several ranks; None: it did not."""
    return BeginSmallerError.read(_which_rank(stderr)) if status == BEGIN_SMALLER else None


def _which_rank(stderr: str) -> str:
    """The launcher's last words (`trainer.launcher`)."""
    lines = [line for line in stderr.splitlines() if line.startswith("RankError: ")]
    which = lines[-1].removeprefix("RankError: ") if lines else "one of its processes was ended"
    return which[:1].upper() + which[1:500]


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
