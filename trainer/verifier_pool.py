"""Judges answers in child processes that can be ended: a hang, a bomb or a crash costs the one answer it was.

Each child takes a batch and says after every answer what it found. One that says nothing for the time
limit, or dies, is replaced; the answer it was at has the verdict error, the rest of its batch goes to the
new one. An error is no verdict: that leaf has no reward, and it is counted.
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
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any, Final, Self

START_SECONDS: Final = 60.0
BATCH: Final = 64
CHILDREN: Final = 2
MAX_TEXT_LETTERS: Final = 1_000_000

Answer = tuple[str, bool, str]
"""(text, whether the policy ended it, reference answer)."""

logger = logging.getLogger(__name__)


class VerifierError(ValueError):
    """The verifier cannot be used at all; the message says why and what to do."""


class _Child:
    """One process, and what it still owes."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # Only what it imports from us; not the environment's secrets.
        env = {
            name: os.environ[name]
            for name in ("PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV")
            if name in os.environ
        }
        env |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUTF8": "1"}
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
        self.owes: deque[int] = deque()  # numbers of answers, in order
        self.since = time.monotonic()
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


class VerifierPool:
    """`settings`: the verifier's knobs as JSON, `kind`, `timeout_seconds` and `memory_mb` among them.
    Children start
    with the first answers. Use it as a context, or `close` it.
    """

    def __init__(self, settings: dict[str, Any], *, children: int = CHILDREN) -> None:
        self._settings = settings
        self._timeout = float(settings["timeout_seconds"])
        self._most = children
        self._children: list[_Child] = []
        self.troubles: Counter[str] = Counter()  # since the last `take_troubles`

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all children."""
        for child in self._children:
            child.end()
        self._children.clear()

    def start(self) -> None:
        """Start the first child now. Raises VerifierError when the verifier cannot be used."""
        if not self._children:
            self._children.append(self._new())

    def take_troubles(self) -> Counter[str]:
        """What went wrong since the last call: {"timeout": 2, "memory": 1, …}."""
        taken, self.troubles = self.troubles, Counter()
        return taken

    def judge(self, answers: Sequence[Answer]) -> list[tuple[str, str]]:
        """[(correct, incorrect, unparsed, truncated or error; the answer that was read, or what went
        wrong)], in order.
        Raises VerifierError.
        """
        found: list[tuple[str, str]] = [("error", "")] * len(answers)
        waiting: deque[deque[int]] = deque()
        for start in range(0, len(answers), BATCH):
            waiting.append(deque(range(start, min(start + BATCH, len(answers)))))
        wanted = min(self._most, len(waiting))
        while len(self._children) < wanted:
            self._children.append(self._new())
        busy = self._children[:wanted]
        for child in busy:
            self._hand_out(child, waiting, answers)
        while any(child.owes for child in busy):
            ready, _, _ = select.select([child.stdout for child in busy if child.owes], [], [], 0.05)
            for place, child in enumerate(busy):
                if not child.owes:
                    continue
                said = child.lines() if child.stdout in ready else []
                if said:
                    for verdict, answer in said:
                        number = child.owes.popleft()
                        found[number] = (verdict, answer)
                        if verdict == "error":
                            self.troubles["memory" if answer == "memory" else "failed"] += 1
                    child.since = time.monotonic()
                    if not child.owes:
                        self._hand_out(child, waiting, answers)
                elif said is None:
                    self._replace(busy, place, "crashed", found, waiting, answers)
                elif time.monotonic() - child.since > self._timeout:
                    self._replace(busy, place, "timeout", found, waiting, answers)
        return found

    def _hand_out(self, child: _Child, waiting: deque[deque[int]], answers: Sequence[Answer]) -> None:
        if not waiting:
            return
        child.owes = waiting.popleft()
        child.since = time.monotonic()
        child.send(
            [
                (text[-MAX_TEXT_LETTERS:], ended, reference)
                for text, ended, reference in (answers[n] for n in child.owes)
            ]
        )

    def _replace(
        self,
        busy: list[_Child],
        place: int,
        trouble: str,
        found: list[tuple[str, str]],
        waiting: deque[deque[int]],
        answers: Sequence[Answer],
    ) -> None:
        """End a child; the answer it was at is an error, the rest goes on elsewhere."""
        child = busy[place]
        found[child.owes.popleft()] = ("error", trouble)
        self.troubles[trouble] += 1
        if child.owes:
            waiting.appendleft(child.owes)
        child.end()
        fresh = self._new()
        self._children[self._children.index(child)] = busy[place] = fresh
        self._hand_out(fresh, waiting, answers)

    def _new(self) -> _Child:
        """A child that is ready. Raises VerifierError."""
        child = _Child(self._settings)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            select.select([child.stdout], [], [], 0.2)
            said = child.lines()
            if said is None:
                break
            if said:
                word, reason = said[0]
                if word == "ready":
                    return child
                child.end()
                raise VerifierError(reason)
        status = child.process.poll()
        child.end()
        raise VerifierError(
            f"The verifier's process did not start within {START_SECONDS:.0f} s (exit status {status}); "
            f"the log says why."
        )


def in_words(troubles: Counter[str], timeout: float, memory_mb: int) -> str:
    """`3 answers have no verdict: 2 took longer than 2 s, 1 needed more than 512 MB.`"""
    words = {
        "timeout": f"took longer than {timeout:g} s",
        "memory": f"needed more than {memory_mb} MB",
        "crashed": "ended the verifier's process",
        "failed": "made the verifier fail",
    }
    parts = ", ".join(f"{count} {words[kind]}" for kind, count in sorted(troubles.items()))
    total = sum(troubles.values())
    return f"{total} answer{'s have' if total != 1 else ' has'} no verdict and no reward: {parts}."
