"""One of two ranks that train each config of a file, as `python -m trainer` would, in one pair of processes.

python tests/trainer/ranks_child.py CASES.json FOLDER    with torchrun's environment and STORE_FD
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.test_overlap import failing
from trainer import loop
from trainer.config import RunConfig
from trainer.events import Event, Progress
from trainer.loop import train
from trainer.parallel import Group
from trainer.sampling import vllm_engine
from trainer.supervised import Place

ERRORS = {
    "memory": torch.OutOfMemoryError("CUDA out of memory."),
    "float": FloatingPointError("logits"),
    "unknown": KeyError("unknown"),
}


def main() -> None:
    torch.set_num_threads(1)
    cases, folder = json.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    store = int(os.environ["STORE_FD"]) if rank == 0 else None
    group = Group(Place(rank, size, port, store), torch.device("cpu"))
    for name, case in cases.items():
        events: list[Event] = []
        resource.setrlimit(resource.RLIMIT_FSIZE, (case["most_file_bytes"], resource.RLIM_INFINITY))
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                break_here(patch, **case["breaks"])
            said = ended(case, folder / name, events, group, stop_of(case, events, rank))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (folder / f"{name}-{rank}.json").write_text(json.dumps(said))
        lines = [event.model_dump_json() for event in events]
        (folder / f"{name}-{rank}.jsonl").write_text("\n".join(lines))


def ended(
    case: dict[str, Any], folder: Path, events: list[Event], group: Group, should_stop: Callable[[], bool]
) -> dict[str, str]:
    try:
        outcome = train(
            RunConfig.model_validate(case["config"]),
            emit=events.append,
            should_stop=should_stop,
            run_dir=folder,
            resume=[Path(path) for path in case["resume"]] or None,
            group=group,
        )
    except Exception as error:
        if not case["breaks"]:
            raise
        return {"outcome": type(error).__name__, "reason": str(error)}
    return {"outcome": outcome.outcome, "reason": outcome.reason, "weights": outcome.weights_sha256}


def break_here(
    patch: pytest.MonkeyPatch, fails: str = "", step: int = 0, times: int = 1, parts: int = 0, **_: Any
) -> None:
    """Rank 1's engine fails beside training when it samples the trees of `step`; or its vLLM chooses another
    token than it should after `parts` others.
    """
    if fails:
        failing(patch, step, ERRORS[fails], times)
    if parts:
        usual, calls = vllm_engine.choose, itertools.count()

        def otherwise(logits: Tensor, *more: Any) -> tuple[Tensor, Tensor, Tensor]:
            chosen, logprobs, entropies = usual(logits, *more)
            if next(calls) == parts:
                chosen = chosen.clone()
                chosen[0] = (chosen[0] + 1) % logits.shape[1]
            return chosen, logprobs, entropies

        patch.setattr(vllm_engine, "choose", otherwise)


def stop_of(case: dict[str, Any], events: list[Event], rank: int) -> Callable[[], bool]:
    """Rank 1 hears of a stop once it is at `stop`, a phase and a step."""
    at = case["breaks"].get("stop")
    loop.PROGRESS_SECONDS = 0.0 if at else 0.5
    return lambda: (
        at is not None
        and rank == 1
        and any([event.phase, event.step] == at for event in events if isinstance(event, Progress))
    )


main()
