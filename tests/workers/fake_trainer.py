"""Stands in for `python -m trainer`: says what its scenario says, then behaves as told. For tests only.

fake_trainer.py SCENARIO CONFIG.yaml --output DIR [--resume|--fork CHECKPOINT] --parent-fd N
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from pydantic import BaseModel

from trainer.config_file import config_from_yaml
from trainer.events import CheckpointSaved, Finished, LogLine, Metrics, Progress, Started

scenario, config_path, _, output, *rest = sys.argv[1:]
resume = next((rest[rest.index(word) + 1] for word in ("--resume", "--fork") if word in rest), None)
parent = int(rest[rest.index("--parent-fd") + 1])
config = config_from_yaml(Path(config_path).read_bytes())
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda _n, _f: asked.set())


def watch() -> None:
    while os.read(parent, 1):
        pass
    os._exit(7)


threading.Thread(target=watch, daemon=True).start()


def say(event: BaseModel | bytes) -> None:
    line = event if isinstance(event, bytes) else event.model_dump_json().encode()
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def step(number: int) -> None:
    say(Metrics(time=time.time(), step=number, values={"reward/mean": number / 10}))


def save(number: int) -> None:
    folder = Path(output) / "checkpoints" / f"step-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_bytes(b"w" * number)
    manifest = {"files": {"weights": {"bytes": number, "sha256": hashlib.sha256(b"w" * number).hexdigest()}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    path = f"checkpoints/step-{number}"
    say(CheckpointSaved(time=time.time(), step=number, path=path, bytes=number, weights_sha256="b" * 64))


def end(outcome: str, number: int, reason: str) -> None:
    weights = "d" * 64
    say(Finished(time=time.time(), outcome=outcome, step=number, reason=reason, weights_sha256=weights))


first = int(Path(resume).name.removeprefix("step-")) if resume else 0
say(
    Started(
        time=time.time(),
        step=first,
        resumed_from=Path(resume).name if resume else None,
        config_sha256=config.sha256(),
        weights_sha256="a" * 64,
        parameters=1,
        engine="fake",
        device="cpu",
        versions={"model": config.model.path},
        training_problems=None,
        evaluation_problems=1,
    )
)

match scenario:
    case "three steps":
        for number in range(first + 1, 4):
            say(Progress(time=time.time(), step=number, phase="sampling", done=1, total=2))
            step(number)
        end("succeeded", 3, "All 3 steps are done.")
    case "polite":  # steps until it is asked to stop, then saves
        number = first
        while not asked.wait(0.02):
            number += 1
            step(number)
        save(number)
        end("stopped", number, f"Stopped after step {number}, as asked.")
    case "deaf":  # steps, and does not listen
        number = 0
        while True:
            number += 1
            step(number)
            time.sleep(0.05)
    case "says it failed":
        step(1)
        end("failed", 1, "The loss became NaN at step 1.")
        sys.exit(1)
    case "traceback":
        step(1)
        raise ValueError("seed is odd")
    case "out of memory":
        raise MemoryError
    case "segfault":
        step(1)
        os.kill(os.getpid(), signal.SIGSEGV)
    case "killed":
        step(1)
        os.kill(os.getpid(), signal.SIGKILL)
    case "leaves without a word":
        step(1)
    case "half a line":
        sys.stdout.buffer.write(b'{"kind":"metrics","time":1,"st')
        sys.stdout.buffer.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    case "broken event":
        say(b'{"kind":"metrics","time":1,"step":1,"values":{"bad name":1}}')
        asked.wait(20)
        end("stopped", 1, "Stopped, as asked.")
    case "endless line":
        chunk = b"{" + b"x" * 2**20
        while not asked.is_set():
            try:
                os.write(1, chunk)
            except BrokenPipeError:
                break
    case "stray prints":
        for number in range(103):
            say(b"Loading weights: %d%%" % number)
        end("succeeded", 0, "Done.")
    case "odd text":
        say(b'{"kind":"log","time":1,"level":"info","message":"a\\u0000b \\ud83d <script>alert(1)</script>"}')
        say(b'{"kind":"metrics","time":1,"step":1,"values":{"reward/mean":"NaN"}}')
        end("succeeded", 1, "Done.")
    case "stays after finishing":
        end("succeeded", 0, "Done.")
        time.sleep(600)
    case "leaves a child behind":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        end("succeeded", 0, "Done.")
    case "clock jumps":
        say(b"a line that is no event, so that the worker looks at its own clock")
        for number, away in enumerate((0, 7200, -7200, -10 * 365 * 86400), 1):
            say(Metrics(time=time.time() + away, step=number, values={"reward/mean": number / 10}))
        end("succeeded", 4, "Done.")
    case "stuck with the interpreter":  # as a driver's call that never returns: not one thread runs
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        step(1)
        ctypes.PyDLL(None).sleep(600)
    case "works with a child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        for number in range(1, 10_000):
            step(number)
            time.sleep(0.05)
    case "many events":
        for number in range(1, 3001):
            step(number)
        end("succeeded", 3000, "Done.")
    case other:
        say(LogLine(time=time.time(), level="error", message=f"unknown scenario {other}"))
