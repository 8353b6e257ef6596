"""The verb of a verification: ask for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import connection, transaction
from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.config import RunConfig
from trainer.schema.verifier import Gsm8kVerifier, Verifier
from webapp import broker
from webapp.accounts.models import User
from webapp.errors import RequestError, bad_field
from webapp.jobs import UNFINISHED
from webapp.limits import VERIFICATIONS_IN_ALL, VERIFICATIONS_PER_NODE, VERIFICATIONS_PER_USER
from webapp.runs.config_form import config_errors
from webapp.runs.origin import config_of
from webapp.trees.models import StoredTree
from webapp.trees.nodes import find_node
from webapp.trees.opened import OpenTree
from webapp.verifications.models import Verification
from webapp.verifications.querysets import is_answer

LOCK = 0x4152_5645_5249  # any number that nobody else uses: "ARVERI"


class _Asked(BaseModel):
    """So that errors stand where they would in a config."""

    model_config = ConfigDict(extra="forbid")
    verifier: Verifier


def request_verification(
    stored: StoredTree, opened: OpenTree, name: str, user: User, verifier: Mapping[str, Any] | None = None
) -> Verification:
    """A queued verification of the answer that ends in a leaf; a worker is told after the commit.

    `verifier` as in a config; None: the run's. The same one again, while the first still waits, is the first.
    Raises RequestError: 404 for a node that does not exist, 400 for one that is no answer and for a verifier
    that cannot be, 409 for a run without one, 429 when too much waits.
    """
    node = find_node(opened.tree, name)
    if not is_answer(opened, node):
        raise bad_field("", f"Node {opened.name(node)} is no answer. Verify a leaf: an answer as a whole.")
    own = _own(stored)
    if verifier is None:
        if own is None:
            raise RequestError(409, "The verifier of this run is not known here. Choose one.")
        chosen = own
    else:
        chosen = _read(verifier, _limits(own))
    asked = {
        "tree_id": stored.id,
        "node": opened.name(node),
        "verifier": chosen.model_dump(mode="json"),
        "is_own": own is not None and chosen == own,
    }
    with transaction.atomic():
        # One at a time, so that limits hold and nobody waits twice for the same.
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        waits = Verification.objects.filter(**asked, status__in=UNFINISHED).first()
        if waits is not None:
            return waits
        _refuse_too_many(user)
        found = Verification.objects.create(**asked, created_by=user)
        _forget_old(found)
        transaction.on_commit(lambda: broker.send_verify_answer(found.id), robust=True)
    found.refresh_from_db()
    return found


def _own(stored: StoredTree) -> Verifier | None:
    config: RunConfig | None = config_of(stored.run)
    return None if config is None else config.verifier


def _limits(own: Verifier | None) -> dict[str, Any]:
    """The most that a judgement may take: what the run allows it, or what is usual."""
    most = own or Gsm8kVerifier()
    return {"timeout_seconds": most.timeout_seconds, "memory_mb": most.memory_mb}


def _read(verifier: Mapping[str, Any], limits: Mapping[str, Any]) -> Verifier:
    """Raises RequestError(400)."""
    try:
        chosen = _Asked.model_validate({"verifier": {**limits, **verifier}}).verifier
    except ValidationError as error:
        told = config_errors(error)
        detail = " ".join(one.message for one in told)
        raise RequestError(400, detail, [one.as_dict() for one in told]) from error
    for name, most in limits.items():
        if (wanted := getattr(chosen, name)) > most:
            raise bad_field(f"verifier.{name}", f"{name} is {wanted:g}. Use at most {most:g}.")
    return chosen


def _refuse_too_many(user: User) -> None:
    waiting = Verification.objects.filter(status__in=UNFINISHED)
    own = waiting.filter(created_by=user).count()
    if own >= VERIFICATIONS_PER_USER:
        raise RequestError(429, f"{own} verifications of yours wait, and no more may. Wait for one to end.")
    if waiting.count() >= VERIFICATIONS_IN_ALL:
        raise RequestError(
            429, f"{VERIFICATIONS_IN_ALL} verifications wait on this server. Try again in a while."
        )


def _forget_old(newest: Verification) -> None:
    """Of a node the newest few are kept."""
    ended = Verification.objects.filter(tree=newest.tree_id, node=newest.node).exclude(status__in=UNFINISHED)
    kept = list(ended.order_by("-id").values_list("id", flat=True)[: VERIFICATIONS_PER_NODE - 1])
    ended.exclude(id__in=kept).delete()
