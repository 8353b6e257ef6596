"""What a training process and its engine processes say to one another: msgpack over a socket that the
launcher made for the two, never a pickle. Torch-free.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any, Final

import msgpack

from trainer.guards import OutOfRoomError, is_gpu_memory, is_host_memory
from trainer.sampling.engine import EngineError, SamplingStopped
from trainer.verifiers import JudgingStopped

_CHUNK_BYTES: Final = 2**20

Message = dict[str, Any]
"""`do`: a command, `say`: an answer; the rest is its content. `Any`: what msgpack knows."""


class LostError(RuntimeError):
    """The process at the other end is gone. Why, whoever watches over both will say."""


class Channel:
    """One end of a socket between two processes."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor`: of a connected stream socket; nothing that this process starts keeps it open."""
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        # Messages may be as large as need be: both ends are ours.
        self._unpacker = msgpack.Unpacker(max_buffer_size=0, unicode_errors="surrogatepass")

    def fileno(self) -> int:
        return self._socket.fileno()

    def tell(self, **message: Any) -> None:
        """Say something. Raises LostError."""
        try:
            self._socket.sendall(msgpack.packb(message, unicode_errors="surrogatepass"))
        except OSError as error:
            raise LostError(f"a process of the run does not listen any more ({error.strerror})") from error

    def heard(self, seconds: float | None = 0.0) -> list[Message]:
        """All that was said and not yet taken, of what comes within so many seconds (None: for ever) what is
        there first. Raises LostError.
        """
        if select.select([self._socket], [], [], seconds)[0]:
            try:
                content = self._socket.recv(_CHUNK_BYTES)
            except OSError as error:
                raise LostError(f"a process of the run does not answer ({error.strerror})") from error
            if not content:
                raise LostError("a process of the run does not answer any more")
            self._unpacker.feed(content)
        return list(self._unpacker)

    def close(self) -> None:
        self._socket.close()


# ---- errors


def _out_of_gpu_memory(words: str) -> Exception:
    from torch import OutOfMemoryError  # not before it is needed: nothing here loads torch

    return OutOfMemoryError(words)


_Make = Callable[[str], Exception]
# What an engine may end with, and how it is made again at the other end. Of several the first says most:
# where one fails, the others are only stopped.
_KINDS: Final[dict[str, tuple[Callable[[BaseException], bool], _Make]]] = {
    "gpu memory": (is_gpu_memory, _out_of_gpu_memory),
    "host memory": (is_host_memory, MemoryError),
    "not finite": (lambda error: isinstance(error, FloatingPointError), FloatingPointError),
    "room": (lambda error: isinstance(error, OutOfRoomError), OutOfRoomError),
    "engine": (lambda error: isinstance(error, EngineError), EngineError),
    "value": (lambda error: isinstance(error, ValueError), ValueError),
    "stopped": (lambda error: isinstance(error, SamplingStopped), SamplingStopped),
    "judging stopped": (lambda error: isinstance(error, JudgingStopped), JudgingStopped),
    "unknown": (lambda _error: True, EngineError),
}


def failure(error: Exception, who: str) -> Message:
    """An error as what is said of it. `who`: the process, named where nobody foresaw the error."""
    kind = next(kind for kind, (is_it, _) in _KINDS.items() if is_it(error))
    words = str(error)
    if kind == "unknown":
        first = (words.strip().splitlines() or ["no message"])[0].rstrip(".")
        words = f"{who} failed: {type(error).__name__}: {first}. Its log is under Events; retry the run."
    return {"say": "failed", "kind": kind, "words": words}


def error_of(failures: list[Message]) -> Exception:
    """The error that was said, of several the one that says most."""
    order = ["unknown", *_KINDS]
    first = min(failures, key=lambda said: order.index(said["kind"]))
    return _KINDS[first["kind"]][1](first["words"])
