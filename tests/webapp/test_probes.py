"""Asking for probes: who may, what is refused and why, what they never touch, and what their pages say."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from pytest_django import DjangoAssertNumQueries

from tests.webapp.material import People, add_tree, worked_tree
from webapp.errors import RequestError
from webapp.probes import services
from webapp.probes.models import Continuation, Probe, ProbeStatus
from webapp.probes.querysets import compare, node_probes, waiting_words
from webapp.probes.services import Ask, request_cancel, request_probe
from webapp.probes.sweeper import give_up_lost
from webapp.runs.models import Checkpoint, Run, Worker
from webapp.trees.models import StoredTree

ASK = Ask(n=4, temperature=1.0, max_tokens=32)


@pytest.fixture
def stored(run: Run) -> StoredTree:
    return StoredTree.objects.filter(run=run).order_by("id")[0]


def ask(stored: StoredTree, people: People, node: str = "1", **changes: Any) -> Probe:
    tree = worked_tree(stored.step)
    return request_probe(stored, tree, node, people.editor, dataclasses.replace(ASK, **changes))


def refused(stored: StoredTree, people: People, node: str = "1", **changes: Any) -> tuple[int, str]:
    with pytest.raises(RequestError) as error:
        ask(stored, people, node, **changes)
    return error.value.status, error.value.detail


def answer(probe: Probe, verdicts: str, *, status: ProbeStatus = ProbeStatus.DONE) -> None:
    """As a worker writes them: `c` correct, `i` incorrect, `e` its verifier failed."""
    words = {"c": ("correct", 1.0), "i": ("incorrect", 0.0), "e": ("error", None)}
    for number, letter in enumerate(verdicts):
        verdict, reward = words[letter]
        Continuation.objects.create(
            probe=probe, number=number, tokens=[5, 6], logprobs=[-1.0, -2.0], entropies=[1.0, 1.0],
            n_tokens=2, mean_logprob=-1.5, mean_entropy=1.0, text=f"<b>{letter}</b>", finish="eos",
            verdict=verdict, answer="71", reward=reward,
        )  # fmt: skip
    Probe.objects.filter(id=probe.id).update(status=status, ended_at=Now())


def test_what_cannot_be_sampled_is_refused_with_a_way_out(stored: StoredTree, people: People) -> None:
    for changes, said in [
        ({"n": 0}, "ask for 1 to 64"),
        ({"n": 65}, "ask for 1 to 64"),
        ({"temperature": float("nan")}, "use a number from 0 to 10"),
        ({"temperature": -0.1}, "use a number from 0 to 10"),
        ({"temperature": 0.0}, "Set n to 1"),
        ({"max_tokens": 0}, "use 1 to 4,096"),
        ({"n": 64, "max_tokens": 1025}, "Set max_tokens to 1,024 or less, or n to 63"),
        ({"seed": -1}, "whole number from 0"),
        ({"prefix": "a\x00b"}, "holds a NUL"),
        ({"prefix": "x" * 64_001}, "has 64,001 bytes"),
        ({"policy_version": -1}, "0 or more"),
    ]:
        status, detail = refused(stored, people, **changes)
        assert status == 400, changes
        assert said in detail
    assert refused(stored, people, "7.7")[0] == 404
    # A finished answer can only be rewritten.
    assert refused(stored, people, "1.1") == (
        400,
        "Node 1.1 is a finished answer, so nothing follows it. Edit its text, or branch from 1 above it.",
    )
    assert ask(stored, people, "1.1", prefix="45+26=71").prefix == "45+26=71"
    assert ask(stored, people, "2.2").prefix is None  # cut off, not ended: it goes on
    assert Probe.objects.count() == 2


def test_text_as_it_stands_means_the_exact_tokens(stored: StoredTree, people: People) -> None:
    """Browsers send line breaks as CR LF, which changes nothing that somebody typed."""
    assert ask(stored, people, prefix="45+26=71 books.\r\n").prefix is None
    assert ask(stored, people, prefix="45+26=71 books.").prefix == "45+26=71 books."
    assert ask(stored, people, "0", prefix="").prefix is None
    assert ask(stored, people, "1", prefix="").prefix == ""


def test_a_policy_that_was_not_kept_is_told_with_its_neighbours(run: Run, people: People) -> None:
    stored = add_tree(run, 6, worked_tree(6), index=3)  # sampled by the policy after 5 steps
    for seq, step in enumerate((4, 6, 8)):
        Checkpoint.objects.create(
            run=run,
            epoch=1,
            step=step,
            seq=seq,
            path=f"attempt-1/step-{step}",
            size_bytes=1,
            weights_sha256="a",
        )
    # The run's folder is on another machine. What is deleted is taken off the list before, as v2 was.
    assert refused(stored, people) == (
        400,
        "The checkpoint of v5 was not kept. Nearest that can be sampled: v4 and v6.",
    )
    assert "v0 and v4" in refused(stored, people, policy_version=2)[1]
    assert ask(stored, people, policy_version=8).policy_version == 8
    assert ask(stored, people, policy_version=0).policy_version == 0


def test_a_folder_that_is_here_decides_what_was_kept(
    run: Run, people: People, settings: Any, tmp_path: Any
) -> None:
    settings.DATA_DIR = tmp_path
    for step in (2, 4):
        Checkpoint.objects.create(
            run=run, epoch=1, step=step, seq=step, path=f"a/step-{step}", size_bytes=1, weights_sha256="a"
        )
    kept = tmp_path / "runs" / str(run.id) / "a" / "step-2"
    kept.mkdir(parents=True)
    (kept / "manifest.json").write_text("{}")
    stored = StoredTree.objects.filter(run=run).order_by("id")[0]
    assert "v2" in refused(stored, people, policy_version=4)[1]
    assert ask(stored, people, policy_version=2).policy_version == 2


def test_the_same_key_makes_one_probe_and_seeds_are_not_drawn_twice(
    stored: StoredTree, people: People
) -> None:
    first = ask(stored, people, idempotency_key="k")
    assert ask(stored, people, idempotency_key="k").id == first.id
    assert refused(stored, people, idempotency_key="k", n=5)[0] == 409
    assert [ask(stored, people).seed, ask(stored, people, "2").seed] == [first.seed + 1, 1]
    assert ask(stored, people, seed=1).seed == 1  # asked for by name


def test_limits_hold_for_each_person_and_for_everybody(
    stored: StoredTree, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = [ask(stored, people) for _ in range(4)]
    assert refused(stored, people)[0] == 429
    request_cancel(waiting[0], people.editor)
    ask(stored, people)
    monkeypatch.setattr(services, "PROBES_IN_ALL", 4)
    with pytest.raises(RequestError, match="4 probes wait or run on this server"):
        request_probe(stored, worked_tree(1), "1", people.admin, ASK)
    Probe.objects.update(status=ProbeStatus.CANCELLED, ended_at=Now())
    monkeypatch.setattr(services, "PROBES_PER_TREE", 5)
    assert "as many as are kept of one tree" in refused(stored, people)[1]


def test_cancelling_ends_what_waits_and_asks_what_runs(stored: StoredTree, people: People) -> None:
    waiting, running = ask(stored, people), ask(stored, people)
    Probe.objects.filter(id=running.id).update(status=ProbeStatus.RUNNING, lease_until=Now(), epoch=1)
    assert request_cancel(waiting, people.editor).status == ProbeStatus.CANCELLED
    assert waiting.reason == "Cancelled by editor before it began."
    assert request_cancel(running, people.admin).cancel_requested_by == people.admin
    assert request_cancel(running, people.admin).status == ProbeStatus.RUNNING
    with pytest.raises(RequestError, match="already ended"):
        request_cancel(waiting, people.editor)


def test_a_lost_worker_gives_a_probe_back_once_and_then_it_fails(stored: StoredTree, people: People) -> None:
    probe = ask(stored, people)
    past = Now() - timedelta(seconds=1)

    def lose() -> str:
        Probe.objects.filter(id=probe.id).update(status=ProbeStatus.RUNNING, lease_until=past)
        assert give_up_lost() == 1
        assert give_up_lost() == 0
        probe.refresh_from_db()
        return probe.status

    assert lose() == ProbeStatus.QUEUED
    assert lose() == ProbeStatus.FAILED
    assert probe.reason.startswith("Contact with its worker was lost 2 times.")
    other = ask(stored, people)
    Probe.objects.filter(id=other.id).update(
        status=ProbeStatus.RUNNING, lease_until=past, cancel_requested_by=people.editor
    )
    assert give_up_lost() == 1
    other.refresh_from_db()
    assert other.status == ProbeStatus.CANCELLED


def test_a_probe_that_waits_says_for_what(stored: StoredTree, people: People, run: Run) -> None:
    first, second = ask(stored, people), ask(stored, people)

    def words(probe: Probe) -> str:
        return waiting_words([probe])[probe.id]

    assert words(first).startswith("Waiting for a worker: none that samples probes is running")
    Worker.objects.create(name="trains only", queues="cpu")
    assert "none that samples" in words(first)
    one = Worker.objects.create(name="w-1", queues="cpu,probes.cpu", run=run)
    assert words(first) == "Waiting for a worker: 1 run is training on the only one. It is the next."
    assert (
        words(second) == "Waiting for a worker: 1 run is training on the only one. 1 probe before this one."
    )
    Worker.objects.create(name="w-2", queues="probes.cpu")
    assert words(first) == "Waiting for a worker. It is the next."
    Worker.objects.filter(name="w-2").update(heartbeat_at=Now() - timedelta(seconds=60))
    assert "training on the only one" in words(first)
    one.delete()
    assert "none that samples" in words(first)


def test_checkpoints_are_compared_from_the_same_beginning(stored: StoredTree, people: People) -> None:
    """By hand: v0 has 3 of 4 (the repeated seed counts once, the failed verifier not at all), v2 1 of 2."""
    old, again = ask(stored, people, seed=1), ask(stored, people, seed=1)
    new = ask(stored, people)
    Probe.objects.filter(id=new.id).update(policy_version=2)
    answer(old, "ccice")
    answer(again, "ccic")
    answer(new, "ci")
    edited = ask(stored, people, prefix="other")
    answer(edited, "c")
    found = compare(stored.id, "1")
    assert [one.words for one in found] == [
        "3/4 ✓ from here at v0, 1/2 at v2",
        "1/1 ✓ from here at v0",
    ]
    assert (found[0].shares[0].low, found[0].shares[0].high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    # Newcombe's interval from the two Wilson intervals (.3006, .9544) and (.0945, .9055).
    change = found[0].change
    assert change is not None
    expected = (-0.25, -0.25 - math.hypot(0.5 - 0.0945, 0.9544 - 0.75), -0.25 + math.hypot(0.4055, 0.4494))
    assert (change.difference, change.low, change.high) == pytest.approx(expected, abs=1e-3)
    assert change.is_open
    assert found[1].change is None
    assert compare(stored.id, "2") == []
    for seed in (1, 2, 3):  # whatever the seed, temperature 0 gives the one likeliest answer
        answer(ask(stored, people, node="2", seed=seed, temperature=0.0, n=1), "c")
    assert [one.words for one in compare(stored.id, "2")] == ["1/1 ✓ from here at v0"]


def test_probes_are_in_no_count_no_list_and_no_training(run: Run, stored: StoredTree, people: People) -> None:
    client = people.client("viewer")
    paths = [
        f"/api/v1/runs/{run.id}", f"/api/v1/runs/{run.id}/steps", f"/api/v1/runs/{run.id}/trees?step=1",
        f"/api/v1/runs/{run.id}/metrics", f"/api/v1/runs/{run.id}/events", f"/api/v1/trees/{stored.id}",
        f"/api/v1/trees/{stored.id}/columns", f"/api/v1/trees/{stored.id}/nodes/1",
    ]  # fmt: skip

    def exported(kind: str) -> bytes:
        asked = json.dumps({"kind": kind, "selection": {"runs": [run.id]}})
        path = f"/api/v1/projects/{run.project.slug}/exports/preview"
        answer = client.post(path, asked, content_type="application/json")
        assert answer.status_code == 200, answer.content
        return bytes(answer.content)

    def seen() -> list[bytes]:
        found = [client.get(path).content for path in paths]
        about = json.loads(found[0])
        about.pop("heartbeat_age_s")
        kinds = ("trees", "nodes", "pairs", "labels", "chats")
        return [json.dumps(about).encode(), *found[1:], *map(exported, kinds)]

    before, row = seen(), StoredTree.objects.values().get(id=stored.id)
    answer(ask(stored, people), "ccii")
    ask(stored, people, "2")
    assert seen() == before
    assert StoredTree.objects.values().get(id=stored.id) == row


def test_the_page_without_scripts_asks_shows_and_cancels(
    run: Run, stored: StoredTree, people: People
) -> None:
    client = people.client("editor")
    url = f"/t/{stored.id}/branch?n=1"
    page = client.get(url).content.decode()
    assert "45+26=71 books.\n</textarea>" in page
    assert '<option value="0" selected>v0 · this policy, base model</option>' in page
    form = {
        "beginning": "45+26=71 books.\r\n", "policy_version": "0", "n": "3", "temperature": "0.5",
        "max_tokens": "8", "verify": "on", "seed": "", "idempotency_key": "form-1",
    }  # fmt: skip
    answered = client.post(url, form)
    probe = Probe.objects.get()
    assert (answered.status_code, answered.url) == (302, f"{url}#probe-{probe.id}")
    assert (probe.prefix, probe.n, probe.temperature, probe.verify) == (None, 3, 0.5, True)
    client.post(url, form)  # a double click
    assert Probe.objects.count() == 1
    page = client.get(url).content.decode()
    assert '<meta http-equiv="refresh" content="3">' in page
    assert "none that samples probes is running" in page
    assert page.count("probe-pending") == 3

    # Nothing that was typed is lost by a mistake.
    wrong = client.post(url, form | {"n": "0", "beginning": "<img src=x>", "idempotency_key": "form-2"})
    assert wrong.status_code == 400
    text = wrong.content.decode()
    assert 'href="#branch-n"' in text
    assert "&lt;img src=x&gt;</textarea>" in text

    assert client.post(f"/probes/{probe.id}/cancel").url == f"{url}#probe-{probe.id}"
    answer(probe, "ci")
    for path in (url, f"/t/{stored.id}/n/1", f"/t/{stored.id}/?n=1"):
        page = client.get(path).content.decode()
        assert "1/2 ✓ from here at v0" in page
        assert "&lt;b&gt;c&lt;/b&gt;" in page
        assert "<b>c</b>" not in page
    assert f"/t/{stored.id}/branch?n=1" in client.get(f"/t/{stored.id}/n/2").content.decode()
    assert people.client("viewer").post(url, form).status_code == 403
    looked = people.client("viewer").get(url).content.decode()
    assert "that needs the role editor. Ask: admin." in " ".join(looked.split())
    assert "<textarea" not in looked


def test_the_api_asks_and_reads_on_from_a_number(stored: StoredTree, people: People) -> None:
    client = people.client("editor")
    path = f"/api/v1/trees/{stored.id}/nodes/1/branch"
    made = client.post(path, {"n": 2, "max_tokens": 8}, content_type="application/json")
    assert (made.status_code, made.json()["status"]) == (201, "queued")
    wrong = client.post(path, {"n": "many", "max_tokens": 8}, content_type="application/json")
    assert (wrong.status_code, wrong.json()["errors"][0]["path"]) == (400, "n")
    probe = Probe.objects.get()
    answer(probe, "ci")
    read = client.get(f"/api/v1/probes/{probe.id}?after=0").json()
    assert [one["number"] for one in read["continuations"]] == [1]
    assert (read["n_done"], read["n_correct"], read["words"]) == (2, 1, "")
    one = client.get(f"/api/v1/probes/{probe.id}/continuations/1").json()
    assert (one["tokens"], one["logprobs"]) == ([5, 6], [-1.0, -2.0])
    listed = client.get(f"/api/v1/trees/{stored.id}/nodes/1/probes").json()
    assert listed["comparison"][0]["shares"][0]["n_correct"] == 1


def test_a_node_without_probes_costs_one_query(
    stored: StoredTree, people: People, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_num_queries(1):
        node_probes(stored.id, "1")
    for _ in range(4):
        answer(ask(stored, people), "ci")
    with django_assert_num_queries(6):
        drawn = node_probes(stored.id, "1")["probed"]
    # What pictures draw: a letter per continuation, in the order of their numbers.
    assert [probe["verdicts"] for probe in drawn["1"]] == ["ci"] * 4
    waiting = ask(stored, people, node="2")
    drawn = node_probes(stored.id, "1")["probed"]
    assert drawn["2"] == [{"id": waiting.id, "verdicts": "", "pending": waiting.n}]


def test_nothing_is_sampled_from_trees_that_came_without_a_model(
    run: Run, stored: StoredTree, people: People
) -> None:
    Run.objects.filter(id=run.id).update(
        origin="imported", status="succeeded", ended_at=Now(), config={"file": "x"}, lease_until=None
    )
    stored.refresh_from_db()
    assert refused(stored, people) == (
        409, "These trees were imported, and no model came with them: nothing can be sampled from them here."
    )  # fmt: skip
    client = people.client("editor")
    page = client.get(f"/t/{stored.id}/branch?n=1")
    assert page.status_code == 200
    assert "no model came with them" in page.content.decode()
    assert "<textarea" not in page.content.decode()
    assert client.post(f"/t/{stored.id}/branch?n=1", {"n": "1"}).status_code == 400
