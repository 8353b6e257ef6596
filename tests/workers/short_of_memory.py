"""The trainer, but the second of its processes has no memory for micro-batches of more than so many tokens.

python -m tests.workers.short_of_memory TOKENS ARGUMENTS OF THE TRAINER
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import torch

from trainer import __main__ as trainer
from trainer.launcher import launch
from trainer.optim import Optimiser

most = int(sys.argv[1])
usual = Optimiser._loss


def loss(own: Optimiser, batch: Any, **more: Any) -> Any:
    if batch.tokens.size > most and os.environ.get("RANK") == "1":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return usual(own, batch, **more)


Optimiser._loss = loss  # type: ignore[method-assign]  # memory of a real size cannot be made short here
own_command = (sys.executable, "-m", "tests.workers.short_of_memory", str(most))
trainer.launch = partial(launch, command=own_command)  # type: ignore[attr-defined]  # what starts the ranks
status = trainer.main(sys.argv[2:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
