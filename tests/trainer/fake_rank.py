"""What the launcher starts, without a model: beats, and does what its folder is called."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

from trainer.config_file import config_from_yaml
from trainer.guards import BeginSmallerError
from trainer.launcher import RANK_SIGNALS, STOP_SIGNAL
from trainer.supervised import BEGIN_SMALLER, Alarm, beat, end_with_parent


def serve(number: int, descriptor: int, folder: Path) -> None:
    """As an engine process: tell what its rank said. The third of four is killed once all have."""
    with socket.socket(fileno=descriptor) as rank:
        sys.stderr.write(f"heard {rank.recv(100).decode()}, GPU {os.environ['CUDA_VISIBLE_DEVICES']}\n")
        sys.stderr.flush()
        folder.mkdir(exist_ok=True)
        (folder / str(number)).touch()
        while number == 2:
            if len(list(folder.iterdir())) == 4:
                time.sleep(0.3)  # for the lines to be passed on
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.05)
        rank.recv(100)
    sys.exit(0)


def main() -> None:
    options = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
    engine = "--engine" in options
    rank = int(options["--engine" if engine else "--rank"])
    act = Path(options["--output"]).name
    config_from_yaml(sys.stdin.buffer.read())
    signal.signal(STOP_SIGNAL, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, RANK_SIGNALS)
    end_with_parent(int(options["--parent-fd"]))
    beat(int(options["--beat-fd"]))
    if engine:
        serve(rank, int(options["--rank-fd"]), Path(options["--output"]))
    sys.stderr.write(f"environment {os.environ['RANK']} of {os.environ['WORLD_SIZE']}\n")
    sys.stderr.flush()
    if "--engine-fds" in options:  # say hello to each, as nobody else can
        for descriptor in options["--engine-fds"].split(","):
            socket.socket(fileno=os.dup(int(descriptor))).sendall(f"rank {rank}".encode())
    if rank == 1:
        time.sleep(0.3)
        if act == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "frozen":
            os.kill(os.getpid(), signal.SIGSTOP)
        if act == "hangs":
            with Alarm("it did not come back", seconds=0.4):
                time.sleep(60)
        if act == "fails":
            sys.exit("ValueError: nothing left")
        if act == "short":
            sys.stderr.write(f"trainer.guards.BeginSmallerError: {BeginSmallerError('Out of memory', 256)}\n")
            sys.exit(BEGIN_SMALLER)
        if act == "stop":
            os.kill(os.getppid(), signal.SIGTERM)
    if act == "both" or (act == "ends" and rank == 0):
        time.sleep(0.5)
        sys.exit(1 if act == "both" else 0)
    time.sleep(60)


main()
