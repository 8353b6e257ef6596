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
from typing import IO, Any

PR_SET_PDEATHSIG = 1


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
    from trainer.judges import judge_called

    settings: dict[str, Any] = json.loads(requests.readline())
    try:
        judge = judge_called(settings["kind"], settings)
        if settings["kind"] == "boxed":
            judge("\\boxed{\\frac{1}{2}}", True, "0.5")  # imports what it needs before memory is limited
    except (ValueError, ImportError) as error:
        _write(answers, ["unusable", str(error)])
        return
    _limit_memory(int(settings["memory_mb"]))
    _write(answers, ["ready", ""])
    for line in requests:
        for text, has_ended, reference in json.loads(line):
            try:
                said = judge(text, has_ended, reference)
            except MemoryError:
                said = ("error", "memory")
            except RecursionError:
                said = ("error", "nested too deep")
            except Exception as error:  # noqa: BLE001  # whatever it raises: this answer has no verdict
                said = ("error", f"{type(error).__name__}: {error}"[:300])
            _write(answers, said)


def _write(answers: IO[str], said: Any) -> None:
    answers.write(json.dumps(said) + "\n")
    answers.flush()


def _limit_memory(megabytes: int) -> None:
    """So much address space beyond what an idle verifier takes."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123  # pathlib is one import more
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    most = now + megabytes * 2**20
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most if hard < 0 else min(most, hard), hard))


if __name__ == "__main__":
    main()
