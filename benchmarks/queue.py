"""What the page of the queue and one claim cost: CPU milliseconds, here and in PostgreSQL.

    python -m benchmarks.queue

300 runs that wait and 300 that are worked on, of 10 projects with limits, in a database of its own; the time
that a run takes is known, so every start is played forward. Each is done once to warm up and then five times.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from statistics import median
from typing import Any

from benchmarks import parts

PROJECTS, RUNS, TURNS = 10, 300, 5


def main() -> None:
    print(parts.machine())
    with parts.database() as server:
        from django.db import transaction
        from django.test import Client

        from webapp.queue import order
        from webapp.queue.querysets import queue_of

        user = _plant()
        client = Client(SERVER_NAME="127.0.0.1")
        client.force_login(user)

        def page() -> None:
            assert client.get("/queue/").status_code == 200

        def claim() -> None:
            with transaction.atomic():
                assert order.next_run("cpu") is not None

        def forecast() -> None:
            assert sum(len(one["waiting"]) for one in queue_of(user)) == RUNS

        for what, do in (
            ("the queue with its forecast", forecast),
            ("its page", page),
            ("who is next", claim),
        ):
            _measure(what, do, server.popen.pid)


def _measure(what: str, do: Callable[[], None], server: int) -> None:
    own, theirs = [], []
    for _ in range(TURNS + 1):
        here, there = time.process_time(), parts.cpu_seconds(server)
        do()
        own.append(1000 * (time.process_time() - here))
        theirs.append(1000 * (parts.cpu_seconds(server) - there))
    print(f"{what}: {median(own[1:]):,.0f} ms, and {median(theirs[1:]):,.0f} ms in PostgreSQL")


def _plant() -> Any:
    """The user who may see all of it. `Any`: models can be imported only once the database is there."""
    from django.db.models.functions import Now

    from benchmarks.rows import new_run
    from webapp.projects.models import Membership, Project
    from webapp.queue.models import ProjectLimit
    from webapp.runs.models import Run, Worker

    first = new_run()
    template = {
        name: getattr(first, name)
        for name in (
            "config",
            "config_sha256",
            "preset",
            "seed",
            "queue",
            "colour",
            "created_by",
            "steps_total",
        )
    }
    hour = timedelta(hours=1)
    Run.objects.filter(id=first.id).update(
        status="succeeded", step=first.steps_total, started_at=Now() - hour, ended_at=Now()
    )
    for number in range(PROJECTS):
        project = Project.objects.create(slug=f"p-{number}", name=f"Project {number}")
        Membership.objects.create(project=project, user=first.created_by, role=Membership.Role.ADMIN)
        for queue, most in (("", 25 + number), ("cpu", 20 + number)):
            ProjectLimit.objects.create(project=project, queue=queue, most=most)
        for place in range(45 if number % 2 else 15):  # every other one has more than it may
            Worker.objects.create(name=f"w-{number}-{place}", queues="cpu")
            Run.objects.create(
                project=project, name=f"busy {place}", status="running", lease_epoch=1, step=1 + place,
                lease_owner=f"w-{number}-{place}", lease_until=Now() + hour, started_at=Now() - hour,
                **template,
            )  # fmt: skip
        for place in range(RUNS // PROJECTS):
            Run.objects.create(project=project, name=f"waits {place}", priority=place % 3, **template)
    for run in Run.objects.filter(status="running"):
        _log_two_steps(run)
    return first.created_by


def _log_two_steps(run: Any) -> None:
    """So that it has an ETA. `Any`: a run, as in `_plant`."""
    from django.db.models.functions import Now

    from webapp.runs.models import Event, Point, Series

    series = Series.objects.create(run=run, name="speed/step_seconds", last_step=2, n_points=2)
    for step in (1, 2):
        at = Now() - timedelta(seconds=60 * (3 - step) + run.id % 50)
        Event.objects.create(run=run, seq=step, epoch=1, kind="metrics", step=step, at=at, body={})
        Point.objects.create(series=series, run_id=run.id, seq=step, step=step, value=60.0)


if __name__ == "__main__":
    main()
