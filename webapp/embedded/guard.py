"""Becomes the program it is given, after making sure that it will not outlive its parent.

Run as a script by `processes.guarded`, never imported; it knows nothing of Arborist and starts in some 20 ms:

    python -I -S guard.py PARENT_PID DEATH_SIGNAL UID:GID|- PROGRAM [ARGUMENT …]

The order matters. The kernel forgets the death signal at a change of credentials, so those come first; and
the parent may have died before the signal was asked for, so that is checked last.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, death_signal, account = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    program = sys.argv[4:]
    libc = ctypes.CDLL(None, use_errno=True)
    if account != "-":
        uid, gid = (int(part) for part in account.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        sys.exit(f"guard: prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("guard: the parent is gone already")
    # Python ignores these two; an ignored signal would stay ignored in the program.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    # A shell's background jobs ignore SIGINT, and the database is stopped by it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.execv(program[0], program)  # noqa: S606 (no shell on purpose)
    except OSError as error:
        sys.exit(f"guard: {program[0]} cannot be started: {error.strerror}")


main()
