"""Runs as pages, API and sockets show them. Every function here takes many runs and costs a fixed number of
queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from django.db import connection
from django.db.models import Count, F, Sum
from django.db.models.functions import Now
from django.urls import reverse
from django.utils import timezone

from webapp.limits import (
    MAX_PAGE_SIZE,
    SERVING_WORKER_SECONDS,
    SILENT_TRAINER_SECONDS,
    STOP_GRACE_SECONDS,
)
from webapp.probes.checkpoints import kept_policies
from webapp.projects.models import Project
from webapp.runs.controls import possible
from webapp.runs.models import (
    CLAIMABLE,
    ENDED,
    LEASED,
    Attempt,
    Checkpoint,
    Event,
    Point,
    Run,
    RunStatus,
    Series,
    WishKind,
    Worker,
)
from webapp.runs.words import ASKED, idle_words, phase_words, shown_status, told_reason, wish_words

LATEST = (
    "reward/mean",
    "eval/pass1_sampled",
    "eval/pass1_greedy",
    "credit/zero_variance_share",
    "speed/tokens_per_second",
)
TRAINED_TOKENS = "policy/trained_tokens"
STEP_CLOCK = "speed/step_seconds"  # logged once per step, so its points tell when each step ended
RECENT_STEPS = 20
IDLE_STEPS = 5  # so many that train nothing are told; fewer happen
SPARK_POINTS = 40


def run_states(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """RUNSTATE of each run, in the order given. Two queries, however many runs.

    Ages and `eta_s` are by the database's clock; `progress_age_s` is how long ago the trainer was last heard
    of. `told` is the reason as it goes on from the word `shown`. `wish_ends_s`: so long a trainer that does
    not answer to a pause or stop is still waited for. `is_idle`: the newest five steps or more trained no
    token; only those five are read. The ETA is the wall time of the last 20 steps, evaluation and saving
    included, times the steps that are left.
    """
    runs = list(runs)
    if not runs:
        return []
    ids = [run.id for run in runs]
    latest: dict[int, dict[str, float | None]] = {run_id: {} for run_id in ids}
    ages: dict[int, float | None] = {}
    progress_ages: dict[int, float | None] = {}
    wishes: dict[int, dict[str, Any]] = {}
    wish_ages: dict[int, float | None] = {}
    wish_ends: dict[int, float | None] = {}
    idle: set[int] = set()
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT r.id, extract(epoch FROM now() - r.heartbeat_at)::float8,
                   extract(epoch FROM now() - r.progress_at)::float8, s.name, s.last_value,
                   r.wish, u.username, extract(epoch FROM now() - r.wish_at)::float8,
                   extract(epoch FROM now() - r.wish_seen_at)::float8, newest.is_idle
            FROM arborist_run r
            LEFT JOIN arborist_user u ON u.id = r.wish_by_id
            LEFT JOIN arborist_series s ON s.run_id = r.id AND s.name = ANY(%s)
            LEFT JOIN LATERAL (
                SELECT count(*) = %s AND max(p.value) = 0 AS is_idle FROM (
                    SELECT p.value FROM arborist_point p
                    WHERE s.name = %s AND s.last_value = 0 AND p.series_id = s.id AND NOT p.superseded
                    ORDER BY p.step DESC LIMIT %s
                ) p
            ) newest ON true
            WHERE r.id = ANY(%s)
            """,
            [[*LATEST, TRAINED_TOKENS], IDLE_STEPS, TRAINED_TOKENS, IDLE_STEPS, ids],
        )
        for run_id, age, progress_age, name, value, wish, by, wish_age, seen_age, rests in cursor.fetchall():
            if rests:
                idle.add(run_id)
            ages[run_id], progress_ages[run_id] = age, progress_age
            if wish:
                wish_ages[run_id] = _rounded(wish_age)
                is_silent = (progress_age or 0.0) >= SILENT_TRAINER_SECONDS
                if seen_age is not None and is_silent and wish != WishKind.KILL:
                    wish_ends[run_id] = _rounded(STOP_GRACE_SECONDS - seen_age)
                wishes[run_id] = {
                    "kind": wish,
                    "by": by or "somebody",
                    "is_seen": seen_age is not None,
                    "asked": f"{ASKED[WishKind(wish)]} requested by {by or 'somebody'}",
                }
            if name is not None:
                latest[run_id][name] = value if value is not None and math.isfinite(value) else None
    etas = _etas([run for run in runs if run.status == RunStatus.RUNNING and run.stalled_at is None])
    return [
        {
            "id": run.id,
            "name": run.name,
            "status": run.status,
            "shown": shown_status(run),
            "reason": run.reason,
            "told": told_reason(run),
            "step": run.step,
            "steps_total": run.steps_total,
            "phase": run.phase if run.is_active or run.status == RunStatus.FAILED else "",
            "phase_done": run.phase_done,
            "phase_total": run.phase_total,
            "phase_words": phase_words(run),
            "last_seq": run.last_seq,
            "heartbeat_age_s": _rounded(ages.get(run.id)) if run.status in LEASED else None,
            "progress_age_s": _rounded(progress_ages.get(run.id)),
            "stalled": run.status in LEASED and run.stalled_at is not None,
            "is_idle": run.id in idle,
            "eta_s": etas.get(run.id),
            "worker": run.lease_owner if run.status in LEASED else "",
            "wish": wishes[run.id] | {"words": wish_words(run, is_silent=run.id in wish_ends)}
            if run.id in wishes
            else None,
            "wish_age_s": wish_ages.get(run.id),
            "wish_ends_s": wish_ends.get(run.id),
            "actions": [action.value for action in possible(run)],
            "latest": {name: latest[run.id].get(name) for name in LATEST},
        }
        for run in runs
    ]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(max(seconds, 0.0), 1)


def _etas(runs: Sequence[Run]) -> dict[int, float]:
    """Seconds until the last step, for the runs whose present attempt has done two steps or more: the time
    between two attempts tells nothing. One query.
    """
    if not runs:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT s.run_id, max(p.step), max(p.step) - min(p.step),
                   extract(epoch FROM max(e.at) - min(e.at))::float8,
                   extract(epoch FROM now() - max(e.at))::float8
            FROM arborist_series s
            CROSS JOIN LATERAL (
                SELECT p.step, p.seq FROM arborist_point p
                WHERE p.series_id = s.id AND NOT p.superseded ORDER BY p.step DESC LIMIT %s
            ) p
            JOIN arborist_run r ON r.id = s.run_id
            JOIN arborist_event e ON e.run_id = s.run_id AND e.seq = p.seq AND e.epoch = r.lease_epoch
            WHERE s.name = %s AND s.run_id = ANY(%s)
            GROUP BY s.run_id
            """,
            [RECENT_STEPS, STEP_CLOCK, [run.id for run in runs]],
        )
        rows = {row[0]: row[1:] for row in cursor.fetchall()}
    etas = {}
    for run in runs:
        if run.id in rows:
            step, steps, seconds, since = rows[run.id]
            if steps > 0 and seconds > 0:
                # Time since the last step is progress at most up to the next one: of a trainer that stands
                # still, nothing comes nearer.
                each = seconds / steps
                gone = min(max(since, 0.0), each)
                etas[run.id] = round(max((run.steps_total - step) * each - gone, 0.0), 1)
    return etas


def sparklines(run_ids: Sequence[int], metric: str = "reward/mean") -> dict[int, list[float]]:
    """At most 40 values of `metric` per run, evenly over its steps. One query; its cost does not grow with
    the runs' length.
    """
    sparks: dict[int, list[float]] = {run_id: [] for run_id in run_ids}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT DISTINCT ON (s.run_id, p.step) s.run_id, p.value
            FROM arborist_series s
            CROSS JOIN generate_series(0, %s) AS k
            CROSS JOIN LATERAL (
                SELECT p.step, p.value FROM arborist_point p
                WHERE p.series_id = s.id AND NOT p.superseded AND p.step >= s.last_step * k / %s
                ORDER BY p.step LIMIT 1
            ) p
            WHERE s.name = %s AND s.run_id = ANY(%s)
            ORDER BY s.run_id, p.step
            """,
            [SPARK_POINTS - 1, SPARK_POINTS - 1, metric, list(run_ids)],
        )
        for run_id, value in cursor.fetchall():
            if math.isfinite(value):
                sparks[run_id].append(value)
    return sparks


def runs_page(project: Project, before: int | None, limit: int) -> tuple[list[dict[str, Any]], int | None]:
    """One page of the runs table, newest first, and the id to pass as `before` for the next one. Four
    queries.
    """
    limit = max(1, min(limit, MAX_PAGE_SIZE))
    wanted = Run.objects.filter(project=project).order_by("-id").defer("config")
    if before is not None:
        wanted = wanted.filter(id__lt=before)
    runs = list(wanted[: limit + 1])
    more, runs = len(runs) > limit, runs[:limit]
    sparks = sparklines([run.id for run in runs])
    rows = [
        {
            **state,
            "colour": run.colour,
            "origin": run.origin,
            "preset": run.preset,
            "seed": run.seed,
            "created_at": run.created_at,
            "url": reverse("run-detail", args=[run.id]),
            "spark": sparks[run.id],
        }
        for run, state in zip(runs, run_states(runs), strict=True)
    ]
    return rows, runs[-1].id if more else None


def run_detail(run: Run) -> dict[str, Any]:
    """RUN of the API: the state, and what never changes or is counted."""
    (state,) = run_states([run])
    trees = run.trees.filter(superseded=False).aggregate(n=Count("id"), nodes=Sum("n_nodes"))
    points = Series.objects.filter(run=run).aggregate(n=Sum("n_points"))["n"]
    return {
        **state,
        "project": run.project.slug,
        "origin": run.origin,
        "preset": run.preset,
        "seed": run.seed,
        "config": run.config,
        "config_sha256": run.config_sha256,
        "parent": run.parent_id,
        "parent_step": run.parent_step,
        "cloned_from": run.cloned_from_id,
        "created_by": run.created_by.get_username(),
        "created_at": run.created_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "colour": run.colour,
        "url": reverse("run-detail", args=[run.id]),
        "attempts": attempts_of(run),
        "counts": {
            "trees": trees["n"],
            "nodes": trees["nodes"] or 0,
            "events": run.last_seq,
            "points": points or 0,
        },
    }


def attempts_of(run: Run) -> list[dict[str, Any]]:
    """Every attempt, the first one first."""
    fields = (
        *("epoch", "owner", "started_at", "ended_at", "outcome", "reason"),
        *("resumed_from_step", "last_step"),
    )
    rows = list(Attempt.objects.filter(run=run).order_by("epoch").values(*fields))
    for row in rows:
        row["lasted_s"] = ((row["ended_at"] or timezone.now()) - row["started_at"]).total_seconds()
    return rows


def resumes_of(run: Run) -> list[int]:
    """The steps that later attempts went on from, 0 for the start. No query for a run with one attempt."""
    if run.lease_epoch < 2:
        return []
    steps = ("resumed_from_step", "last_step")
    later = Attempt.objects.filter(run=run).order_by("epoch").values_list(*steps)[1:]
    # One that has done no step yet may still be loading the checkpoint that it goes on from.
    return sorted({start or 0 for start, last in later if start is not None or last is not None})


def has_overwritten(run: Run) -> bool:
    """Whether a later attempt went over steps again that an earlier one had done. Two queries at most."""
    if run.lease_epoch < 2:
        return False
    clock = Series.objects.filter(run=run, name=STEP_CLOCK).first()
    return clock is not None and Point.objects.filter(series=clock, superseded=True).exists()


def _is_served(queue: str) -> bool:
    """Whether a worker that was heard of just now takes new runs of a resource class. One query."""
    lately = Now() - timedelta(seconds=SERVING_WORKER_SECONDS)
    taking = Worker.objects.filter(drain_at=None, heartbeat_at__gte=lately)
    return any(queue in queues.split(",") for queues in taking.values_list("queues", flat=True))


def _could_not_load(run: Run) -> bool:
    """Whether its last attempt had checkpoints to go on from and took none of them. Two queries."""
    last = Attempt.objects.filter(run=run, epoch=run.lease_epoch, resumed_from_step=None)
    saved = Checkpoint.objects.filter(run=run, epoch__lt=run.lease_epoch)
    return run.lease_epoch > run.settled_epoch and last.exists() and saved.exists()


def _took(run: Run) -> float | None:
    """Seconds that workers held the run; None where none did. One query."""
    attempts = Attempt.objects.filter(run=run, ended_at__isnull=False)
    total = attempts.aggregate(total=Sum(F("ended_at") - F("started_at")))["total"]
    return None if total is None else float(total.total_seconds())


def idle_of(run: Run) -> dict[str, Any]:
    """What to say of a run whose newest steps trained nothing (`is_idle` of its state), and the last step
    that did; None: none has. Two queries.
    """
    named = {
        one.name: one for one in Series.objects.filter(run=run, name__in=(TRAINED_TOKENS, "reward/mean"))
    }
    trained, reward = named[TRAINED_TOKENS], named.get("reward/mean")
    that_did = Point.objects.filter(series=trained, superseded=False, value__gt=0).order_by("-step")
    since = that_did.values_list("step", flat=True).first()
    steps = trained.last_step - (run.parent_step or 0 if since is None else since)
    rewards = None
    if reward is not None and reward.first_value is not None and reward.last_value is not None:
        ends = (reward.first_value, reward.last_value)
        rewards = ends if all(map(math.isfinite, ends)) else None
    return {"text": idle_words(steps, since, rewards), "since": since}


def outcome_of(run: Run) -> dict[str, Any]:
    """What the header says of a run that nobody works on, and what its controls need to know. Six queries at
    most.
    """
    kept = [policy.version for policy in kept_policies(run) if policy.path]
    step = max(kept, default=run.parent_step)
    words = f"goes on from step {step}" if step else "starts from step 0"
    if kept and run.status in (RunStatus.PAUSED, RunStatus.FAILED) and _could_not_load(run):
        words = f"tries the checkpoint of step {step} again, once what is said above is put right"
    log_seq = None
    if run.status == RunStatus.FAILED:
        lines = Event.objects.filter(run=run, kind__in=("log", "finished"), epoch=run.lease_epoch)
        log_seq = lines.order_by("-seq").values_list("seq", flat=True).first()
    return {
        "is_over": run.status in (RunStatus.PAUSED, *ENDED)
        and run.status != RunStatus.SUCCEEDED
        and not run.is_imported,
        "is_waiting": run.status not in LEASED,
        "waits_for": run.queue if run.status in CLAIMABLE else "",
        "is_unserved": run.status in CLAIMABLE and not _is_served(run.queue),
        "can_fork": bool(kept),
        "checkpoint_step": step,
        "attempts": run.lease_epoch,
        "took_s": _took(run) if run.status in ENDED and not run.is_imported else None,
        "log_seq": log_seq,
        "log_after": 0 if log_seq is None else max(log_seq - 20, 0),
        "next_step": {
            RunStatus.PAUSED: f"Resume {words}.",
            RunStatus.FAILED: f"Retry {words}, in this run.",
            RunStatus.STOPPED: f"Retry {words}, in this run.",
            RunStatus.CANCELLED: "Retry queues it again.",
        }.get(RunStatus(run.status), ""),
    }
