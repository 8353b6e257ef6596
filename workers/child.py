"""The trainer as a child process: start it, read it, signal it, end it. It does not know what the lines mean.

Four nets keep it from outliving its supervisor: a death signal, a pipe that it watches, beats on that pipe
that stop when the supervisor is frozen, and a mark in its environment by which the reaper finds it and
whatever it started.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from webapp.embedded import processes
from webapp.embedded.leftovers import MARK, temporary_folder
from webapp.embedded.processes import Identity
from workers.limits import BEAT_SECONDS, MAX_LINE_BYTES, MAX_LOG_BYTES, STDERR_TAIL_BYTES

_CHUNK = 2**20
# All that a child which runs a model gets to know of our environment: no keys, tokens or addresses.
_PASSED_ON = frozenset(
    {"PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH"}
    | {"PYTHONUNBUFFERED", "VIRTUAL_ENV", "ARBORIST_TORCH_THREADS"}
    | {processes.MARK}  # by which the local stack finds what it has started
)
_PASSED_ON_FAMILIES = ("LC_", "OMP_", "MKL_", "OPENBLAS_", "MALLOC_", "CUDA_", "NVIDIA_", "NCCL_", "PYTORCH_")


def passed_on(env: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that the trainer is given; hubs and telemetry are switched off in it."""
    kept = {k: v for k, v in env.items() if k in _PASSED_ON or k.startswith(_PASSED_ON_FAMILIES)}
    return kept | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class Lines:
    """Cuts a byte stream into lines of at most `MAX_LINE_BYTES`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self.is_overlong = False

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends. After an overlong one nothing more comes."""
        if self.is_overlong:
            return []
        self._buffer += data
        lines = []
        while (end := self._buffer.find(b"\n", self._searched)) >= 0:
            lines.append(bytes(self._buffer[:end]))
            del self._buffer[: end + 1]
            self._searched = 0
        self._searched = len(self._buffer)
        if self._searched > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
            self.is_overlong = True
            self._buffer.clear()
            return [line for line in lines if len(line) <= MAX_LINE_BYTES]
        return lines

    def rest(self) -> bytes:
        """What came after the last line end."""
        return bytes(self._buffer)


class TrainerChild:
    """`python -m trainer …`. Start it from the thread that stays: its death signal comes when that ends."""

    def __init__(
        self, argv: Sequence[str], *, mark: str, env: Mapping[str, str], cwd: Path, log: Path
    ) -> None:
        self.mark = mark
        self.lines = Lines()
        self._tail = bytearray()
        self._log = log.open("ab", buffering=0)
        self._logged = 0
        temporary = temporary_folder(mark)
        watched, self._held = os.pipe2(os.O_CLOEXEC)
        try:
            temporary.mkdir(mode=0o700)
            self._popen = subprocess.Popen(
                processes.guarded([*argv, "--parent-fd", str(watched)], death_signal=signal.SIGKILL),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[watched],
                env=passed_on(env) | {MARK: mark, "TMPDIR": str(temporary)},
                cwd=cwd,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._held)
            self._log.close()
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(watched)
        self.identity = Identity.of(self._popen.pid) or Identity(self._popen.pid, 0)
        self._selector = selectors.DefaultSelector()
        self._open = {self._fileno(self._popen.stdout), self._fileno(self._popen.stderr)}
        self._stdout = self._fileno(self._popen.stdout)
        self._is_held = False
        for fd in self._open:
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ)
        os.set_blocking(self._held, False)
        self._is_ending = threading.Event()
        self._beats = threading.Thread(target=self._beat, name=f"beats-{mark}", daemon=True)
        self._beats.start()
        with contextlib.suppress(OSError):  # a small pipe only makes the trainer wait sooner
            fcntl.fcntl(self._stdout, fcntl.F_SETPIPE_SZ, _CHUNK)

    def _beat(self) -> None:
        """Tell the trainer that this process is not frozen; it ends itself when it hears that no more."""
        while not self._is_ending.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # it has ended, or does not read: neither is our matter here
                os.write(self._held, b".")

    @staticmethod
    def _fileno(stream: IO[bytes] | None) -> int:
        if stream is None:
            raise RuntimeError("subprocess gave no pipe")
        return stream.fileno()

    def read(self, timeout: float, *, hold: bool = False) -> list[bytes]:
        """Lines of standard output, waited for up to `timeout` seconds. Standard error goes to the log.

        `hold`: leave standard output in its pipe, so that the trainer waits.
        """
        if hold != self._is_held and self._stdout in self._open:
            self._is_held = hold
            if hold:
                self._selector.unregister(self._stdout)
            else:
                self._selector.register(self._stdout, selectors.EVENT_READ)
        lines: list[bytes] = []
        for key, _ in self._selector.select(timeout):
            try:
                data = os.read(key.fd, _CHUNK)
            except BlockingIOError:
                continue
            if not data:
                self._selector.unregister(key.fd)
                self._open.discard(key.fd)
            elif key.fd == self._stdout:
                lines += self.lines.feed(data)
            else:
                self._keep_error(data)
        return lines

    def _keep_error(self, data: bytes) -> None:
        self._tail += data
        del self._tail[:-STDERR_TAIL_BYTES]
        if self._logged < MAX_LOG_BYTES:
            self._logged += len(data)
            with contextlib.suppress(OSError):  # a full disk: the log has a hole, and the run goes on
                self._log.write(data)

    @property
    def is_silent(self) -> bool:
        """Whether both pipes are closed: nothing more will come."""
        return not self._open

    def is_alive(self) -> bool:
        if self._popen.returncode is not None:
            return False
        # Look without reaping: until `end`, neither its pid nor its group can be anyone else's.
        return os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def ask_to_stop(self) -> None:
        """SIGTERM to the trainer alone; what it started it stops itself."""
        if self._popen.returncode is None:
            os.kill(self._popen.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to its whole group."""
        if self._popen.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)

    def error_tail(self) -> str:
        """The last of standard error, as text for people."""
        return self._tail.decode("utf-8", errors="replace")

    def end(self) -> int:
        """Kill what is left of it and reap it. Returns minus the signal's number, or the exit status."""
        self.kill()
        status = self._popen.wait()
        self._is_ending.set()
        self._beats.join()
        processes.end_marked(self.mark, variable=MARK)
        shutil.rmtree(temporary_folder(self.mark), ignore_errors=True)
        self._selector.close()
        for stream in (self._popen.stdout, self._popen.stderr):
            if stream is not None:
                stream.close()
        self._log.close()
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
        return status
