"""Starts the processes of one run on this machine and watches over them; trains nothing. Torch-free.

`python -m trainer` with `resources.processes` above 1, or with `resources.engine_processes`, is this process.
It starts one rank per process, with the environment that torchrun gives (RANK, WORLD_SIZE, MASTER_ADDR, ...),
and the engine processes, each with a socket to the rank that it samples for. Rank 0 writes the run's events
to our standard output; what any of them writes to standard error comes out of ours, each line after its name.

They wait for one another all the time, so the end of one is the end of all: whichever dies, fails or stands
still, the others are ended within seconds, and the last line on standard error says which it was. None
outlives this process: the kernel ends each with it, and each listens to a pipe that closes with it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

from trainer.config import RunConfig
from trainer.config_file import config_to_yaml
from trainer.supervised import (
    BEAT_SECONDS,
    BEGIN_SMALLER,
    ENGINE_HANGS,
    SILENT_SECONDS,
    SUPERVISOR_IS_SILENT,
)

TRAINER = (sys.executable, "-m", "trainer")
RANK_DIED = 76  # exit status: a rank was killed, stood still or hung; it may go well another time
STOP_SIGNAL = signal.SIGUSR1  # from here to the ranks
RANK_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, STOP_SIGNAL})
PEER_SECONDS = 10.0  # a rank that lost another one is ended within this time
SETTLE_SECONDS = 3.0  # what one rank fails of may be about to end rank 0 as well, which says it best
LEAVE_SECONDS = 10.0  # rank 0 has said its last word
TICK_SECONDS = 0.1
MOST_LINE_BYTES = 8192
MOST_LAST_WORDS = 500


class Process:
    """One process of the run and the pipes to it: a rank, or an engine process."""

    def __init__(
        self,
        name: str,
        tag: str,
        command: Sequence[str],
        config: bytes,
        *,
        given: Sequence[int],
        environment: Mapping[str, str],
        says_events: bool = False,
    ) -> None:
        """`name`: in sentences; `tag`: before its lines; `command` begins it; `config` is its standard input,
        `given` what it holds open besides. Of one of them what it `says_events` are the run's.
        """
        self.name, self.tag = name, tag
        self.silent = 0.0  # seconds without a beat since the first one, counted while we were awake
        self.has_spoken = self.stood_still = False
        self.rest = self.last_line = b""
        listens, self.speak = os.pipe2(os.O_CLOEXEC)
        self.hear, beats = os.pipe2(os.O_CLOEXEC)
        try:
            with tempfile.TemporaryFile() as content:
                content.write(config)
                content.seek(0)
                self.popen = subprocess.Popen(
                    [*command, "--parent-fd", str(listens), "--beat-fd", str(beats)],
                    stdin=content,
                    stdout=None if says_events else subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=[*given, listens, beats],
                    env={**os.environ, **environment},
                )
        finally:
            os.close(listens)
            os.close(beats)
        self.status: int | None = None
        for descriptor in (self.hear, self.errors):
            os.set_blocking(descriptor, False)
        os.set_blocking(self.speak, False)

    @property
    def errors(self) -> int:
        """Of its standard error."""
        stream: IO[bytes] | None = self.popen.stderr
        if stream is None:
            raise RuntimeError("subprocess gave no pipe")
        return stream.fileno()

    def has_ended(self) -> bool:
        self.status = self.popen.poll()
        return self.status is not None

    def beat(self) -> None:
        """Tell it that we do not stand still."""
        with contextlib.suppress(OSError):  # it has ended, or its pipe is full since it stands still itself
            os.write(self.speak, b".")

    def told(self) -> str:
        """What became of it."""
        if self.stood_still:
            return f"{self.name} stood still for {self.silent:.0f} seconds and was ended"
        if self.status is not None and self.status < 0:
            return f"{self.name} was ended by signal {-self.status} ({_signal_name(-self.status)})"
        last = self.last_line.decode("utf-8", errors="replace").strip()[:MOST_LAST_WORDS]
        if self.status == BEGIN_SMALLER:
            what = last.rpartition("Error: ")[2]
            return f"{self.name}: {what[:1].lower()}{what[1:]}"
        return f"{self.name} ended with exit status {self.status}" + (f": {last}" if last else "")


def rank_environment(number: int, size: int, port: int) -> dict[str, str]:
    """What torchrun would say, and that all is on this machine."""
    return {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    } | _meeting(port)


def engine_environment(port: int, gpu: int | None) -> dict[str, str]:
    """Of an engine process, which is alone in its world. `gpu`: among those of this process, the only one
    that it will see."""
    own = {}
    if gpu is not None:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        own["CUDA_VISIBLE_DEVICES"] = seen[gpu] if gpu < len(seen) and seen[gpu] else str(gpu)
    return _meeting(port) | own


def _meeting(port: int) -> dict[str, str]:
    """Where all meet; nothing listens beyond the loopback."""
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }


def launch(
    config: RunConfig,
    output: Path,
    resume: Sequence[Path],
    fork: Path | None,
    *,
    microbatch_tokens: int = 0,
    command: Sequence[str] = TRAINER,
    patience: float = SILENT_SECONDS,
) -> int:
    """Run all processes to their end. Returns rank 0's exit status, or what another rank's end means.

    `command`: the trainer's, without its arguments; `patience`: how long one may stand still, seconds.
    """
    whole = [*command, "-", "--output", str(output)]
    for checkpoint in resume:
        whole += ["--resume", str(checkpoint)]
    if fork is not None:
        whole += ["--fork", str(fork)]
    if microbatch_tokens:
        whole += ["--microbatch-tokens", str(microbatch_tokens)]
    processes: list[Process] = []
    with _asked_to_stop() as asked:
        try:
            with _held(RANK_SIGNALS):
                _start(processes, config, whole)
            status = _watch(processes, asked, patience)
        finally:
            for process in processes:
                _end(process)
    if len(asked) > 1:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    return status


def _start(processes: list[Process], config: RunConfig, command: Sequence[str]) -> None:
    """Start the ranks, then the engine processes, and put them there; rank 0 comes first. `command` begins
    each.
    """
    size, engines = config.resources.processes, config.resources.engine_processes
    content = config_to_yaml(config).encode()
    with contextlib.ExitStack() as ours:
        # Bound here and handed on, so that no port is guessed and nothing else can take it.
        store = ours.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2 * (size + engines)))
        port = store.getsockname()[1]
        pairs = [socket.socketpair() for _ in range(engines)]
        for one, other in pairs:
            ours.callback(one.close)
            ours.callback(other.close)
        each = engines // size
        for number in range(size):
            own = ["--rank", str(number)]
            given = [pair[0].fileno() for pair in pairs[number * each : (number + 1) * each]]
            if given:
                own += ["--engine-fds", ",".join(map(str, given))]
            if number == 0:
                own += ["--store-fd", str(store.fileno())]
                given.append(store.fileno())
            processes.append(
                Process(
                    f"process {number + 1} of {size} (rank {number})",
                    f"rank {number}",
                    [*command, *own],
                    content,
                    given=given,
                    environment=rank_environment(number, size, port),
                    says_events=number == 0,
                )
            )
        for number, (_, pair) in enumerate(pairs):
            gpu = size + number if config.resources.gpus else None
            processes.append(
                Process(
                    f"engine process {number + 1} of {engines}",
                    f"engine {number + 1}",
                    [*command, "--engine", str(number), "--rank-fd", str(pair.fileno())],
                    content,
                    given=[pair.fileno()],
                    environment=engine_environment(port, gpu),
                )
            )


@contextlib.contextmanager
def _held(signals: frozenset[signal.Signals]) -> Iterator[None]:
    """Inside, they wait, also for what is started: until it can take them (`trainer.__main__`)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """The signals by which we were told to stop so far; the second one is the end."""
    asked: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(processes: Sequence[Process], asked: Sequence[int], patience: float) -> int:
    """Returns when rank 0 has ended, or the run cannot go on."""
    is_told = False
    beat_at = deadline = 0.0
    failed: Process | None = None
    selector = selectors.DefaultSelector()
    for process in processes:
        selector.register(process.hear, selectors.EVENT_READ, (process, True))
        selector.register(process.errors, selectors.EVENT_READ, (process, False))
    with selector:
        while True:
            _listen(selector, processes)
            now = time.monotonic()
            if now >= beat_at:
                beat_at = now + BEAT_SECONDS
                for process in processes:
                    process.beat()
            if len(asked) > 1:
                return 1
            if asked and not is_told:
                is_told = True
                for process in processes:
                    if not process.has_ended():
                        process.popen.send_signal(STOP_SIGNAL)
            ended = [process for process in processes if process.has_ended()]
            if SUPERVISOR_IS_SILENT in [process.status for process in ended]:
                return SUPERVISOR_IS_SILENT
            if gone := [
                process for process in ended if (process.status or 0) < 0 or process.status == ENGINE_HANGS
            ]:
                return _said(selector, processes, gone[0], RANK_DIED)
            if short := [process for process in ended if process.status == BEGIN_SMALLER]:
                return _said(selector, processes, short[0], BEGIN_SMALLER)
            if still := [process for process in processes if process.silent >= patience]:
                still[0].stood_still = True
                return _said(selector, processes, still[0], RANK_DIED)
            first = processes[0].status
            if first is not None:
                deadline = deadline or now + LEAVE_SECONDS
                if len(ended) == len(processes) or now > deadline:
                    _listen(selector, processes)
                    return first
            elif failed is None:
                failed = next((process for process in ended if process.status), None)
                deadline = now + SETTLE_SECONDS if failed else 0.0
            elif now > deadline:
                return _said(selector, processes, failed, 1)


def _listen(selector: selectors.BaseSelector, processes: Sequence[Process]) -> None:
    """Take beats and lines for a moment; a rank that has ended is no silent one."""
    began = time.monotonic()
    heard = set()
    for key, _ in selector.select(TICK_SECONDS):
        process, is_beat = key.data
        try:
            content = os.read(key.fd, 2**16)
        except BlockingIOError:
            continue
        if not content:
            selector.unregister(key.fd)
        elif is_beat:
            heard.add(process)
        else:
            _pass_on(process, content)
    # A machine that slept, or we, are no silence of the rank's.
    waited = min(time.monotonic() - began, 2 * TICK_SECONDS)
    for process in processes:
        if process in heard:
            process.has_spoken, process.silent = True, 0.0
        elif process.has_spoken and process.status is None:
            process.silent += waited


def _pass_on(process: Process, content: bytes) -> None:
    """Whole lines of its standard error, each after its process."""
    *lines, process.rest = (process.rest + content).split(b"\n")
    if len(process.rest) > MOST_LINE_BYTES:
        lines, process.rest = [*lines, process.rest], b""
    process.last_line = next((line for line in reversed(lines) if line.strip()), process.last_line)
    for line in lines:
        sys.stderr.buffer.write(b"[%s] %s\n" % (process.tag.encode(), line))
    sys.stderr.flush()


def _said(
    selector: selectors.BaseSelector, processes: Sequence[Process], process: Process, status: int
) -> int:
    """Say, as the last thing, which rank it was; its own last words come first."""
    _listen(selector, processes)
    _say(f"RankError: {process.told()}")
    return status


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _end(process: Process) -> None:
    process.popen.kill()  # does nothing once it was reaped
    process.popen.wait()
    if process.popen.stderr is not None:
        process.popen.stderr.close()
    os.close(process.speak)
    os.close(process.hear)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
