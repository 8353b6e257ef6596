"""What every process of the trainer does that a worker watches over: what it says is JSON lines on standard
output, and it does not outlive who started it. Torch-free.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import IO

logger = logging.getLogger(__name__)


def only_events_on_stdout() -> IO[bytes]:
    """The real stdout as a stream of our own; whatever a library prints from now on goes to stderr."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(own, "wb")


def end_with_parent(descriptor: int) -> None:
    """A thread that ends this process as soon as the other end of the pipe is closed: no orphan works on."""

    def watch() -> None:
        try:
            while os.read(descriptor, 1):
                pass
        except OSError:
            logger.warning("The parent pipe %s cannot be read; ending.", descriptor)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def thread_count(text: str) -> int:
    """Of torch, from ARBORIST_TORCH_THREADS. Raises ValueError."""
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ValueError(f"ARBORIST_TORCH_THREADS is {text!r}; expected a number from 1 to 1024")
    return int(text)
