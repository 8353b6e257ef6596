"""Two processes are one: the same trees, losses and weights as one process gives, within 1e-5."""

from __future__ import annotations

import copy
import json
import os
import resource
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.trainer.test_presets import small
from trainer.config import RunConfig
from trainer.data import Problem
from trainer.evaluation import evaluate
from trainer.events import Event, Metrics, TreeSampled, parse_line
from trainer.guards import OutOfRoomError
from trainer.launcher import rank_environment
from trainer.loop import train
from trainer.parallel import is_loss_of_rank
from trainer.policy import Policy
from trainer.ranks import ALONE, Ranks
from trainer.sampling.engine import EngineError, ends_together
from trainer.sampling.local_engine import LocalEngine
from trainer.sampling.lockstep import Lockstep
from trainer.tree import RolloutTree, Verdict
from trainer.verifiers import Judgement

CHILD = Path(__file__).with_name("ranks_child.py")
CLOSE = 1e-5
STEPS = 2
# KL to a reference model and several updates a step, dynamic sampling, pairs, a value head, and an adapter.
SLUGS = ("treerpo", "dapo", "mcts-dpo", "rest-mcts", "lora")


def case(slug: str) -> RunConfig:
    values = small("treerpo-tiny" if slug == "lora" else f"{slug}-tiny").model_dump(mode="json")
    # AdamW moves an element whose whole gradient is rounding by up to the learning rate, this way or that.
    values["training"] |= {"steps": STEPS, "problems_per_step": 4, "learning_rate": 5e-5}
    values["training"]["microbatch_tokens"] = 512  # several, and not equally many on both ranks
    values["checkpoint"]["every_steps"] = 1
    values["recording"]["trees_per_step"] = 4
    values["evaluation"] |= {"problems": 3, "max_tokens": 24}
    if slug == "lora":
        values["model"]["adapter"] = {"kind": "lora", "rank": 4}
        values["training"]["learning_rate"] = 1e-3  # of an adapter, whose gradients are larger
        values["objective"]["regularizer"] = {"kind": "k3", "beta": 0.05}
    if slug == "treerpo":
        values["training"]["updates_per_step"] = 2
        values["objective"]["regularizer"] = {"kind": "k3", "beta": 0.05}
    return RunConfig.model_validate(values)


def two(
    cases: dict[str, tuple[RunConfig, list[Path]]],
    folder: Path,
    *,
    full: frozenset[str] = frozenset(),
    breaks: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Train each in two processes. `full`: those whose disk has no room for a checkpoint; `breaks`: what
    happens in the second process (`ranks_child`).
    """
    folder.mkdir()
    content = {
        name: {
            "config": config.model_dump(mode="json"),
            "resume": [str(path) for path in resume],
            "most_file_bytes": 10**5 if name in full else resource.RLIM_INFINITY,
            "breaks": (breaks or {}).get(name, {}),
        }
        for name, (config, resume) in cases.items()
    }
    (folder / "cases.json").write_text(json.dumps(content))
    children = []
    with socket.create_server(("127.0.0.1", 0)) as store:
        for rank in range(2):
            env = os.environ | rank_environment(rank, 2, store.getsockname()[1])
            env |= {"STORE_FD": str(store.fileno()), "PYTHONPATH": str(Path.cwd())}
            command = [sys.executable, str(CHILD), str(folder / "cases.json"), str(folder)]
            given = [store.fileno()] if rank == 0 else []
            children.append(subprocess.Popen(command, env=env, pass_fds=given))
    try:
        assert [child.wait(timeout=240) for child in children] == [0, 0]
    finally:
        for child in children:
            child.kill()
            child.wait()


def one(config: RunConfig, folder: Path, resume: list[Path] | None = None) -> list[Event]:
    events: list[Event] = []
    train(config, emit=events.append, should_stop=lambda: False, run_dir=folder, resume=resume)
    return events


def events_of(folder: Path, name: str, rank: int = 0) -> list[Event]:
    return [parse_line(line) for line in (folder / f"{name}-{rank}.jsonl").read_text().splitlines()]


def ends_of(folder: Path, name: str) -> list[dict[str, str]]:
    """How both processes ended."""
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]


def numbers(events: list[Event]) -> dict[tuple[int, str], float]:
    return {
        (event.step, name): value
        for event in events
        if isinstance(event, Metrics)
        for name, value in event.values.items()
        if not name.startswith(("speed/", "engine/"))  # clocks; and each process's engine samples its part
    }


def trees(events: list[Event]) -> list[RolloutTree]:
    return [RolloutTree.from_payload(event.payload) for event in events if isinstance(event, TreeSampled)]


def furthest(left: Path, right: Path) -> float:
    """Largest difference of two checkpoints' weights."""
    a, b = (load_file(path / "model" / "model.safetensors") for path in (left, right))
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.process
def test_two_processes_are_one(tmp_path: Path) -> None:
    configs = {slug: case(slug) for slug in SLUGS}
    cases: dict[str, tuple[RunConfig, list[Path]]] = {slug: (own, []) for slug, own in configs.items()}
    # First, so that all that follows shows that the ranks are still in step.
    two({"full": cases["treerpo"]} | cases, tmp_path / "two", full=frozenset({"full"}))
    assert [end["outcome"] for end in ends_of(tmp_path / "two", "full")] == ["paused", "paused"]
    for slug, config in configs.items():
        alone = one(config, tmp_path / "one" / slug)
        together = events_of(tmp_path / "two", slug)
        assert_same(slug, alone, together)
        last = f"checkpoints/step-{STEPS}"
        assert furthest(tmp_path / "one" / slug / last, tmp_path / "two" / slug / last) < CLOSE, slug
        ends = ends_of(tmp_path / "two", slug)
        assert ends[0] == ends[1], "the ranks end with different weights"
        assert ends[0]["outcome"] == "succeeded"
    assert [event.processes for event in together if event.kind == "started"] == [2]

    # A checkpoint of either goes on in the other, and what was saved by two goes on to the bit in two.
    halves = {name: tmp_path / name / "treerpo" / "checkpoints" / "step-1" for name in ("one", "two")}
    config = configs["treerpo"]
    adapted = {"lora": (configs["lora"], [tmp_path / "two" / "lora" / "checkpoints" / "step-1"])}
    two({name: (config, [path]) for name, path in halves.items()} | adapted, tmp_path / "resumed")
    for resumed, slug in (("two", "treerpo"), ("lora", "lora")):
        end, unbroken = ends_of(tmp_path / "resumed", resumed)[0], ends_of(tmp_path / "two", slug)[0]
        assert end["weights"] == unbroken["weights"], slug
    one(config, tmp_path / "from-two", [halves["two"]])
    last = f"checkpoints/step-{STEPS}"
    whole = tmp_path / "one" / "treerpo" / last
    assert furthest(whole, tmp_path / "resumed" / "one" / last) < CLOSE
    assert furthest(whole, tmp_path / "from-two" / last) < CLOSE


def assert_same(slug: str, alone: list[Event], together: list[Event]) -> None:
    left, right = numbers(alone), numbers(together)
    assert left.keys() == right.keys()
    for key, value in left.items():
        if not (np.isnan(value) and np.isnan(right[key])):
            assert right[key] == pytest.approx(value, abs=CLOSE, rel=CLOSE), (slug, key)
    ours, theirs = trees(alone), trees(together)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.problem_id == b.problem_id
        assert np.array_equal(a.tokens, b.tokens)
        assert np.array_equal(a.reward, b.reward, equal_nan=True)
        assert np.allclose(a.advantage, b.advantage, atol=CLOSE, equal_nan=True)
        assert np.allclose(a.logprobs, b.logprobs, atol=5 * CLOSE)


class _Thread(Ranks):
    """A rank that is a thread of this process."""

    def __init__(self, rank: int, said: list[bytes], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(said)
        self._said, self._barrier = said, barrier

    def gather(self, content: bytes) -> list[bytes]:
        self._said[self.rank] = content
        self._barrier.wait(10)
        everyones = list(self._said)
        self._barrier.wait(10)
        return everyones


def test_answers_that_one_rank_cannot_sample_end_the_evaluation_on_all(wild_policy: Policy) -> None:
    problems = [Problem("p", "1+1=", "2")]  # the other rank has nothing to sample
    diverged = copy.deepcopy(wild_policy.model)
    diverged.lm_head.weight.data[0, 0] = float("inf")
    engine = LocalEngine(Policy(diverged, wild_policy.tokenizer, wild_policy.end_ids))
    barrier, said = threading.Barrier(2), [b"", b""]

    def evaluated(rank: int) -> None:
        evaluate(
            engine,
            problems,
            lambda *_: Judgement(Verdict.INCORRECT, 0.0, ""),
            most_tokens=4,
            seed=1,
            should_stop=lambda: False,
            on_progress=lambda _done, _total: None,
            ranks=_Thread(rank, said, barrier),
        )

    with ThreadPoolExecutor(2) as threads:
        ends = [threads.submit(evaluated, rank) for rank in range(2)]
    assert [type(end.exception()) for end in ends] == [FloatingPointError] * 2


def test_ranks_of_one_engine_that_write_different_tokens_all_hear_of_it() -> None:
    barrier, said = threading.Barrier(3), [b""] * 3

    def write(rank: int) -> None:
        lockstep = Lockstep(_Thread(rank, said, barrier))
        lockstep.wrote("0", 5)
        assert not lockstep.asks(lambda: False)
        lockstep.wrote("0", 6)
        assert lockstep.asks(lambda: rank == 2)
        lockstep.wrote("1", 8 if rank == 1 else 7)
        lockstep.asks(lambda: False)

    with ThreadPoolExecutor(3) as threads:
        ends = [threads.submit(write, rank) for rank in range(3)]
    for end in ends:
        with pytest.raises(EngineError, match=r"rank 1 parted from ranks 0, 2\."):
            end.result()


def test_a_rank_of_one_engine_that_fails_alone_waits_for_none(wild_policy: Policy) -> None:
    class Shared(LocalEngine):
        is_shared = True

    rank = _Thread(1, [b"", b""], threading.Barrier(2))  # the other one stands in the middle of a token

    def fail(_own: object) -> list[RolloutTree]:
        raise OutOfRoomError("no memory")

    with pytest.raises(OutOfRoomError):
        rank.grown([Problem("p", "1+1=", "2")], fail, ends_together(Shared(wild_policy)), is_shared=True)
    gone = RuntimeError("[127.0.0.1]: Connection closed by peer")
    assert is_loss_of_rank(caused(EngineError("vLLM failed while it sampled"), gone))
    assert not is_loss_of_rank(caused(EngineError("vLLM failed while it sampled"), KeyError("x")))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class _Of(Ranks):
    """Rank `rank` of `size`, for what is decided without a word."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def test_work_is_shared_about_equally() -> None:
    sizes = [7, 1, 9, 3, 3, 8, 2, 5]
    owners = _Of(0, 3).share(sizes)
    assert owners == _Of(2, 3).share(sizes)
    loads = [sum(s for s, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(3)]
    assert max(loads) - min(loads) <= 2
    assert ALONE.share(sizes) == [0] * len(sizes)


AHEAD: dict[str, Any] = {
    "resources": {"processes": 2},
    "training": {"max_staleness": 1},
    "objective": {"kind": "policy", "importance": {"kind": "truncated"}},
}


VALUES: dict[str, Any] = {
    "resources": {"processes": 2},
    "engine": {"kind": "vllm"},
    "sampler": {"kind": "search_tree", "evaluator": "value_head"},
    "credit": {
        "baseline": {"kind": "none"},
        "scale": {"kind": "none"},
        "filter": {"kind": "zero_variance"},
    },
    "objective": {"kind": "supervised", "value_weight": 0.5},
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"problems_per_step": 3}, "resources": {"processes": 4}}, "problems_per_step"),
        ({"resources": {"queue": "gpu.2", "processes": 4}}, "gpu.4"),
        (AHEAD | {"reward": {"kl_coefficient": 0.1}}, "max_staleness 0"),
        (VALUES, "evaluator rollout"),
        (AHEAD | {"engine": {"kind": "vllm", "tensor_parallel": 2}}, "Set tensor_parallel 1"),
    ],
)
def test_what_processes_cannot_do_is_refused_with_the_reason(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RunConfig.model_validate(changes)
