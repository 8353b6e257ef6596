"""Starts the processes of one run on this machine and watches over them; trains nothing. Torch-free.

`python -m trainer` with `resources.processes` above 1 is this process. It starts one rank per process, with
the environment that torchrun gives (RANK, WORLD_SIZE, MASTER_ADDR, ...). Rank 0 writes the run's events to
our standard output; what any rank writes to standard error comes out of ours, each line after its rank.

The ranks wait for one another all the time, so the end of one is the end of all: whichever dies, fails or
stands still, the others are ended within seconds, and the last line on standard error says which it was. None
outlives this process: the kernel ends a rank with it, and each listens to a pipe that closes with it.
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
from collections.abc import Iterator, Sequence
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


class Rank:
    """One process of the run and the pipes to it."""

    def __init__(
        self, number: int, size: int, command: Sequence[str], config: bytes, store: socket.socket
    ) -> None:
        """`command` begins it; `config` is its standard input, `store` where all will meet."""
        self.number = number
        self.silent = 0.0  # seconds without a beat since the first one, counted while we were awake
        self.has_spoken = self.stood_still = False
        self.rest = self.last_line = b""
        listens, self.speak = os.pipe2(os.O_CLOEXEC)
        self.hear, beats = os.pipe2(os.O_CLOEXEC)
        given = [listens, beats]
        whole = [*command, "--rank", str(number), "--parent-fd", str(listens), "--beat-fd", str(beats)]
        if number == 0:
            given.append(store.fileno())
            whole += ["--store-fd", str(store.fileno())]
        try:
            with tempfile.TemporaryFile() as content:
                content.write(config)
                content.seek(0)
                self.popen = subprocess.Popen(
                    whole,
                    stdin=content,
                    stdout=None if number == 0 else subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=given,
                    env=dict(os.environ) | rank_environment(number, size, store.getsockname()[1]),
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

    def told(self, size: int) -> str:
        """What became of it, of `size` ranks."""
        who = f"process {self.number + 1} of {size} (rank {self.number})"
        if self.stood_still:
            return f"{who} stood still for {self.silent:.0f} seconds and was ended"
        if self.status is not None and self.status < 0:
            return f"{who} was ended by signal {-self.status} ({_signal_name(-self.status)})"
        last = self.last_line.decode("utf-8", errors="replace").strip()[:MOST_LAST_WORDS]
        if self.status == BEGIN_SMALLER:
            what = last.rpartition("Error: ")[2]
            return f"{who}: {what[:1].lower()}{what[1:]}"
        return f"{who} ended with exit status {self.status}" + (f": {last}" if last else "")


def rank_environment(number: int, size: int, port: int) -> dict[str, str]:
    """What torchrun would say, and that all is on this machine: nothing listens beyond the loopback."""
    return {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
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
    """Run the ranks to their end. Returns rank 0's exit status, or what another rank's end means.

    `command`: the trainer's, without its arguments; `patience`: how long a rank may stand still, seconds.
    """
    whole = [*command, "-", "--output", str(output)]
    for checkpoint in resume:
        whole += ["--resume", str(checkpoint)]
    if fork is not None:
        whole += ["--fork", str(fork)]
    if microbatch_tokens:
        whole += ["--microbatch-tokens", str(microbatch_tokens)]
    size = config.resources.processes
    content = config_to_yaml(config).encode()
    ranks: list[Rank] = []
    with _asked_to_stop() as asked:
        try:
            # Bound here and handed on, so that no port is guessed and nothing else can take it.
            with socket.create_server(("127.0.0.1", 0), backlog=size) as store, _held(RANK_SIGNALS):
                for number in range(size):
                    ranks.append(Rank(number, size, whole, content, store))
            status = _watch(ranks, asked, patience)
        finally:
            for rank in ranks:
                _end(rank)
    if len(asked) > 1:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    return status


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


def _watch(ranks: Sequence[Rank], asked: Sequence[int], patience: float) -> int:
    """Returns when rank 0 has ended, or the run cannot go on."""
    size = len(ranks)
    is_told = False
    beat_at = deadline = 0.0
    failed: Rank | None = None
    selector = selectors.DefaultSelector()
    for rank in ranks:
        selector.register(rank.hear, selectors.EVENT_READ, (rank, True))
        selector.register(rank.errors, selectors.EVENT_READ, (rank, False))
    with selector:
        while True:
            _listen(selector, ranks)
            now = time.monotonic()
            if now >= beat_at:
                beat_at = now + BEAT_SECONDS
                for rank in ranks:
                    rank.beat()
            if len(asked) > 1:
                return 1
            if asked and not is_told:
                is_told = True
                for rank in ranks:
                    if not rank.has_ended():
                        rank.popen.send_signal(STOP_SIGNAL)
            ended = [rank for rank in ranks if rank.has_ended()]
            if SUPERVISOR_IS_SILENT in [rank.status for rank in ended]:
                return SUPERVISOR_IS_SILENT
            if gone := [rank for rank in ended if (rank.status or 0) < 0 or rank.status == ENGINE_HANGS]:
                return _said(selector, ranks, gone[0], RANK_DIED)
            if short := [rank for rank in ended if rank.status == BEGIN_SMALLER]:
                return _said(selector, ranks, short[0], BEGIN_SMALLER)
            if still := [rank for rank in ranks if rank.silent >= patience]:
                still[0].stood_still = True
                return _said(selector, ranks, still[0], RANK_DIED)
            first = ranks[0].status
            if first is not None:
                deadline = deadline or now + LEAVE_SECONDS
                if len(ended) == size or now > deadline:
                    _listen(selector, ranks)
                    return first
            elif failed is None:
                failed = next((rank for rank in ended if rank.status), None)
                deadline = now + SETTLE_SECONDS if failed else 0.0
            elif now > deadline:
                return _said(selector, ranks, failed, 1)


def _listen(selector: selectors.BaseSelector, ranks: Sequence[Rank]) -> None:
    """Take beats and lines for a moment; a rank that has ended is no silent one."""
    began = time.monotonic()
    heard = set()
    for key, _ in selector.select(TICK_SECONDS):
        rank, is_beat = key.data
        try:
            content = os.read(key.fd, 2**16)
        except BlockingIOError:
            continue
        if not content:
            selector.unregister(key.fd)
        elif is_beat:
            heard.add(rank.number)
        else:
            _pass_on(rank, content)
    # A machine that slept, or we, are no silence of the rank's.
    waited = min(time.monotonic() - began, 2 * TICK_SECONDS)
    for rank in ranks:
        if rank.number in heard:
            rank.has_spoken, rank.silent = True, 0.0
        elif rank.has_spoken and rank.status is None:
            rank.silent += waited


def _pass_on(rank: Rank, content: bytes) -> None:
    """Whole lines of its standard error, each after its rank."""
    *lines, rank.rest = (rank.rest + content).split(b"\n")
    if len(rank.rest) > MOST_LINE_BYTES:
        lines, rank.rest = [*lines, rank.rest], b""
    rank.last_line = next((line for line in reversed(lines) if line.strip()), rank.last_line)
    for line in lines:
        sys.stderr.buffer.write(b"[rank %d] %s\n" % (rank.number, line))
    sys.stderr.flush()


def _said(selector: selectors.BaseSelector, ranks: Sequence[Rank], rank: Rank, status: int) -> int:
    """Say, as the last thing, which rank it was; its own last words come first."""
    _listen(selector, ranks)
    _say(f"RankError: {rank.told(len(ranks))}")
    return status


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _end(rank: Rank) -> None:
    rank.popen.kill()  # does nothing once it was reaped
    rank.popen.wait()
    if rank.popen.stderr is not None:
        rank.popen.stderr.close()
    os.close(rank.speak)
    os.close(rank.hear)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
