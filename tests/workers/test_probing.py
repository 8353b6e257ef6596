"""A probe from the claim to its end: a real child with the tiny reasoner, and children that misbehave."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now

from tests.webapp.material import add_tree
from tests.workers.factories import make_run
from tests.workers.test_worker import CeleryWorker, until, worker
from trainer.config import RunConfig
from trainer.data import load_data
from trainer.presets import PRESETS
from trainer.tree import FinishReason, RolloutTree, sampled_tree
from webapp import broker
from webapp.embedded import processes
from webapp.probes.models import Continuation, Probe, ProbeStatus
from webapp.probes.services import Ask, request_cancel, request_probe
from webapp.runs import sweeper
from webapp.runs.models import Event, Run, Worker
from webapp.runs.sweeper import sweep
from webapp.trees.models import StoredTree
from workers import probing
from workers.child import MARK
from workers.probing import LostError

__all__ = ["worker"]  # the fixture
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.process]
FAKE = (sys.executable, str(Path(__file__).with_name("fake_prober.py")))
NEVER: Callable[[], bool] = lambda: False  # noqa: E731


def real_tree() -> RolloutTree:
    """A chain problem's prompt and the beginning of its right answer, as the tiny reasoner writes them."""
    from tokenizers import Tokenizer

    from trainer.policy import resolve_model

    config = PRESETS["treerpo-tiny"].config
    (problem,) = load_data(config.data, seed=1, evaluation_problems=1).evaluation
    tokenizer = Tokenizer.from_file(str(resolve_model("tiny-reasoner") / "tokenizer.json"))
    first = problem.solution.partition("\n")[0] + "\n"
    prompt, beginning = (
        tokenizer.encode(text, add_special_tokens=False).ids for text in (problem.prompt, first)
    )
    zeros = [[0.0] * len(prompt), [-0.1] * len(beginning)]
    return sampled_tree(
        problem_id=problem.problem_id,
        reference_answer=problem.reference_answer,
        step=1,
        policy_version=0,
        parent=[-1, 0],
        segment_tokens=[prompt, beginning],
        segment_logprobs=zeros,
        segment_entropies=zeros,
        finish=[0, FinishReason.LENGTH],
        texts=[problem.prompt, first],
    )


@pytest.fixture
def probe_of(settings: Any, tmp_path: Path) -> Callable[..., Probe]:
    """`probe_of(n=6)`: a queued probe of the node 1 of a tree of its own; nobody is told of it."""
    settings.BROKER_URL = ""
    settings.DATA_DIR = tmp_path

    def ask(run: Run | None = None, **changes: Any) -> Probe:
        run = run or make_run()
        stored = StoredTree.objects.filter(run=run).first() or add_tree(run, 1, real_tree())
        asked = {"n": 6, "temperature": 1.0, "max_tokens": 48} | changes
        return request_probe(stored, real_tree(), "1", run.created_by, Ask(**asked))

    return ask


def sample(probe: Probe, *how: str, told_to_leave: Callable[[], bool] = NEVER) -> Probe:
    """Claim it and work on it with a fake child that does `how`."""
    held = probing.claim(probe.id, "w-1")
    assert held is not None
    probing.sample(held, told_to_leave=told_to_leave, command=[*FAKE, *how])
    probe.refresh_from_db()
    return probe


def drawn(probe: Probe) -> list[tuple[int, list[int], str]]:
    return list(
        Continuation.objects.filter(probe=probe).order_by("number").values_list("number", "tokens", "verdict")
    )


def test_a_worker_samples_and_judges_and_the_same_seed_gives_the_same(
    worker: Callable[..., CeleryWorker], probe_of: Callable[..., Probe], broker_url: str, settings: Any
) -> None:
    """Real worker, real child, real policy, real verdicts. Killed in between, it goes on elsewhere."""
    first = probe_of(n=6)
    run, tree = first.tree.run, StoredTree.objects.values().get(id=first.tree_id)
    events = Event.objects.filter(run=run).count()
    twin = probe_of(run, n=3, seed=first.seed)
    settings.BROKER_URL = broker_url
    one = worker(queues="probes.cpu")
    until(lambda: Worker.objects.filter(queues="probes.cpu").exists())
    broker.send_sample_probe(first.id, first.queue)
    until(lambda: Probe.objects.filter(id=first.id, status="running").exists(), 60)
    # The pool's process is killed: its child dies with it, and the sweeper gives the probe to another.
    until(lambda: children_of_a_probe(first) != [], 60)
    os.kill(one.pool_child(), signal.SIGKILL)
    until(lambda: children_of_a_probe(first) == [], 10)
    Probe.objects.filter(id=first.id).update(lease_until=Now() - timedelta(seconds=1))
    sweeper_sees_it(first)
    broker.send_sample_probe(twin.id, twin.queue)
    until(lambda: Probe.objects.filter(status="done").count() == 2, 300)
    first.refresh_from_db()
    assert (first.losses, first.epoch, first.reason) == (1, 2, "")
    assert first.prefix_tokens == sum(len(part) for part in tokens_of(real_tree()))
    assert [number for number, _, _ in drawn(first)] == list(range(6))
    assert drawn(twin) == drawn(first)[:3]
    reference = real_tree().reference_answer
    for row in Continuation.objects.filter(probe=first):
        assert (row.verdict == "correct") == (row.answer == reference)
        assert (row.reward == 1.0) == (row.verdict == "correct")
        assert row.n_tokens == len(row.tokens) == len(row.logprobs) == len(row.entropies)
        assert all(value <= 0 for value in row.logprobs)
    # The tiny reasoner, given the first line of five, is right at least once in six.
    assert "correct" in {verdict for _, _, verdict in drawn(first)}
    # Nothing of it is the run's.
    assert StoredTree.objects.values().get(id=first.tree_id) == tree
    assert Event.objects.filter(run=run).count() == events
    assert list(one.log.parent.glob("probes/*")) == []
    one.log.write_text(one.log.read_text().replace("Traceback", "traceback"))


def tokens_of(tree: RolloutTree) -> list[list[int]]:
    return [tree.tokens[tree.token_offsets[node] : tree.token_offsets[node + 1]].tolist() for node in (0, 1)]


def children_of_a_probe(probe: Probe) -> list[int]:
    mark = f"{MARK}=probe-{probe.id}-".encode()
    found = []
    for pid in processes.pids():
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def sweeper_sees_it(probe: Probe) -> None:
    """The database has just started, which the sweeper takes for an excuse."""
    seconds, sweeper.LEASE_SECONDS = sweeper.LEASE_SECONDS, 0
    try:
        assert sweep().lost == 1
    finally:
        sweeper.LEASE_SECONDS = seconds
    until(lambda: sweep().sent > 0 or Probe.objects.get(id=probe.id).epoch == 2, 30)


def test_what_a_child_says_is_stored_and_what_is_stored_is_not_drawn_again(
    probe_of: Callable[..., Probe], tmp_path: Path
) -> None:
    probe = probe_of(n=4)
    sample(probe, "die")
    assert (probe.status, probe.reason) == ("failed", "The sampling process failed: ValueError: a bad day")
    assert [number for number, _, _ in drawn(probe)] == [0, 1]
    Probe.objects.filter(id=probe.id).update(status="queued", ended_at=None)
    assert sample(probe, "all").status == ProbeStatus.DONE
    assert [tokens for _, tokens, _ in drawn(probe)] == [[0], [1], [2], [3]]
    assert Continuation.objects.filter(text="text 3\u2400").count() == 1
    assert list((tmp_path / "probes").iterdir()) == []
    assert list((tmp_path / "workers" / "probes").iterdir()) == []
    assert probing.claim(probe.id, "w-2") is None


def test_a_child_that_misbehaves_is_ended_with_a_sentence(
    probe_of: Callable[..., Probe], monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    run = make_run()
    probe = sample(probe_of(run), "nonsense")
    assert (probe.status, probe.reason) == (
        "failed", "The sampling process wrote a line that cannot be read; the log has it."
    )  # fmt: skip
    settings.PROBE_MEMORY_MB = 150
    probe = sample(probe_of(run), "grow")
    assert probe.reason.startswith("It needed more than 150 MB, the most that a probe may take here.")
    settings.PROBE_MEMORY_MB = 0
    monkeypatch.setattr(probing, "PROBE_SECONDS", 1)
    probe = sample(probe_of(run), "hang")
    assert "What was sampled is kept; lower n or max tokens." in probe.reason
    assert len(drawn(probe)) == 2
    assert children_of_a_probe(probe) == []


def test_cancelled_while_it_runs(probe_of: Callable[..., Probe]) -> None:
    probe = probe_of()

    def cancel() -> None:
        until(lambda: Continuation.objects.filter(probe=probe).count() == 2)
        request_cancel(probe, probe.created_by)
        connection.close()

    person = threading.Thread(target=cancel)
    person.start()
    sample(probe, "hang")
    person.join()
    name = probe.created_by.get_username()
    assert (probe.status, probe.reason) == ("cancelled", f"Cancelled by {name}. What was sampled is kept.")
    assert len(drawn(probe)) == 2
    assert children_of_a_probe(probe) == []


def test_a_worker_that_leaves_gives_the_probe_back(probe_of: Callable[..., Probe]) -> None:
    probe = probe_of()
    sample(probe, "hang", told_to_leave=lambda: Continuation.objects.filter(probe=probe).exists())
    assert (probe.status, probe.lease_until, probe.losses) == ("queued", None, 0)
    assert children_of_a_probe(probe) == []


def test_who_lost_the_probe_writes_nothing(probe_of: Callable[..., Probe]) -> None:
    probe = probe_of()
    held = probing.claim(probe.id, "w-1")
    assert held is not None
    Probe.objects.filter(id=probe.id).update(status="queued", lease_until=None)
    assert probing.claim(probe.id, "w-2") is not None
    for write in (
        lambda: probing.store(held, []),
        lambda: probing.settle(held, ProbeStatus.DONE, ""),
        lambda: probing.renew(held),
    ):
        with pytest.raises(LostError):
            write()
    probing.sample(held, told_to_leave=NEVER, command=[*FAKE, "all"])
    assert drawn(probe) == []
    assert Probe.objects.get(id=probe.id).owner == "w-2"


def test_what_is_missing_on_the_workers_disk_is_said(probe_of: Callable[..., Probe]) -> None:
    run: Run = make_run(run_config=RunConfig())
    probe = probe_of(run)
    Probe.objects.filter(id=probe.id).update(policy_version=7)
    assert sample(probe, "all").reason == (
        "The checkpoint of v7 was not kept. Nearest that can be sampled: v0. (On this worker's disk.)"
    )
    probe = probe_of(run)
    Run.objects.filter(id=run.id).update(
        config=run.config | {"model": run.config["model"] | {"path": "gone"}}
    )
    assert sample(probe, "all").reason.startswith("The base model 'gone' is not known any more.")
