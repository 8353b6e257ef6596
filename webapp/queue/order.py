"""Who is next: the order of waiting runs, and which of them the limits of their projects let through.

Projects share a class fairly: the next run is of the project that has the fewest runs at work there, and of
equals of the one whose last turn is longest ago. Within a project the highest priority is first, then the
longest wait; a priority says nothing about other projects. A run that was at work and lost its worker comes
before all that: it goes on, which is no new turn (docs/adr/0018).

A message to a worker is a hint that something waits; which run it takes is decided here, from the rows.
"""

from __future__ import annotations

from django.db import connection
from django.db.models import F, Q
from django.db.models.functions import Now

from webapp.database.locks import let_go_when_idle
from webapp.queue.models import ProjectTurn
from webapp.runs.models import CLAIMABLE, LEASED, Run, RunStatus

MOST_PRIORITY = 100  # and least, with a minus
CLAIM_LOCK = 0x4152_424F_5155  # claims are made one after another: "ARBOQU"

# A lost run that waits for another worker keeps its project's place: its first worker may come back with it.
OCCUPYING = (*LEASED, RunStatus.RECOVERING)
# Its worker gave it back or was lost; who resumes or retries a run settles what was before.
GOES_ON = Q(lease_epoch__gt=F("settled_epoch"))

_ADMISSIBLE = """
    WITH at_work AS (
        SELECT project_id, queue, count(*) AS n FROM arborist_run
        WHERE status = ANY(%(occupying)s) GROUP BY 1, 2
    ), waiting AS (
        SELECT r.id, r.queue, r.project_id, r.priority, r.queued_at,
               r.lease_epoch > r.settled_epoch AS goes_on,
               coalesce(own.n, 0) - (r.status = 'recovering')::int AS in_class,
               coalesce((SELECT sum(a.n) FROM at_work a WHERE a.project_id = r.project_id), 0)
                   - (r.status = 'recovering')::int AS in_all
        FROM arborist_run r
        LEFT JOIN at_work own ON own.project_id = r.project_id AND own.queue = r.queue
        WHERE r.status = ANY(%(claimable)s)
          AND (r.lease_until IS NULL OR r.lease_until < statement_timestamp())
          AND (r.not_before IS NULL OR r.not_before <= statement_timestamp())
          AND (%(queue)s::text IS NULL OR r.queue = %(queue)s)
          AND (r.status <> 'queued'
               OR r.queued_at <= statement_timestamp() - make_interval(secs => %(seconds)s))
    )
    SELECT w.queue, w.id FROM waiting w
    LEFT JOIN arborist_project_turn t
        ON t.project_id = w.project_id AND t.queue = w.queue AND NOT w.goes_on
    WHERE NOT EXISTS (
        SELECT 1 FROM arborist_project_limit l
        WHERE l.project_id = w.project_id
          AND ((l.queue = '' AND l.most <= w.in_all) OR (l.queue = w.queue AND l.most <= w.in_class))
    )
    ORDER BY w.goes_on DESC, CASE WHEN w.goes_on THEN 0 ELSE w.in_class END, t.at NULLS FIRST,
             CASE WHEN w.goes_on THEN 0 ELSE w.project_id END, w.priority DESC, w.queued_at, w.id
    LIMIT %(most)s
"""


def admissible(
    *, queue: str | None = None, queued_for_seconds: float = 0, most: int
) -> list[tuple[str, int]]:
    """(queue, run) of waiting runs that a worker may take now, the first one first; what follows it is only
    true until that one is taken. One query.

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
    """The run that a worker of `queue` should take."""
    found = admissible(queue=queue, most=1)
    return found[0][1] if found else None


def note_turn(run_id: int) -> None:
    """The run's project has its turn in the run's class now, unless the run only goes on. Call it before the
    run is claimed, in the same transaction.
    """
    row = Run.objects.filter(id=run_id).exclude(GOES_ON).values_list("project_id", "queue").first()
    if row is not None:
        project_id, queue = row
        ProjectTurn.objects.update_or_create(project_id=project_id, queue=queue, defaults={"at": Now()})


def claim_one_at_a_time() -> None:
    """Wait for other claims to commit, so that what is counted next is true until this one commits, too. Call
    it first in a transaction.
    """
    let_go_when_idle()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [CLAIM_LOCK])
