"""Who is next: the order of waiting runs, and which of them the limits of their projects let through.

A message to a worker is a hint that something waits; which run it takes is decided here, from the rows.
"""

from __future__ import annotations

from django.db import connection

from webapp.runs.models import CLAIMABLE, LEASED, RunStatus

MOST_PRIORITY = 100  # and least, with a minus
CLAIM_LOCK = 0x4152_424F_5155  # claims are made one after another: "ARBOQU"

# A lost run that waits for another worker keeps its project's place: its first worker may come back with it.
OCCUPYING = (*LEASED, RunStatus.RECOVERING)

_ADMISSIBLE = """
    SELECT r.queue, r.id FROM arborist_run r
    WHERE r.status = ANY(%(claimable)s)
      AND (r.lease_until IS NULL OR r.lease_until < statement_timestamp())
      AND (r.not_before IS NULL OR r.not_before <= statement_timestamp())
      AND (%(queue)s::text IS NULL OR r.queue = %(queue)s)
      AND (r.status <> 'queued' OR r.queued_at <= statement_timestamp() - make_interval(secs => %(seconds)s))
      AND NOT EXISTS (
        SELECT 1 FROM arborist_project_limit l
        WHERE l.project_id = r.project_id AND l.queue IN ('', r.queue) AND l.most <= (
            SELECT count(*) FROM arborist_run o
            WHERE o.project_id = r.project_id AND o.id <> r.id AND o.status = ANY(%(occupying)s)
              AND (l.queue = '' OR o.queue = l.queue)
        )
      )
    ORDER BY r.priority DESC, r.queued_at, r.id
    LIMIT %(most)s
"""


def admissible(
    *, queue: str | None = None, queued_for_seconds: float = 0, most: int
) -> list[tuple[str, int]]:
    """(queue, run) of waiting runs that a worker may take now, the first one first. One query.

    `queued_for_seconds`: of those that are queued, only the ones that have been so for as long.
    """
    values = {
        "claimable": [str(status) for status in CLAIMABLE],
        "occupying": [str(status) for status in OCCUPYING],
        "queue": queue,
        "seconds": queued_for_seconds,
        "most": most,
    }
    with connection.cursor() as cursor:
        cursor.execute(_ADMISSIBLE, values)
        return [(name, run_id) for name, run_id in cursor.fetchall()]


def next_run(queue: str) -> int | None:
    """The run that a worker of `queue` should take: highest priority, then longest waiting."""
    found = admissible(queue=queue, most=1)
    return found[0][1] if found else None


def claim_one_at_a_time() -> None:
    """Wait for other claims to commit, so that what is counted next is true until this one commits, too. Call
    it first in a transaction.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [CLAIM_LOCK])
