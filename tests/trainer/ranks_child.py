"""One of two ranks that train each config of a file, as `python -m trainer` would, in one pair of processes.

python tests/trainer/ranks_child.py CASES.json FOLDER    with torchrun's environment and STORE_FD
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import torch

from trainer.config import RunConfig
from trainer.events import Event
from trainer.loop import train
from trainer.parallel import Group
from trainer.supervised import Place


def main() -> None:
    torch.set_num_threads(1)
    cases, folder = json.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    store = int(os.environ["STORE_FD"]) if rank == 0 else None
    group = Group(Place(rank, size, port, store), torch.device("cpu"))
    for name, case in cases.items():
        events: list[Event] = []
        resource.setrlimit(resource.RLIMIT_FSIZE, (case["most_file_bytes"], resource.RLIM_INFINITY))
        outcome = train(
            RunConfig.model_validate(case["config"]),
            emit=events.append,
            should_stop=lambda: False,
            run_dir=folder / name,
            resume=[Path(path) for path in case["resume"]] or None,
            group=group,
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        said = {"outcome": outcome.outcome, "weights": outcome.weights_sha256}
        (folder / f"{name}-{rank}.json").write_text(json.dumps(said))
        lines = [event.model_dump_json() for event in events]
        (folder / f"{name}-{rank}.jsonl").write_text("\n".join(lines))


main()
