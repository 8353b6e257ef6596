"""Kill a process that only saves, again and again: python -m tests.resume.saving KILLS SEED FOLDER.

After every kill all checkpoints that are listed are read back in full, and the one that was last told of must
be among them. Prints one JSON object. Every killed process is a fork of this one, which loads no model: that
starts threads, and a process with threads forks badly.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError
from safetensors.torch import load_file

from trainer.checkpoint import CheckpointError, TrainerState, read_checkpoint, save_checkpoint
from trainer.checkpoint_folder import FOLDER, list_checkpoints, remove_unfinished, step_of
from trainer.optim import Optimiser
from trainer.policy import load_policy
from trainer.presets import PRESETS
from trainer.schema.training import TrainingConfig

CONFIG = PRESETS["grpo-tiny"].config
KEEP = 2


def save_for_ever(folder: Path, first: int, told: int) -> NoReturn:
    """Some steps twice, with other weights, as after a resume that is not bit for bit."""
    policy = load_policy(CONFIG.model.path)
    optimiser = Optimiser(policy, TrainingConfig())
    step = first
    while True:
        for change in (0.0, 1e-3) if step % 3 == 0 else (0.0,):
            for parameter in policy.named_parameters().values():
                parameter.data.add_(change)
            save_checkpoint(
                *(folder, CONFIG, replace(TrainerState(), step=step), policy, optimiser), keep_last=KEEP
            )
            os.write(told, step.to_bytes(4, "little"))
        step += 1


def bad_loads(folder: Path) -> int:
    """How many of the listed checkpoints are not whole."""
    bad = 0
    for path in list_checkpoints(folder):
        try:
            state, _ = read_checkpoint(path)
            tensors = [load_file(file) for file in path.rglob("*.safetensors")]
            is_whole = state.step == step_of(path) and len(tensors) == 2
        except (CheckpointError, OSError, SafetensorError):
            is_whole = False
        bad += not is_whole
    return bad


def main(kills: int, seed: int, folder: Path) -> dict[str, int]:
    """`lost`: checkpoints that were told of and are not there; `caught`: kills that left something behind."""
    choose = random.Random(seed)
    found = {"kills": kills, "saved": 0, "bad": 0, "lost": 0, "caught": 0, "left": 0}
    last = 0
    for _ in range(kills):
        hear, told = os.pipe()
        child = os.fork()
        if not child:
            os.close(hear)
            save_for_ever(folder, last + 1, told)
        os.close(told)
        os.read(hear, 4)
        last += 1
        time.sleep(choose.uniform(0.0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        more = b""
        while chunk := os.read(hear, 4096):
            more += chunk
        os.close(hear)
        last = int.from_bytes(more[-4:], "little") if more else last
        names = [path.name for path in (folder / FOLDER).iterdir()]
        found["caught"] += any("." in name for name in names)
        remove_unfinished(folder)
        listed = [step_of(path) for path in list_checkpoints(folder)]
        found["lost"] += last not in listed
        found["bad"] += bad_loads(folder)
        found["left"] += any("." in path.name for path in (folder / FOLDER).iterdir())
        last = max(listed)
    found["saved"] = last
    return found


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))  # noqa: T201 (the answer)
