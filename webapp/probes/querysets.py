"""Probes as pages and API show them. Every function costs a fixed number of queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.contrib.postgres.aggregates import StringAgg
from django.db.models import Count, Q, QuerySet, Value
from django.db.models.functions import Left, Now

from trainer.intervals import difference_interval, wilson_interval
from webapp.probes.models import ACTIVE, Continuation, Probe, ProbeStatus
from webapp.runs.models import Worker
from webapp.trees.nodes import text_start

SEEN_SECONDS = 30  # a worker that was not seen for longer is not counted on
PROBES_SHOWN = 12
UNSCORED = ("none", "error")  # neither right nor wrong
VERDICT_GLYPHS = {
    "correct": "✓",
    "incorrect": "✕",
    "unparsed": "?",
    "truncated": "⋯",
    "error": "!",
    "none": "○",
}
FINISH_WORDS = {"eos": "ended by the policy", "length": "cut at max tokens"}


# ------------------------------------------------------------------------------------------------ one probe


def probe_states(probes: Sequence[Probe]) -> list[dict[str, Any]]:
    """PROBE of each, in the order given, without its continuations. Up to four queries, however many
    probes.
    """
    counts: dict[int, Mapping[str, int]] = {
        row["probe"]: {name: row[name] for name in ("n_done", "n_scored", "n_correct")}
        for row in Continuation.objects.filter(probe__in=[probe.id for probe in probes])
        .values("probe")
        .annotate(
            n_done=Count("id"),
            n_scored=Count("id", filter=~Q(verdict__in=UNSCORED)),
            n_correct=Count("id", filter=Q(verdict="correct")),
        )
        .order_by()
    }
    words = waiting_words([probe for probe in probes if probe.status == ProbeStatus.QUEUED])
    states = []
    for probe in probes:
        count: Mapping[str, int] = counts.get(probe.id, {})
        n_scored, n_correct = count.get("n_scored", 0), count.get("n_correct", 0)
        states.append(
            {
                "id": probe.id,
                "tree": probe.tree_id,
                "node": probe.node,
                "status": probe.status,
                "words": _words(probe, count.get("n_done", 0), words),
                "reason": probe.reason,
                "by": probe.created_by.get_username(),
                "policy_version": probe.policy_version,
                "prefix": probe.prefix,
                "prefix_tokens": probe.prefix_tokens,
                "n": probe.n,
                "temperature": probe.temperature,
                "max_tokens": probe.max_tokens,
                "verify": probe.verify,
                "seed": probe.seed,
                "created_at": probe.created_at,
                "started_at": probe.started_at,
                "ended_at": probe.ended_at,
                "is_active": probe.is_active,
                "cancel_requested": probe.is_active and probe.cancel_requested_by_id is not None,
                "n_done": count.get("n_done", 0),
                "n_scored": n_scored,
                "n_correct": n_correct,
                "wilson": wilson_interval(n_correct, n_scored) if n_scored else None,
            }
        )
    return states


def _words(probe: Probe, n_done: int, waiting: dict[int, str]) -> str:
    """One sentence on where it stands."""
    if probe.status == ProbeStatus.QUEUED:
        return waiting[probe.id]
    if probe.status == ProbeStatus.RUNNING:
        if probe.cancel_requested_by_id is not None:
            return "Cancelling: its worker was asked to stop."
        if probe.prefix_tokens is None:
            return "Loading the model."
        return f"Sampling: {n_done} of {probe.n} are here."
    return probe.reason


def active_probes(probes: QuerySet[Probe]) -> dict[str, int]:
    """How many of these wait and how many are being sampled. One query."""
    of = {status: Count("id", filter=Q(status=status)) for status in ACTIVE}
    return probes.filter(status__in=ACTIVE).aggregate(
        waiting=of[ProbeStatus.QUEUED], running=of[ProbeStatus.RUNNING]
    )


def waiting_words(queued: Sequence[Probe]) -> dict[int, str]:
    """Why each of these probes waits, and its place. Up to two queries."""
    if not queued:
        return {}
    seen = Worker.objects.filter(heartbeat_at__gte=Now() - timedelta(seconds=SEEN_SECONDS))
    workers = [(row.queues.split(","), row.run_id is not None) for row in seen]
    active = list(
        Probe.objects.filter(status__in=ACTIVE, queue__in={probe.queue for probe in queued})
        .order_by("id")
        .values_list("queue", "id")
    )
    found = {}
    for probe in queued:
        training = [trains for queues, trains in workers if probe.queue in queues]
        ahead = sum(queue == probe.queue and other < probe.id for queue, other in active)
        found[probe.id] = _why_it_waits(probe.queue, training, ahead)
    return found


def _why_it_waits(queue: str, training: Sequence[bool], ahead: int) -> str:
    """`training`: of each worker that takes such probes, whether it trains a run now."""
    place = f" {_count(ahead, 'probe')} before this one." if ahead else " It is the next."
    if not training:
        return (
            f"Waiting for a worker: none that samples probes is running (queue {queue}). `manage.py up` "
            f"starts one.{place if ahead else ''}"
        )
    if all(training):
        on = "the only one" if len(training) == 1 else f"all {len(training)} of them"
        trains = "1 run is" if len(training) == 1 else f"{len(training)} runs are"
        return f"Waiting for a worker: {trains} training on {on}.{place}"
    return f"Waiting for a worker.{place}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def continuations(probe_ids: Iterable[int], *, after: int = -1) -> dict[int, list[dict[str, Any]]]:
    """Of each probe, CONTINUATION from number `after` + 1 on, without the arrays per token. One query."""
    rows = Continuation.objects.filter(probe__in=list(probe_ids), number__gt=after).order_by(
        "probe", "number"
    )
    rows = rows.defer("tokens", "logprobs", "entropies")
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row.probe_id, []).append(continuation_json(row))
    return found


def continuation_json(row: Continuation) -> dict[str, Any]:
    return {
        "number": row.number,
        "text": row.text,
        "n_tokens": row.n_tokens,
        "finish": row.finish,
        "finish_words": FINISH_WORDS.get(row.finish, row.finish),
        "verdict": row.verdict,
        "glyph": VERDICT_GLYPHS.get(row.verdict, "?"),
        "answer": row.answer,
        "reward": row.reward,
        "mean_logprob": row.mean_logprob,
        "mean_entropy": row.mean_entropy,
    }


# ------------------------------------------------------------------------------------------------ one node


def probes_of_node(
    tree_id: int, node: str, *, before: int | None = None, limit: int = PROBES_SHOWN
) -> tuple[list[dict[str, Any]], int | None]:
    """The node's probes, newest first, each with `continuations`; and the id to pass as `before` for older
    ones. Up to six queries.
    """
    rows = Probe.objects.filter(tree=tree_id, node=node).select_related("created_by").order_by("-id")
    if before is not None:
        rows = rows.filter(id__lt=before)
    probes = list(rows[: limit + 1])
    more, probes = len(probes) > limit, probes[:limit]
    texts = continuations(probe.id for probe in probes)
    states = [{**state, "continuations": texts.get(state["id"], [])} for state in probe_states(probes)]
    return states, probes[-1].id if more else None


def drawn_probes(tree_id: int) -> dict[str, list[dict[str, Any]]]:
    """What a picture of the tree draws. Node -> its probes, oldest first: `id`; `verdicts`, the first letter
    of each continuation's verdict in the order of their numbers; `pending`, how many may still come. One
    query.
    """
    letters = StringAgg(
        Left("continuations__verdict", 1),
        delimiter="",
        order_by="continuations__number",
        default=Value(""),
    )
    rows = Probe.objects.filter(tree=tree_id).annotate(verdicts=letters).order_by("id")
    found: dict[str, list[dict[str, Any]]] = {}
    for probe_id, node, n, status, verdicts in rows.values_list("id", "node", "n", "status", "verdicts"):
        pending = n - len(verdicts) if status in ACTIVE else 0
        found.setdefault(node, []).append({"id": probe_id, "verdicts": verdicts, "pending": pending})
    return found


@dataclass(frozen=True, slots=True)
class Share:
    """What one policy did from a node: `n_correct` of `n` judged continuations, and Wilson's 95 %
    interval.
    """

    policy_version: int
    n_correct: int
    n: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.n_correct / self.n


@dataclass(frozen=True, slots=True)
class Change:
    """From the oldest policy to the newest: the difference of their shares, and Newcombe's 95 % interval."""

    before: int
    after: int
    difference: float
    low: float
    high: float

    @property
    def is_open(self) -> bool:
        """Whether no change at all would fit as well."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True)
class Comparison:
    """Policies side by side, oldest first, from the same beginning with the same temperature and limit."""

    prefix: str | None
    temperature: float
    max_tokens: int
    shares: tuple[Share, ...]

    @property
    def change(self) -> Change | None:
        """None with a single policy."""
        if len(self.shares) < 2:
            return None
        old, new = self.shares[0], self.shares[-1]
        low, high = difference_interval(new.n_correct, new.n, old.n_correct, old.n)
        return Change(old.policy_version, new.policy_version, new.share - old.share, low, high)

    @property
    def beginning(self) -> str:
        """The start of an edited beginning, on one line."""
        return text_start(self.prefix or "") or "(nothing)"

    @property
    def words(self) -> str:
        """`12/16 ✓ from here at v412, 15/16 at v900`."""
        first, *more = self.shares
        told = [f"{first.n_correct}/{first.n} ✓ from here at v{first.policy_version}"]
        return ", ".join(
            [*told, *(f"{share.n_correct}/{share.n} at v{share.policy_version}" for share in more)]
        )


def compare(tree_id: int, node: str) -> list[Comparison]:
    """How the policies that were probed here did: from the node's own tokens first, then from rewritten ones;
    the settings that were used last come first. Two queries.

    A continuation that was drawn twice (same policy, settings, seed and number; at temperature 0 whatever the
    seed) is the same one and counts once; one whose verifier failed does not count.
    """
    probes = {probe.id: probe for probe in Probe.objects.filter(tree=tree_id, node=node)}
    rows = Continuation.objects.filter(probe__in=list(probes)).exclude(verdict__in=UNSCORED)
    drawn: dict[tuple[str | None, float, int], dict[int, dict[tuple[int, int], bool]]] = {}
    newest: dict[tuple[str | None, float, int], int] = {}
    for probe_id, number, verdict in rows.values_list("probe_id", "number", "verdict"):
        probe = probes[probe_id]
        settings = (probe.prefix, probe.temperature, probe.max_tokens)
        newest[settings] = max(newest.get(settings, 0), probe_id)
        by_policy = drawn.setdefault(settings, {})
        draw = (probe.seed, number) if probe.temperature else (0, 0)  # at 0 every seed gives the same
        by_policy.setdefault(probe.policy_version, {})[draw] = verdict == "correct"
    found = []
    for settings in sorted(drawn, key=lambda settings: (settings[0] is not None, -newest[settings])):
        shares = []
        for version, verdicts in sorted(drawn[settings].items()):
            n_correct, n = sum(verdicts.values()), len(verdicts)
            shares.append(Share(version, n_correct, n, *wilson_interval(n_correct, n)))
        found.append(Comparison(*settings, tuple(shares)))
    return found


def node_probes(tree_id: int, node: str, *, before: int | None = None) -> dict[str, Any]:
    """What a node's pages show of its probes: `probes`, in a context of their own, and `probed`, what the
    picture of the tree draws. One query where there are none, up to eight.
    """
    probed = drawn_probes(tree_id)
    nodes = {name: len(probes) for name, probes in probed.items()}
    found, following = probes_of_node(tree_id, node, before=before) if node in nodes else ([], None)
    for probe in found:  # a place in the lane for each that may still come
        probe["pending"] = range(probe["n"] - probe["n_done"] if probe["is_active"] else 0)
    return {
        "probed": probed,
        "probes": {
            "node": node,
            "probes": found,
            "drawn": probed.get(node, []),
            "n": nodes.pop(node, 0),
            "following": following,
            "comparison": compare(tree_id, node) if found else [],
            "elsewhere": [{"node": name, "n": n} for name, n in sorted(nodes.items(), key=_by_place)],
            "is_active": any(probe["is_active"] for probe in found),
        },
    }


def _by_place(item: tuple[str, int]) -> list[int]:
    """The order of a tree's nodes, parents first: by their numbers, not letter by letter."""
    return [int(part) for part in item[0].split(".")]
