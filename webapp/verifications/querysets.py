"""Verifications as pages and API show them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.models.functions import Now

from trainer.config import RunConfig
from trainer.presets import PRESETS
from trainer.tree import ROOT, FinishReason, Verdict
from webapp.broker import VERIFY_QUEUE
from webapp.jobs import JobStatus
from webapp.limits import VERIFICATIONS_PER_NODE
from webapp.runs.config_form import kind_fields, kinds_of, to_text
from webapp.runs.models import Worker
from webapp.trees.models import StoredTree
from webapp.trees.opened import OpenTree
from webapp.verifications.models import Verification

SEEN_SECONDS = 30  # a worker that was not seen for longer is not counted on
NOT_SHOWN = ("kind", "timeout_seconds", "memory_mb")


def verification_json(asked: Verification, recorded: str) -> dict[str, Any]:
    """VERIFICATION. `recorded`: the verdict that training gave, "none" for none. Up to one query."""
    kind = str(asked.verifier["kind"])
    # An error is no verdict.
    is_told = asked.status == JobStatus.SUCCEEDED and recorded != "none" and asked.verdict != "error"
    return {
        "id": asked.id,
        "tree": asked.tree_id,
        "node": asked.node,
        "status": asked.status,
        "is_active": asked.is_unfinished,
        "words": _words(asked),
        "by": asked.created_by.get_username(),
        "created_at": asked.created_at,
        "ended_at": asked.ended_at,
        "verifier": asked.verifier,
        "verifier_words": ", ".join(
            [dict(kinds_of("verifier")).get(kind, kind)]
            + [
                f"{name.replace('_', ' ')} {to_text(value)}"
                for name, value in asked.verifier.items()
                if name not in NOT_SHOWN
            ]
        ),
        "is_own": asked.is_own,
        "verdict": asked.verdict or None,
        "recorded": recorded,
        "differs": asked.verdict != recorded if is_told else None,
        "answer": asked.answer,
        "normalised": asked.normalised,
        "expected": asked.expected,
        "seconds": asked.seconds,
    }


def _words(asked: Verification) -> str:
    """One sentence on where it stands, or on what went wrong; "" when all went well."""
    if asked.status == JobStatus.QUEUED:
        return why_it_waits()
    if asked.status == JobStatus.RUNNING:
        return "A worker is judging it."
    return asked.words or asked.reason


def why_it_waits() -> str:
    """One query."""
    seen = Worker.objects.filter(heartbeat_at__gte=Now() - timedelta(seconds=SEEN_SECONDS))
    if any(VERIFY_QUEUE in queues.split(",") for queues in seen.values_list("queues", flat=True)):
        return "Waiting for a worker, which may have a probe to sample first."
    return (
        f"Waiting for a worker: none that judges answers is running (queue {VERIFY_QUEUE}). `manage.py up` "
        "starts one."
    )


def is_answer(opened: OpenTree, node: int) -> bool:
    """Whether it is a leaf that a verifier judges: a branch that a search gave up is no answer."""
    gone = (FinishReason.PRUNED, FinishReason.GIVEN)
    return node != ROOT and bool(opened.leaf[node]) and opened.tree.finish[node] not in gone


def recorded_verdict(opened: OpenTree, node: int) -> str:
    return Verdict(int(opened.tree.verdict[node])).word


def node_verifications(
    stored: StoredTree, opened: OpenTree, node: int, config: RunConfig | None
) -> dict[str, Any] | None:
    """What the inspector shows: the verifications of an answer, newest first, and what may be asked. None:
    the node is no answer. One query, two while one waits.
    """
    if not is_answer(opened, node):
        return None
    rows = Verification.objects.filter(tree=stored.id, node=opened.name(node)).select_related("created_by")
    recorded = recorded_verdict(opened, node)
    preset = config or PRESETS["treerpo-tiny"].config  # for what an imported run lacks
    items = [verification_json(row, recorded) for row in rows.order_by("-id")[:VERIFICATIONS_PER_NODE]]
    return {
        "items": items,
        "is_active": any(item["is_active"] for item in items),
        "own": None if config is None else dict(kinds_of("verifier"))[config.verifier.kind],
        "kind": "gsm8k" if config is None else config.verifier.kind,
        "kinds": [
            (kind, title, kind_fields(preset, "verifier", kind)) for kind, title in kinds_of("verifier")
        ],
    }
