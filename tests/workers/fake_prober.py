"""Stands for `python -m trainer.probing`: does what its first argument says, with the request it is given.

It asks the request how many there are, so that the worker's side of the protocol is real.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

how, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201


def sample(numbers: list[int]) -> None:
    for number in numbers:
        say(
            kind="continuation", number=number, tokens=[number], logprobs=[-1.0], entropies=[0.5],
            text=f"text {number}\x00", finish="eos", verdict="correct", answer="71", reward=1.0,
        )  # fmt: skip


say(kind="begun", prefix_tokens=len(request["prompt_tokens"]))
if how == "all":
    sample(request["numbers"])
    say(kind="ended", outcome="done", reason="")
elif how == "hang":
    sample(request["numbers"][:2])
    time.sleep(600)
elif how == "die":
    sample(request["numbers"][:2])
    sys.exit("ValueError: a bad day")
elif how == "nonsense":
    say(kind="continuation", number="first")
    time.sleep(600)
elif how == "grow":
    sample(request["numbers"][:1])
    held = bytearray(200 * 2**20)
    time.sleep(600)
