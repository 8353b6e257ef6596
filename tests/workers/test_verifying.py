"""An answer judged again: by a real worker's process and the verifiers' own, beside what was recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db.models.functions import Now
from django.test import Client

from tests.webapp.material import add_tree, worked_tree
from tests.workers.factories import make_run
from tests.workers.test_worker import CeleryWorker, until, worker
from trainer.tree import RolloutTree
from webapp import broker
from webapp.errors import RequestError
from webapp.jobs import JobStatus
from webapp.limits import VERIFICATIONS_PER_NODE, VERIFICATIONS_PER_USER
from webapp.runs.models import Event, Worker
from webapp.trees.models import StoredTree
from webapp.trees.opened import OpenTree
from webapp.verifications.models import Verification
from webapp.verifications.querysets import verification_json
from webapp.verifications.services import request_verification
from webapp.verifications.sweeper import sweep_verifications
from workers import verifying

__all__ = ["worker"]  # the fixture
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.process]
NEVER: Callable[[], bool] = lambda: False  # noqa: E731
HOSTILE = "<img src=x onerror=window.pwned=1>\u202e"
BOMB = {"kind": "regex", "pattern": "(a+)+$"}


def tree_with(texts: dict[str, str]) -> RolloutTree:
    tree = worked_tree()
    own = list(tree.texts)
    for name, text in texts.items():
        own[tree.find(name)] = text
    return dataclasses.replace(tree, texts=tuple(own))


@pytest.fixture
def ask(settings: Any, tmp_path: Path) -> Callable[..., Verification]:
    """`ask("1.1", kind="exact")`: a queued verification; nobody is told of it."""
    settings.BROKER_URL = ""
    settings.DATA_DIR = tmp_path
    tree = tree_with({"1.2": f"#### {HOSTILE}", "2.1": "a" * 40 + "b"})
    stored = add_tree(make_run(), 1, tree)

    def asked(node: str, **verifier: Any) -> Verification:
        return request_verification(stored, OpenTree(tree), node, stored.run.created_by, verifier or None)

    return asked


def judge(asked: Verification) -> dict[str, Any]:
    """As a worker's process does it. Returns what pages and API tell, beside "correct" as recorded."""
    held = verifying.claim(asked.id, "w-1", NEVER)
    assert held is not None
    verifying.work_off(held)
    asked.refresh_from_db()
    return verification_json(asked, "correct")


def test_a_worker_judges_again_and_the_page_says_where_that_differs(
    worker: Callable[..., CeleryWorker], ask: Callable[..., Verification], broker_url: str, settings: Any
) -> None:
    first = ask("1.1")
    run, before = first.tree.run, StoredTree.objects.values().get(id=first.tree_id)
    events = Event.objects.filter(run=run).count()
    other = ask("1.1", kind="exact")
    client = Client()
    client.force_login(first.created_by)
    page = client.get(f"/t/{first.tree_id}/n/1.1").content.decode()
    assert "none that judges answers is running (queue probes.cpu)" in page
    settings.BROKER_URL = broker_url
    worker(queues="probes.cpu")
    until(lambda: Worker.objects.filter(queues="probes.cpu").exists())
    for asked in (first, other):
        broker.send_verify_answer(asked.id)
    until(lambda: Verification.objects.filter(status="succeeded").count() == 2, 60)
    page = client.get(f"/t/{first.tree_id}/n/1.1").content.decode()
    assert "The same as recorded." in page
    assert "Differs. Recorded: correct; now: incorrect." in page
    assert StoredTree.objects.values().get(id=first.tree_id) == before
    assert Event.objects.filter(run=run).count() == events


def test_what_was_compared_is_told_as_text(ask: Callable[..., Verification]) -> None:
    told = judge(ask("1.1", kind="numeric", tolerance="0.5"))
    assert (told["verdict"], told["normalised"], told["expected"]) == ("correct", "71", "71")
    assert told["verifier_words"] == "Numeric, tolerance 0.5"
    assert told["differs"] is False
    asked = ask("1.2")
    told = judge(asked)
    assert told["answer"] == told["normalised"] == HOSTILE
    assert told["is_own"]
    client = Client()
    client.force_login(asked.created_by)
    page = client.get(f"/t/{asked.tree_id}/n/1.2").content.decode()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=window.pwned=1&gt;" in page


def test_a_bomb_is_ended_and_says_so(ask: Callable[..., Verification]) -> None:
    told = judge(ask("2.1", **BOMB))
    assert (told["status"], told["verdict"], told["normalised"]) == ("succeeded", "error", None)
    assert told["words"] == "No verdict: it took longer than 2 s and was ended."
    assert 2 <= told["seconds"] < 10
    told = judge(ask("1.1", kind="plugin", name="gone"))
    assert told["status"] == "failed"
    assert "There is no verifier plug-in 'gone'" in told["words"]


def test_what_cannot_be_verified_is_refused_and_the_newest_are_kept(
    ask: Callable[..., Verification],
) -> None:
    for node, verifier, status, said in [
        ("1", {}, 400, "Node 1 is no answer."),
        ("9", {}, 404, "9"),
        ("1.1", {"kind": "numeric", "tolerance": 2}, 400, "tolerance is 2."),
        ("1.1", {"kind": "regex", "pattern": "("}, 400, "no regular expression"),
        ("1.1", {"kind": "eval"}, 400, "Use one of: gsm8k, boxed"),
        ("1.1", {"kind": "exact", "timeout_seconds": 600}, 400, "timeout_seconds is 600. Use at most 2."),
    ]:
        with pytest.raises(RequestError) as refused:
            ask(node, **verifier)
        assert refused.value.status == status
        assert said in refused.value.detail
    assert ask("1.1").id == ask("1.1").id  # a second click
    for number in range(VERIFICATIONS_PER_NODE + 2):
        one = ask("1.2", kind="numeric", tolerance=number / 10)
        Verification.objects.filter(id=one.id).update(status="failed", ended_at=Now())
    assert Verification.objects.filter(node="1.2").count() == VERIFICATIONS_PER_NODE
    for number in range(VERIFICATIONS_PER_USER - 1):
        ask("2.1", kind="numeric", tolerance=number / 10)
    with pytest.raises(RequestError, match="10 verifications of yours wait"):
        ask("2.2")


def test_a_lost_worker_is_replaced_once(
    ask: Callable[..., Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.lost_jobs.JOB_LEASE_SECONDS", 0)  # the database has just started
    asked = ask("1.1")
    for status in (JobStatus.QUEUED, JobStatus.FAILED):
        held = verifying.claim(asked.id, "w-1", NEVER)
        assert held is not None
        Verification.objects.filter(id=asked.id).update(lease_until=Now() - timedelta(seconds=1))
        sweep_verifications()
        asked.refresh_from_db()
        assert asked.status == status
        verifying.work_off(held)  # it comes back, and writes nothing
        asked.refresh_from_db()
        assert (asked.status, asked.verdict) == (status, "")
    assert "was lost 2 times" in asked.reason
