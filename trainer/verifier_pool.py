"""Judges answers in child processes that can be ended: a hang, a bomb or a crash costs the one answer it was.

Each child takes a batch and says after every answer what it found. One that says nothing for the time
limit, runs out of memory or dies is replaced; the rest of its batch goes on elsewhere. An answer that a child
died of, or ran out of memory at, is tried once more by itself in a new one: what came before it in the same
process must not decide. If that fails as well, and after a time limit at once, its verdict is error. An error
is no verdict: that leaf has no reward, and it is counted.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

START_SECONDS: Final = 60.0
BATCH: Final = 64
BATCH_LETTERS: Final = 2_000_000
CHILDREN: Final = 2
MAX_TEXT_LETTERS: Final = 1_000_000
POLL_SECONDS: Final = 0.05
TRIED_AGAIN: Final = ("memory", "crashed")

Answer = tuple[str, bool, str]
"""(text, whether the policy ended it, reference answer)."""

logger = logging.getLogger(__name__)


class VerifierError(ValueError):
    """The verifier cannot be used at all; the message says why and what to do."""


class JudgingStopped(Exception):  # noqa: N818  # an orderly end, not an error
    """Judging was given up because `should_stop` said so."""


class _Child:
    """One process, and what it still owes: numbers of answers, in order."""

    def __init__(self, settings: dict[str, Any], first: Sequence[int] = ()) -> None:
        # Only what it imports from us; not the environment's secrets.
        env = {
            name: os.environ[name]
            for name in ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV")
            if name in os.environ
        }
        env |= {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONUTF8": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer.verifier_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise VerifierError("The verifier's process has no pipes.")
        self.stdin: IO[bytes] = self.process.stdin
        self.stdout: IO[bytes] = self.process.stdout
        os.set_blocking(self.stdout.fileno(), False)
        self.is_ready = False
        self.first = deque(first)  # what it begins with, before anything that waits
        self.owes: deque[int] = deque()
        self.since = time.monotonic()  # when it last said something or was given something
        self._rest = b""
        self.send(settings)

    def send(self, content: Any) -> None:
        """One JSON line; a child that is gone is noticed when it is read from."""
        try:
            self.stdin.write(json.dumps(content).encode() + b"\n")
            self.stdin.flush()
        except OSError:
            logger.info("A verifier process is gone.")

    def lines(self) -> list[Any] | None:
        """What it has said since; None when it has ended."""
        chunk: bytes | None = self.stdout.read(1 << 20)  # None: nothing there yet
        if chunk is None:
            return []
        if not chunk:
            return None
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        return [json.loads(line) for line in whole]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.stdin, self.stdout):
            try:
                stream.close()
            except OSError:  # what was still to be written to a dead process
                logger.debug("A verifier's pipe was closed already.")


class _Job:
    """The answers of one call: what waits, what was found, what was tried once already."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = answers
        self.found: list[tuple[str, str]] = [("error", "")] * len(answers)
        self.left = len(answers)
        self.tried: set[int] = set()
        self.waiting: deque[deque[int]] = deque()
        batch: deque[int] = deque()
        letters = 0
        for number, (text, _, reference) in enumerate(answers):
            size = min(len(text), MAX_TEXT_LETTERS) + len(reference)
            if batch and (len(batch) == BATCH or letters + size > BATCH_LETTERS):
                self.waiting.append(batch)
                batch, letters = deque(), 0
            batch.append(number)
            letters += size
        if batch:
            self.waiting.append(batch)

    def settle(self, number: int, verdict: str, answer: str) -> None:
        self.found[number] = (verdict, answer)
        self.left -= 1


class VerifierPool:
    """`settings`: the verifier's knobs as JSON, `kind`, `timeout_seconds` and `memory_mb` among them.
    Children start with the first answers. Use it as a context, or `close` it.
    """

    def __init__(self, settings: dict[str, Any], *, children: int = CHILDREN) -> None:
        self._settings = settings
        self._timeout = float(settings["timeout_seconds"])
        self._most = children
        self._children: list[_Child] = []
        self._ended_cpu_seconds = 0.0
        self.troubles: Counter[str] = Counter()  # since the last `take_troubles`
        self.reason = ""  # of the first failure among them

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all children. New answers start new ones."""
        for child in self._children:
            self._end(child)
        self._children.clear()

    def _end(self, child: _Child) -> None:
        self._ended_cpu_seconds += _cpu_seconds(child.process.pid)
        child.end()

    def start(self) -> None:
        """Start the first child now. Raises VerifierError when the verifier cannot be used."""
        try:
            if not self._children:
                self._children.append(_Child(self._settings))
            while not self._children[0].is_ready:
                select.select([self._children[0].stdout], [], [], POLL_SECONDS)
                self._attend(0, _Job([]))
        except BaseException:
            self.close()
            raise

    def cpu_seconds(self) -> float:
        """Spent so far by all of its processes, those that were ended included."""
        return self._ended_cpu_seconds + sum(_cpu_seconds(child.process.pid) for child in self._children)

    def take_troubles(self) -> tuple[Counter[str], str]:
        """What went wrong since the last call: {"timeout": 2, "memory": 1, …}, and the reason of the first
        failure."""
        taken = self.troubles, self.reason
        self.troubles, self.reason = Counter(), ""
        return taken

    def judge(
        self,
        answers: Sequence[Answer],
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> list[tuple[str, str]]:
        """[(correct, incorrect, unparsed, truncated or error; the answer that was read, or what went
        wrong)], in order. Raises VerifierError, and JudgingStopped soon after `should_stop` says so.
        """
        job = _Job(answers)
        try:
            wanted = min(self._most, len(job.waiting))
            while len(self._children) < wanted:
                self._children.append(_Child(self._settings))
            while job.left:
                if should_stop():
                    raise JudgingStopped
                for place in range(wanted):
                    self._attend(place, job)
                speaking = [child.stdout for child in self._children[:wanted]]
                if job.left:
                    select.select(speaking, [], [], POLL_SECONDS)
                on_progress(len(answers) - job.left, len(answers))
        except BaseException:
            self.close()  # they may owe answers that nobody waits for any more
            raise
        return job.found

    def _attend(self, place: int, job: _Job) -> None:
        """Hear a child out, replace it when it is in trouble, give it more when it has nothing to do."""
        child = self._children[place]
        said = child.lines()
        now = time.monotonic()
        for word, rest in said or ():
            child.since = now
            if not child.is_ready:
                if word != "ready":
                    raise VerifierError(rest)
                child.is_ready = True
            elif (word, rest) == ("error", "memory"):
                self._replace(place, "memory", job)
                return
            else:
                job.settle(child.owes.popleft(), word, rest)
                if word == "error":
                    self.troubles["failed"] += 1
                    self.reason = self.reason or rest
        if said is None:
            if not child.is_ready:
                child.end()
                raise VerifierError(
                    "The verifier's process ended before it was ready (exit status "
                    f"{child.process.returncode}); the log says why."
                )
            self._replace(place, "crashed", job)
        elif not child.is_ready:
            if now - child.since > START_SECONDS:
                raise VerifierError(
                    f"The verifier's process was not ready within {START_SECONDS:.0f} s. Is this machine "
                    "overloaded, or does a plug-in do much at import?"
                )
        elif child.owes:
            if now - child.since > self._timeout:
                self._replace(place, "timeout", job)
        elif child.first or job.waiting:
            child.owes = child.first or job.waiting.popleft()
            child.first = deque()
            child.since = now
            child.send(
                [
                    (text[-MAX_TEXT_LETTERS:], *more)
                    for text, *more in map(job.answers.__getitem__, child.owes)
                ]
            )

    def _replace(self, place: int, trouble: str, job: _Job) -> None:
        """End a child. The answer it was at is tried again or an error, the rest goes on elsewhere."""
        child = self._children[place]
        again: list[int] = []
        if child.owes:  # else it was ended by somebody while it waited
            number = child.owes.popleft()
            if trouble in TRIED_AGAIN and number not in job.tried:
                job.tried.add(number)
                again = [number]
            else:
                job.settle(number, "error", trouble)
                self.troubles[trouble] += 1
        if child.owes:
            job.waiting.appendleft(child.owes)
        self._end(child)
        self._children[place] = _Child(self._settings, again)


def _cpu_seconds(pid: int) -> float:
    """Of a child that was not waited for yet, also when it has ended; 0 when it cannot be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def in_words(troubles: Counter[str], timeout: float, memory_mb: int, reason: str = "") -> str:
    """`3 answers have no verdict and no reward: 2 took longer than 2 s, 1 needed more than 512 MB.`"""
    words = {
        "timeout": f"took longer than {timeout:g} s",
        "memory": f"needed more than {memory_mb} MB",
        "crashed": "ended the verifier's process",
        "failed": "made the verifier fail" + (f" ({reason})" if reason else ""),
    }
    parts = ", ".join(f"{count} {words[kind]}" for kind, count in sorted(troubles.items()))
    total = sum(troubles.values())
    return f"{total} answer{'s have' if total != 1 else ' has'} no verdict and no reward: {parts}."
