"""The verbs of a probe that people speak: ask for one, cancel it. Workers have theirs in
`workers.probing`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from django.db import IntegrityError, connection, transaction
from django.db.models import Max
from django.db.models.functions import Now

from trainer.text import storable
from trainer.tree import ROOT, FinishReason, RolloutTree
from webapp import broker
from webapp.accounts.models import User
from webapp.errors import RequestError, bad_field
from webapp.limits import (
    PROBE_CONTINUATIONS,
    PROBE_PREFIX_BYTES,
    PROBE_TOKENS,
    PROBE_TOKENS_IN_ALL,
    PROBES_IN_ALL,
    PROBES_PER_TREE,
    PROBES_PER_USER,
)
from webapp.probes.checkpoints import kept_policies, not_kept, without_model
from webapp.probes.models import ACTIVE, Probe, ProbeStatus
from webapp.trees.models import StoredTree
from webapp.trees.nodes import find_node

MAX_TEMPERATURE = 10.0
LOCK = 0x4152_5052_4F42  # any number that nobody else uses: "ARPROB"
MAX_SEED = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Ask:
    """What somebody wants sampled. `policy_version` None: that which sampled the tree. `prefix` None: the
    node's exact tokens. `seed` None: one that was not used at this node yet.
    """

    n: int
    temperature: float
    max_tokens: int
    verify: bool = True
    policy_version: int | None = None
    prefix: str | None = None
    seed: int | None = None
    idempotency_key: str | None = None


def answer_so_far(tree: RolloutTree, node: int) -> str:
    """The text of the path without the prompt."""
    return "".join(tree.texts[part] for part in tree.path(node) if part != ROOT)


def request_probe(stored: StoredTree, tree: RolloutTree, name: str, user: User, ask: Ask) -> Probe:
    """A queued probe; a worker is told after the commit. `tree` is what `stored` holds.

    The same idempotency key again gives the probe that the first call made. Raises RequestError: 404 for a
    node that does not exist, 400 for what cannot be sampled, 409 for a key used otherwise and for trees
    without a model, 429 when too much waits.
    """
    node = find_node(tree, name)
    if reason := without_model(stored.run):
        raise RequestError(409, reason)
    prefix = _check(tree, node, ask)
    version = tree.policy_version if ask.policy_version is None else ask.policy_version
    policies = kept_policies(stored.run)
    if version not in {kept.version for kept in policies}:
        raise bad_field("policy_version", not_kept(policies, version))
    asked = {
        "tree_id": stored.id,
        "node": tree.name(node),
        "policy_version": version,
        "prefix": prefix,
        "n": ask.n,
        "temperature": ask.temperature,
        "max_tokens": ask.max_tokens,
        "verify": ask.verify,
    }
    try:
        with transaction.atomic():
            # One at a time, so that limits hold and no two draw the same numbers.
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
            seed = ask.seed
            known = _known(user, ask.idempotency_key)
            if known is not None:
                return _same(known, asked, seed)
            _refuse_too_many(stored, user)
            if seed is None:
                here = Probe.objects.filter(tree=stored, node=asked["node"], seed__lt=MAX_SEED)
                seed = (here.aggregate(top=Max("seed"))["top"] or 0) + 1
            probe = Probe.objects.create(
                **asked,
                seed=seed,
                created_by=user,
                idempotency_key=ask.idempotency_key,
                queue=broker.probe_queue(stored.run.queue),
            )
            transaction.on_commit(lambda: broker.send_sample_probe(probe.id, probe.queue), robust=True)
    except IntegrityError as error:
        if "probe_idempotency_key" not in str(error):
            raise
        return _same(Probe.objects.get(created_by=user, idempotency_key=ask.idempotency_key), asked, ask.seed)
    probe.refresh_from_db()
    return probe


def request_cancel(probe: Probe, user: User) -> Probe:
    """End a probe that waits, ask the worker of one that runs. Asking twice changes nothing.

    What was sampled so far is kept. Raises RequestError(409) for one that has ended.
    """
    name = user.get_username()
    waiting = Probe.objects.filter(id=probe.id, status=ProbeStatus.QUEUED)
    if not waiting.update(
        status=ProbeStatus.CANCELLED,
        ended_at=Now(),
        cancel_requested_by=user,
        reason=f"Cancelled by {name} before it began.",
    ):
        running = Probe.objects.filter(id=probe.id, status=ProbeStatus.RUNNING)
        if not running.update(cancel_requested_by=user):
            probe.refresh_from_db()
            raise RequestError(
                409, f"This probe has already ended ({probe.status}); there is nothing to cancel."
            )
    probe.refresh_from_db()
    return probe


def _check(tree: RolloutTree, node: int, ask: Ask) -> str | None:
    """The prefix as it is stored. Raises RequestError(400)."""
    if not 1 <= ask.n <= PROBE_CONTINUATIONS:
        raise bad_field("n", f"n is {ask.n}; ask for 1 to {PROBE_CONTINUATIONS} continuations.")
    if not (math.isfinite(ask.temperature) and 0 <= ask.temperature <= MAX_TEMPERATURE):
        raise bad_field(
            "temperature",
            f"The temperature is {ask.temperature}; use a number from 0 to {MAX_TEMPERATURE:g}.",
        )
    if ask.temperature == 0 and ask.n > 1:
        raise bad_field(
            "n", "At temperature 0 all continuations are the same one. Set n to 1, or raise the temperature."
        )
    if not 1 <= ask.max_tokens <= PROBE_TOKENS:
        raise bad_field("max_tokens", f"max_tokens is {ask.max_tokens}; use 1 to {PROBE_TOKENS:,}.")
    if ask.n * ask.max_tokens > PROBE_TOKENS_IN_ALL:
        most = PROBE_TOKENS_IN_ALL // ask.n
        raise bad_field(
            "max_tokens",
            f"{ask.n} continuations of {ask.max_tokens:,} tokens are more than {PROBE_TOKENS_IN_ALL:,} in "
            f"all. Set max_tokens to {most:,} or less, or n to "
            f"{max(1, PROBE_TOKENS_IN_ALL // ask.max_tokens)}.",
        )
    if ask.policy_version is not None and not 0 <= ask.policy_version < 2**63:
        raise bad_field(
            "policy_version", "A policy version is the number of steps it was trained: 0 or more."
        )
    if ask.seed is not None and not 0 <= ask.seed <= MAX_SEED:
        raise bad_field("seed", f"The seed must be a whole number from 0 to {MAX_SEED}.")
    key = ask.idempotency_key
    if key is not None and not (0 < len(key) <= 64 and key.isprintable()):
        raise bad_field("idempotency_key", "The idempotency key must have 1 to 64 printable letters.")
    return _check_prefix(tree, node, ask.prefix)


def _check_prefix(tree: RolloutTree, node: int, prefix: str | None) -> str | None:
    """None when it says what the node says: then its exact tokens are used."""
    if prefix is not None:
        # Forms send line breaks as CR LF, whatever was shown.
        prefix = _lines(prefix)
        if prefix != storable(prefix):
            raise bad_field("prefix", "The beginning holds a NUL or half a surrogate pair. Remove it.")
        size = len(prefix.encode())
        if size > PROBE_PREFIX_BYTES:
            raise bad_field(
                "prefix", f"The beginning has {size:,} bytes. Use at most {PROBE_PREFIX_BYTES:,}."
            )
        if prefix == _lines(answer_so_far(tree, node)):
            prefix = None
    if prefix is None and tree.finish[node] == FinishReason.EOS:
        raise bad_field(
            "prefix",
            f"Node {tree.name(node)} is a finished answer, so nothing follows it. Edit its text, or branch "
            f"from {tree.name(int(tree.parent[node]))} above it.",
        )
    return prefix


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _known(user: User, key: str | None) -> Probe | None:
    return None if key is None else Probe.objects.filter(created_by=user, idempotency_key=key).first()


def _same(probe: Probe, asked: dict[str, object], seed: int | None) -> Probe:
    if any(getattr(probe, name) != value for name, value in asked.items()) or seed not in (None, probe.seed):
        raise RequestError(
            409,
            f"This idempotency key made probe {probe.id} from another request. Use a new key for a new "
            "probe.",
        )
    return probe


def _refuse_too_many(stored: StoredTree, user: User) -> None:
    active = Probe.objects.filter(status__in=ACTIVE)
    own = active.filter(created_by=user).count()
    if own >= PROBES_PER_USER:
        raise RequestError(
            429, f"{own} probes of yours wait or run, and no more may. Wait for one to end, or cancel one."
        )
    if active.count() >= PROBES_IN_ALL:
        raise RequestError(429, f"{PROBES_IN_ALL} probes wait or run on this server. Try again in a while.")
    if Probe.objects.filter(tree=stored).count() >= PROBES_PER_TREE:
        raise RequestError(
            429, f"This tree has {PROBES_PER_TREE} probes, which is as many as are kept of one tree."
        )
