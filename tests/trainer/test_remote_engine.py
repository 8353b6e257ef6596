"""Engines in processes of their own grow the trees that the engine in the trainer's process grows, to the
bit. Here each serves from a thread; `test_engine_processes` has processes.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import HashStore

import trainer.transfer
from tests.trainer.test_overlap import overlapped
from tests.trainer.test_ranks import CLOSE, case, trees
from tests.trainer.test_resume import HALF
from trainer.channel import Channel
from trainer.config import RunConfig
from trainer.data import Problem
from trainer.engine_process import EngineProcess
from trainer.events import Event, LogLine, Metrics
from trainer.guards import OutOfRoomError
from trainer.loop import Outcome, train
from trainer.policy import Policy, load_policy
from trainer.sampling.engine import EngineError, SamplingPlan, SamplingStopped
from trainer.sampling.local_engine import LocalEngine
from trainer.sampling.remote_engine import EngineProcesses, RemoteEngine
from trainer.sampling.watch import GrowthWatch
from trainer.transfer import BUCKET_BYTES, Feed, buckets

CPU = torch.device("cpu")
PLAN = SamplingPlan((3, 2), (6, 8), split_at_newline=True, temperature=1.0)
LONG = SamplingPlan((8, 8, 8), (12, 12, 100), split_at_newline=False, temperature=1.0)
PROBLEMS = [Problem(f"p{number % 3}", f"{number % 3}+2=", "2") for number in range(5)]  # two come twice


@pytest.fixture(autouse=True)
def _as_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setitem(BUCKET_BYTES, "cpu", 100_003)  # most tensors are cut, between the bytes of a number
    loading = threading.Lock()

    def one_at_a_time(*args: Any) -> Policy:
        with loading:  # transformers loads in one thread of a process at a time
            return load_policy(*args)

    monkeypatch.setattr("trainer.engine_process.load_policy", one_at_a_time)


@contextmanager
def served(config: RunConfig, count: int = 1) -> Iterator[EngineProcesses]:
    store, channels, threads = HashStore(), [], []

    def serve(number: int, end: socket.socket) -> None:
        torch.set_num_threads(1)
        feed = Feed(store, "weights", 1 + number, 1 + count, CPU)
        EngineProcess(config, number, Channel(end.detach()), feed, CPU).serve()

    for number in range(count):
        ours, theirs = socket.socketpair()
        channels.append(Channel(ours.detach()))
        threads.append(threading.Thread(target=serve, args=(number, theirs)))
        threads[-1].start()
    try:
        yield EngineProcesses(channels, Feed(store, "weights", 0, 1 + count, CPU))
    finally:
        for channel in channels:
            channel.close()
        for thread in threads:
            thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def with_engines(config: RunConfig, count: int) -> RunConfig:
    values = config.model_dump(mode="json")
    values["resources"]["engine_processes"] = count
    return RunConfig.model_validate(values)


def run(
    config: RunConfig, folder: Path, count: int, resume: Path | None = None
) -> tuple[list[Event], Outcome]:
    """By so many engine processes."""
    events: list[Event] = []
    more: dict[str, Any] = {
        "emit": events.append,
        "should_stop": lambda: False,
        "run_dir": folder,
        "resume": resume,
    }
    if not count:
        return events, train(config, **more)
    config = with_engines(config, count)
    with served(config, count) as engines:
        return events, train(config, engines=engines, **more)


def numbers(events: list[Event]) -> dict[tuple[int, str], str]:
    """To the bit, but for clocks and the memory of processes."""
    return {
        (event.step, name): value.hex()
        for event in events
        if isinstance(event, Metrics)
        for name, value in event.values.items()
        if not name.startswith("speed/")
    }


def payloads(events: list[Event]) -> list[bytes]:
    return [tree.to_payload() for tree in trees(events)]


def test_trees_numbers_and_weights_are_those_of_one_process(tmp_path: Path) -> None:
    """With a reference model and two updates a step; searched with a value head; of an adapter; and sampled
    while the step before trains."""
    cases = {slug: case(slug) for slug in ("treerpo", "rest-mcts", "lora")}
    cases["overlap"] = overlapped(steps=HALF)
    ends: dict[str, Outcome] = {}
    for name, config in cases.items():
        alone, ended = run(config, tmp_path / "one" / name, 0)
        beside, also = run(config, tmp_path / "beside" / name, 1)
        assert numbers(beside) == numbers(alone), name
        assert payloads(beside) == payloads(alone), name
        assert len(payloads(alone)) >= 4
        assert also == ended, name
        ends[name] = ended
    # A checkpoint goes on with any number of them.
    for count, folder in ((1, "one"), (0, "beside")):
        halfway = tmp_path / folder / "treerpo" / "checkpoints" / "step-1"
        assert run(cases["treerpo"], tmp_path / str(count), count, halfway)[1] == ends["treerpo"]


def engine_of(policy: Policy, processes: EngineProcesses) -> RemoteEngine:
    engine = RemoteEngine(policy, processes)
    engine.sync()
    return engine


def sample(engine: Any, plan: SamplingPlan = PLAN, **more: Any) -> Any:
    given = {"seed": 3, "step": 1, "should_stop": lambda: False, "on_progress": lambda *_: None}
    return engine.sample(PROBLEMS, plan, **given | more)


def test_several_share_a_batch_and_are_watched_as_one(tiny_reasoner: Policy) -> None:
    local, own = LocalEngine(tiny_reasoner), GrowthWatch()
    expected = sample(local, watch=own)
    seen: list[tuple[int, int]] = []
    watch = GrowthWatch()
    with served(with_engines(case("treerpo"), 2), 2) as processes:
        engine = engine_of(tiny_reasoner, processes)
        found = sample(engine, watch=watch, on_progress=lambda *said: seen.append(said))
        assert engine.spent == local.spent
        assert [helper.memory_bytes > 2**20 for helper in engine.helpers()] == [True, True]
        assert engine.figures()["engine/cached_share"] == local.figures()["engine/cached_share"]
    for tree, other in zip(found, expected, strict=True):
        assert (tree.problem_id, tree.texts) == (other.problem_id, other.texts)
        assert np.array_equal(tree.tokens, other.tokens)
        assert np.allclose(tree.logprobs, other.logprobs, atol=CLOSE)
    drawn = {tree.problem_id: [] for tree in own.trees()}
    for kept, one in ((watch, 0), (own, 1)):
        for tree in kept.trees():
            drawn[tree.problem_id].append((one, tree.parent, tree.tokens, tree.finish))
    assert all(
        [shape for one, *shape in shapes if one == 0] == [shape for one, *shape in shapes if one == 1]
        for shapes in drawn.values()
    )
    total = sum(tree.n_nodes - 1 for tree in expected)
    assert seen[-1] == (total, total)


def test_stale_weights_are_refused(tiny_reasoner: Policy) -> None:
    with served(with_engines(case("treerpo"), 1)) as processes:
        engine = RemoteEngine(tiny_reasoner, processes)
        with pytest.raises(EngineError, match="Engine process 1 of 1 would sample from weights -1"):
            sample(engine)  # before it has got any
        engine.sync()
        assert sample(engine)
        engine.weights_version += 1
        with pytest.raises(EngineError, match="from weights 1, and the policy's are 2"):
            sample(engine)


def test_a_stop_is_heard_and_leaves_the_engine_whole(tiny_reasoner: Policy) -> None:
    expected = [tree.to_payload() for tree in sample(LocalEngine(tiny_reasoner))]
    with served(with_engines(case("treerpo"), 1)) as processes:
        engine = engine_of(tiny_reasoner, processes)
        heard: list[tuple[int, int]] = []
        with pytest.raises(SamplingStopped):
            sample(
                engine, LONG, should_stop=lambda: bool(heard), on_progress=lambda *said: heard.append(said)
            )
        done, total = heard[-1]
        assert 0 < done < total / 2
        assert [tree.to_payload() for tree in sample(engine)] == expected


def test_memory_that_runs_out_there_halves_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grown, rows = LocalEngine.sample_from, []

    def short(own: Any, *args: Any, **more: Any) -> Any:
        rows.append(own._max_rows)
        if own._max_rows > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return grown(own, *args, **more)

    monkeypatch.setattr(LocalEngine, "sample_from", short)
    config = case("treerpo")
    limit = 512
    events, outcome = run(config, tmp_path / "half", 1)
    assert outcome.outcome == "succeeded"
    said = [event.message for event in events if isinstance(event, LogLine) and event.level == "warning"]
    place = "Step 0: out of memory (GPU) while comparing engine and policy"
    assert said == [f"{place} with 1,024 rows at once; going on with 512 rows at once."]
    assert rows[:2] == [1024, 512]
    limit = 0
    with pytest.raises(OutOfRoomError, match=r"Out of memory \(GPU\)"):
        run(config, tmp_path / "none", 1)


def test_where_one_fails_the_others_are_stopped_and_its_error_is_told(
    tiny_reasoner: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = LocalEngine.sample_from

    def short(own: Any, problems: Any, *args: Any, **more: Any) -> Any:
        if problems[0].problem_id == "p1":  # the second one's first
            raise MemoryError("none left")
        return grown(own, problems, *args, **more)

    monkeypatch.setattr(LocalEngine, "sample_from", short)
    with served(with_engines(case("treerpo"), 2), 2) as processes:
        engine = engine_of(tiny_reasoner, processes)
        with pytest.raises(MemoryError, match="none left"):
            sample(engine, LONG)


def test_what_nobody_foresaw_names_the_process(
    tiny_reasoner: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("a defect")

    monkeypatch.setattr(LocalEngine, "sample", broken)
    with served(with_engines(case("treerpo"), 2), 2) as processes:
        engine = engine_of(tiny_reasoner, processes)
        with pytest.raises(EngineError, match=r"Engine process [12] of 2 failed: KeyError: 'a defect'"):
            sample(engine)
        monkeypatch.setattr(LocalEngine, "sample", lambda *_, **__: [])  # and it still listens
        engine.sync()


def test_an_engine_without_memory_for_weights_keeps_nobody_waiting(
    tiny_reasoner: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = torch.empty

    def none_left(*size: Any, **more: Any) -> Any:
        if is_short and threading.current_thread() is not threading.main_thread():
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return made(*size, **more)

    monkeypatch.setattr(trainer.transfer.torch, "empty", none_left)
    is_short = False
    with served(with_engines(case("treerpo"), 2), 2) as processes:
        engine = engine_of(tiny_reasoner, processes)
        is_short = True
        with pytest.raises(torch.OutOfMemoryError):
            engine.sync()
        is_short = False
        engine.sync()  # and it still listens
        assert sample(engine)


def test_weights_are_packed_into_buckets_that_are_full() -> None:
    generator = np.random.default_rng(0)
    for most in (7, 64, 1000):
        contents = [generator.bytes(int(size)) for size in generator.integers(0, 100, 20)]
        packed = []
        for pieces in buckets([len(content) for content in contents], most):
            assert [piece.there.start for piece in pieces] == [
                0,
                *(piece.there.stop for piece in pieces[:-1]),
            ]
            packed.append(b"".join(contents[piece.tensor][piece.own] for piece in pieces))
            assert len(packed[-1]) == pieces[-1].there.stop
        assert b"".join(packed) == b"".join(contents)
        assert {len(bucket) for bucket in packed[:-1]} <= {most}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resources": {"processes": 2, "engine_processes": 3}}, "cannot be shared out evenly"),
        ({"resources": {"queue": "gpu.2", "engine_processes": 2}}, "set resources.queue gpu.4"),
        (
            {
                "resources": {"processes": 2, "engine_processes": 2},
                "engine": {"kind": "vllm", "tensor_parallel": 2},
            },
            "engine_processes 0",
        ),
        (
            {"resources": {"engine_processes": 1}, "engine": {"kind": "vllm", "sleep_while_training": True}},
            "sleep_while_training",
        ),
        ({"resources": {"engine_processes": 4}, "training": {"problems_per_step": 3}}, "problems_per_step"),
    ],
)
def test_what_engine_processes_cannot_do_is_refused_with_the_reason(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        RunConfig.model_validate(changes)
