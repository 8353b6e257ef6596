"""Nothing that a run holds in memory is forgotten: a resumed run holds what the unbroken one holds.

The tests of `test_resume` drop what is saved, part by part. These find what nobody thought of saving: every
value that can be reached from the run, just before the first step after the checkpoint, is compared between
the unbroken and the resumed process. What differs must stand in `NOT_STATE`, with the reason why it decides
nothing.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.test_resume import HALF, Story, config_of
from trainer import loop
from trainer.checkpoint import list_checkpoints

NOT_STATE = {
    "run.is_packing_checked": "every process checks its first batch; a check changes nothing",
    "run.accuracy": "of the last evaluation; counts only for the checkpoint of that very step",
    "run.sampled_tokens": "of the last step; begins anew with the next",
    "run.optimiser.adamw.adamw.param_groups.0.lr": "set before every update, from the step",
    "run.engine.spent": "only differences of it are used",
    "run.engine._most_written": "where halving begins when memory runs out; rows at once decide no tree",
    "run.optimiser._largest": "where halving begins when memory runs out; the size it led to is kept",
    "run.engine.figures_of_last": "of the last call of sample: metrics of its step",
    "run.engine.sync_seconds": "of this process's clock: how long the last copy of the weights took",
    "run.figures": "of the engine when it sampled last: metrics of that step",
    "run.agreement": "of the last comparison of engine and policy: a metric of its step",
    "run.saved_at": "of this process's clock: when the next checkpoint by time is due, not what is learned",
    "run.judge": "processes that judge: an answer's verdict depends on the answer alone",
}
PRESETS_HERE: dict[str, dict[str, Any]] = {
    "dapo-tiny": {"model": {"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}},
    "rest-mcts-tiny": {},
    "mcts-dpo-tiny": {},
    "chord-tiny": {"training": {"updates_per_step": 2}},
}


def in_memory(thing: Any, path: str, found: dict[str, str], seen: set[int]) -> dict[str, str]:
    """Every value below `thing`, by its path. `Any`: whatever a run holds."""
    if isinstance(thing, torch.Tensor):
        found[path] = f"{thing.dtype} {_hash(thing.detach().float().cpu().numpy())}"
    elif isinstance(thing, np.ndarray):
        found[path] = f"{thing.dtype} {_hash(thing)}"
    elif isinstance(thing, str | bytes | int | float | bool | Path | type(None) | np.generic):
        found[path] = repr(thing)
    elif id(thing) in seen:
        return found
    else:
        seen.add(id(thing))
        for name, part in _parts(thing):
            in_memory(part, f"{path}.{name}", found, seen)
    return found


def _hash(array: np.ndarray[Any, Any]) -> str:
    return sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]


def _parts(thing: Any) -> list[tuple[str, Any]]:
    if isinstance(thing, torch.nn.Module):
        return [*thing.named_parameters(), *thing.named_buffers(), ("training", thing.training)]
    if isinstance(thing, torch.optim.Optimizer):
        return [(f"adamw.{k}", v) for k, v in thing.state_dict().items()]
    if isinstance(thing, np.random.Generator):
        return [("generator", repr(thing.bit_generator.state))]
    if isinstance(thing, dict | Counter):
        return [(str(key), part) for key, part in thing.items()]
    if isinstance(thing, list | tuple | deque):
        return [(str(number), part) for number, part in enumerate(thing)]
    if isinstance(thing, set | frozenset):
        return [("set", repr(sorted(map(repr, thing))))]
    if type(thing).__module__.startswith("trainer"):
        slots = [s for kind in type(thing).__mro__ for s in getattr(kind, "__slots__", ())]
        held = {
            name: getattr(thing, name) for name in slots if not name.startswith("__") and hasattr(thing, name)
        }
        return list((held | getattr(thing, "__dict__", {})).items())
    return []


def before_step(step: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Filled when a run comes to that step."""
    found: dict[str, str] = {}
    sample = loop._Run.sample

    def looked_at(run: Any, at: int) -> Any:
        if at == step and not found:
            in_memory(run, "run", found, set())
        return sample(run, at)

    monkeypatch.setattr(loop._Run, "sample", looked_at)
    return found


@pytest.mark.parametrize("slug", PRESETS_HERE)
def test_a_resumed_run_holds_what_the_unbroken_one_holds(
    slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(slug, 4, HALF + 1, **PRESETS_HERE[slug])
    unbroken = before_step(HALF + 1, monkeypatch)
    Story(config, tmp_path / "whole")
    monkeypatch.undo()
    (last,) = [path for path in list_checkpoints(tmp_path / "whole") if path.name == f"step-{HALF}"]
    resumed = before_step(HALF + 1, monkeypatch)
    Story(config, tmp_path / "whole", last)
    assert len(unbroken) > 100  # it did look
    differing = {path for path in unbroken.keys() | resumed.keys() if unbroken.get(path) != resumed.get(path)}
    unknown = {path for path in differing if not path.startswith(tuple(NOT_STATE))}
    assert unknown == set()


def test_a_value_that_is_not_saved_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the test above would prove nothing."""
    count = loop._Run.count

    def with_a_baseline(run: Any, step: int, *rest: Any) -> None:
        count(run, step, *rest)
        run.optimiser.baseline = 0.9 * getattr(run.optimiser, "baseline", 0.0) + step

    monkeypatch.setattr(loop._Run, "count", with_a_baseline)
    config = config_of("grpo-tiny", 4, HALF + 1)
    found = []
    for resume in (None, tmp_path / "run" / "checkpoints" / f"step-{HALF}"):
        with monkeypatch.context() as patch:
            found.append(before_step(HALF + 1, patch))
            Story(config, tmp_path / "run", resume)
    assert found[0]["run.optimiser.baseline"] != found[1].get("run.optimiser.baseline")


def test_global_random_numbers_are_no_state(tmp_path: Path) -> None:
    """Nobody draws from them, so there is nothing to save: whatever they are, the run is the same."""

    def stirred(seed: int, act: Callable[[], Story]) -> Story:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return act()

    config = config_of("dapo-tiny", 3)
    whole = stirred(1, lambda: Story(config, tmp_path / "whole"))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    last = tmp_path / "whole" / "checkpoints" / f"step-{HALF}"
    resumed = stirred(2, lambda: Story(config, tmp_path / "again", last))
    assert resumed.digest() == whole.digest()
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    assert before != after
