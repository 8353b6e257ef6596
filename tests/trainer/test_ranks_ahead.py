"""Two processes that sample the next batch beside training are one that does, and end together."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.test_ranks import CLOSE, assert_same, case, ends_of, events_of, furthest, one, two
from trainer.checkpoint import list_checkpoints
from trainer.config import RunConfig
from trainer.events import LogLine, Metrics
from trainer.overlap import FILE, Ahead, Batch
from trainer.rollouts import Rollouts

STEPS = 3


def ahead(slug: str) -> RunConfig:
    values = case(slug).model_dump(mode="json")
    values["training"] |= {"steps": STEPS, "max_staleness": 1}
    values["objective"]["importance"] = {"kind": "truncated"}
    values["evaluation"]["every_steps"] = 0
    return RunConfig.model_validate(values)


# What happens in the second process, while the first one knows nothing of it.
BREAKS: dict[str, dict[str, Any]] = {
    "stopped": {"stop": ["sampling", 3]},
    "stopped at once": {"stop": ["verifying", 1]},
    "short": {"fails": "memory", "step": 2},
    "too short": {"fails": "memory", "step": 2, "times": 2},
    "not finite": {"fails": "float", "step": 2},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all that two processes were asked to do, in one pair of them."""
    folder = tmp_path_factory.mktemp("ranks") / "two"
    config = ahead("treerpo")
    own = folder / "treerpo" / "checkpoints"
    cases = {"treerpo": (config, []), "dapo": (ahead("dapo"), []), "resumed": (config, [own / "step-1"])}
    cases |= {name: (config, []) for name in BREAKS}
    cases |= {"went on": (config, [folder / "stopped" / "checkpoints" / "step-1"])}
    two(cases, folder, breaks=BREAKS)
    return folder


@pytest.mark.process
@pytest.mark.parametrize("slug", ["treerpo", "dapo"])
def test_two_processes_are_one(slug: str, both: Path, tmp_path: Path) -> None:
    config = ahead(slug)
    alone = one(config, tmp_path / "one")
    together = events_of(both, slug)
    assert_same(slug, alone, together)
    stale = [e.values["sampling/staleness"] for e in together if isinstance(e, Metrics) and is_step(e)]
    assert stale == [0, 1, 1]
    whole = tmp_path / "one" / "checkpoints" / f"step-{STEPS}"
    assert furthest(whole, both / slug / "checkpoints" / f"step-{STEPS}") < CLOSE
    if slug == "treerpo":  # the batch in flight of two goes on in one
        half = both / slug / "checkpoints" / "step-1"
        assert (half / FILE).exists()
        one(config, tmp_path / "from two", [half])
        assert furthest(whole, tmp_path / "from two" / "checkpoints" / f"step-{STEPS}") < CLOSE


def is_step(event: Metrics) -> bool:
    return "policy/loss" in event.values


@pytest.mark.process
@pytest.mark.parametrize("name", ["resumed", "went on"])
def test_what_was_broken_off_ends_as_the_unbroken_run(name: str, both: Path) -> None:
    unbroken, ends = ends_of(both, "treerpo")[0], ends_of(both, name)
    assert [end["outcome"] for end in ends] == ["succeeded", "succeeded"]
    assert {end["weights"] for end in ends} == {unbroken["weights"]}


@pytest.mark.process
def test_a_stop_that_one_process_hears_stops_both(both: Path) -> None:
    for name, step in (("stopped", 1), ("stopped at once", 0)):
        ends = ends_of(both, name)
        assert [end["outcome"] for end in ends] == ["stopped", "stopped"], name
        assert [end["reason"] for end in ends] == [f"Stopped after step {step} of {STEPS}, as asked."] * 2
        assert list_checkpoints(both / name)[-1].name == f"step-{step}"


@pytest.mark.process
def test_memory_that_runs_out_beside_training_in_one_process_is_asked_for_once_more_in_both(
    both: Path,
) -> None:
    said = [e.message for e in events_of(both, "short") if isinstance(e, LogLine) and "memory" in e.message]
    assert len(said) == 1
    assert "out of memory (GPU) while sampling" in said[0]
    assert_same("short", events_of(both, "treerpo"), events_of(both, "short"))  # rows are fewer at once
    for end in ends_of(both, "too short"):
        assert end["outcome"] == "OutOfRoomError"
        assert end["reason"].startswith("Out of memory (GPU) while sampling; tried ")


@pytest.mark.process
def test_trees_of_one_process_that_are_not_finite_cost_both_the_step(both: Path) -> None:
    events = events_of(both, "not finite")
    skipped = [
        e.values["policy/skipped_updates"]
        for e in events
        if isinstance(e, Metrics) and "policy/skipped_updates" in e.values
    ]
    assert skipped == [0, 1, 1]
    assert len({json.dumps(end) for end in ends_of(both, "not finite")}) == 1


def test_who_ends_alone_does_not_wait_for_a_thread_that_waits_for_others() -> None:
    others = threading.Event()

    def sample(step: int, _should_stop: Any) -> Batch:
        others.wait(10)
        return Batch(step, Rollouts([], []))

    own = Ahead(lambda: False, torch.device("cpu"))
    own.begin(1, sample)
    began = time.monotonic()
    own.close(0.1)
    assert time.monotonic() - began < 5
    others.set()
