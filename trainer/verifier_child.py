"""A child process of `verifier_pool`: judges answers one by one, and is ended when one takes too much.

It reads JSON lines: first the verifier's settings, then batches of [text, has_ended, reference]. After each
answer it writes a line, so that whoever waits knows which one it is at. Nothing heavy is imported.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from typing import IO, Any

PR_SET_PDEATHSIG = 1
FILLING_SECONDS = 0.02


def main() -> None:
    """Until stdin ends."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    # What a library or a plug-in prints must not come among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Settings, then batches."""
    settings: dict[str, Any] = json.loads(requests.readline())
    if settings.get("forms"):  # not in training
        from trainer.answer_forms import forms_called as chosen
    else:
        from trainer.judges import judge_called as chosen
    try:
        judge = chosen(settings["kind"], settings)
        if settings["kind"] == "boxed":
            judge("\\boxed{\\frac{1}{2}}", True, "0.5")  # imports what it needs before memory is limited
    except ValueError as error:
        _write(answers, ["unusable", str(error)])
        return
    except Exception as error:  # noqa: BLE001  # whatever a library or a plug-in raises at import
        what = f"{type(error).__name__}: {error}"[:300]
        _write(answers, ["unusable", f"The verifier {settings['kind']} cannot be loaded: {what}"])
        return
    most_bytes = int(settings["memory_mb"]) * 2**20
    idle_bytes = peak_bytes()
    _limit(2 * most_bytes, may_write=settings["kind"] == "plugin")
    _write(answers, ["ready", ""])
    for line in requests:
        for text, has_ended, reference in json.loads(line):
            started = time.monotonic()
            try:
                said = judge(text, has_ended, reference)
            except MemoryError:
                said = ("error", "memory")
            except RecursionError:
                said = ("error", "nested too deep")
            except Exception as error:  # noqa: BLE001  # whatever it raises: this answer has no verdict
                said = ("error", f"{type(error).__name__}: {error}"[:300])
            # Libraries swallow MemoryError and say "not equal". So much memory takes a while to fill.
            if time.monotonic() - started > FILLING_SECONDS and peak_bytes() - idle_bytes > most_bytes:
                said = ("error", "memory")
            _write(answers, said)


def _write(answers: IO[str], said: Any) -> None:
    answers.write(json.dumps(said) + "\n")
    answers.flush()


def peak_bytes() -> int:
    """The most memory this process has ever held at a time."""
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123  # pathlib is one import more
        kilobytes = next(line.split()[1] for line in file if line.startswith("VmHWM:"))
    return int(kilobytes) * 1024


def _limit(more_bytes: int, *, may_write: bool) -> None:
    """So much address space beyond what an idle verifier takes; no core files; only plug-ins write files.

    Addresses cost nothing until they are used, so their limit is for what asks for far too much at once.
    """
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        most = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + more_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not may_write:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


if __name__ == "__main__":
    main()
