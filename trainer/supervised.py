"""What every process of the trainer does that a worker watches over: what it says is JSON lines on standard
output, and it does not outlive who started it. Torch-free.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO

SILENT_SECONDS = 24.0  # a bit more than a lease: whoever is silent for so long has lost it
LISTEN_SECONDS = 4.0
BEAT_SECONDS = 2.0
PR_SET_PDEATHSIG = 1
SUPERVISOR_IS_SILENT = 75  # exit status: "try again", as in sysexits.h
ENGINE_HANGS = 77  # exit status: a computation of the engine never came back (`Alarm`)
BEGIN_SMALLER = 78  # exit status: of several processes, memory ran out on one (`guards.BeginSmallerError`)
HANG_SECONDS = 600.0  # for one of them
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Which of a run's processes this one is, and where they meet: a store on the loopback. `store_fd`: the
    socket that it listens on, for rank 0.
    """

    rank: int
    size: int
    port: int
    store_fd: int | None = None
    address: str = "127.0.0.1"


def die_with_parent() -> None:
    """The kernel ends this process as soon as the thread that started it ends. Beside `end_with_parent`,
    which sees a parent that was gone before.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def beat(descriptor: int) -> None:
    """A thread that says on a pipe, every so often, that this process does not stand still."""

    def speak() -> None:
        with contextlib.suppress(OSError):  # nobody listens any more, and ends us in a moment
            while True:
                os.write(descriptor, b".")
                time.sleep(BEAT_SECONDS)

    threading.Thread(target=speak, name="beats", daemon=True).start()


class Alarm:
    """Ends this process when what is done inside `with alarm:` does not come back: a driver or library that
    hangs can be left in no other way. Its thread starts with the first use.
    """

    def __init__(self, words: str, *, seconds: float = HANG_SECONDS) -> None:
        """`words`: the last on standard error."""
        self._words, self._seconds = words, seconds
        self._number = 0  # of the computation, or of the pause after it
        self._is_on = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self._number += 1
        self._is_on = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="alarm", daemon=True)
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_on = False

    def _watch(self) -> None:
        tick = min(5.0, self._seconds / 4)
        number, waited = 0, 0.0
        while waited < self._seconds:
            # Counted in waits that we were awake for, as above.
            time.sleep(tick)
            waited = waited + tick if self._is_on and number == self._number else 0.0
            number = self._number
        sys.stderr.write(f"EngineHang: {self._words}\n")
        sys.stderr.flush()
        os._exit(ENGINE_HANGS)


def only_events_on_stdout() -> IO[bytes]:
    """The real stdout as a stream of our own; whatever a library prints from now on goes to stderr."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(own, "wb")


def end_with_parent(descriptor: int) -> None:
    """A thread that ends this process as soon as the other end of the pipe is closed, or has fallen silent
    after it spoke: no orphan works on, and none whose supervisor is frozen.
    """

    def watch() -> None:
        has_spoken, silent = False, 0.0
        try:
            while silent < SILENT_SECONDS:
                ready, _, _ = select.select([descriptor], [], [], LISTEN_SECONDS if has_spoken else None)
                if not ready:
                    # Counted in waits that we were awake for: a machine that sleeps is no silence.
                    silent += LISTEN_SECONDS
                elif os.read(descriptor, 4096):
                    has_spoken, silent = True, 0.0
                else:
                    os._exit(1)
        except OSError:
            logger.warning("The parent pipe %s cannot be read; ending.", descriptor)
            os._exit(1)
        os._exit(SUPERVISOR_IS_SILENT)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def thread_count(text: str) -> int:
    """Of torch, from ARBORIST_TORCH_THREADS. Raises ValueError."""
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ValueError(f"ARBORIST_TORCH_THREADS is {text!r}; expected a number from 1 to 1024")
    return int(text)
