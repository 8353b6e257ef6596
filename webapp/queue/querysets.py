"""The queue and the workers as pages and API show them: who waits for what, why, and when it may start.

Runs of projects that the reader is not in are there, without a name: a place in a queue is only true if they
count. Each function costs a fixed number of queries.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import connection
from django.db.models import F, Window
from django.db.models.functions import Now, RowNumber
from django.urls import reverse

from webapp.accounts.models import User
from webapp.formatting import duration
from webapp.limits import LOST_WORKER_SECONDS, SERVING_WORKER_SECONDS, SILENT_WORKER_SECONDS
from webapp.projects.access import Role, may, projects_for, runs_for
from webapp.queue import forecast
from webapp.queue.classes import CLASSES, is_class
from webapp.queue.models import ProjectLimit, ProjectTurn
from webapp.queue.order import OCCUPYING
from webapp.runs.models import CLAIMABLE, LEASED, Attempt, Run, RunStatus, Worker
from webapp.runs.querysets import run_states

MOST_SHOWN = 300
MOST_AT_WORK = 300
LIKE_IT = 20  # finished runs that tell how long one of the same preset takes
LAST_RUNS = 10
STOPPING_SECONDS = 10.0
FREE = "a worker is free"


@dataclass(slots=True)
class _Scene:
    """Everything that decides who starts when."""

    waiting: list[Run]
    at_work: list[Run]
    workers: list[Worker]
    now: datetime
    etas: dict[int, float | None]
    limits: dict[forecast.Place, int]
    turns: dict[forecast.Place, float]
    typical: dict[tuple[str, str], tuple[float, int]]
    busy: Counter[str] = field(default_factory=Counter)
    occupied: Counter[forecast.Place] = field(default_factory=Counter)
    served: dict[str, list[Worker]] = field(default_factory=dict)

    def serving(self, queue: str) -> list[Worker]:
        """Workers that take runs of the class and were heard of just now; drained ones too."""
        if queue not in self.served:
            serve = [one for one in self.workers if queue in one.queues.split(",") and self._is_heard(one)]
            self.served[queue] = serve
        return self.served[queue]

    def _is_heard(self, worker: Worker) -> bool:
        return (self.now - worker.heartbeat_at).total_seconds() <= SERVING_WORKER_SECONDS

    def seconds_of(self, run: Run) -> float | None:
        """How long what is left of a waiting run may take."""
        known = self.typical.get((run.preset, run.queue))
        return None if known is None else max(run.steps_total - run.step, 0) * known[0]

    def wait_of(self, run: Run) -> float:
        return 0.0 if run.not_before is None else max((run.not_before - self.now).total_seconds(), 0.0)

    def starts(self) -> dict[int, float]:
        held_by: dict[str, list[float | None]] = defaultdict(list)
        for run in self.at_work:
            held_by[run.lease_owner].append(self.etas.get(run.id))
        slots = []
        for worker in self.workers:
            queues = frozenset(name for name in worker.queues.split(",") if is_class(name))
            if not queues or worker.drain_at is not None or not self._is_heard(worker):
                continue
            held = held_by[worker.name]
            slots += [forecast.Slot(queues, eta) for eta in held]
            slots += [forecast.Slot(queues)] * max(worker.slots - len(held), 0)
        occupants = [
            forecast.Occupant(run.id, run.project_id, run.queue, self.etas.get(run.id))
            for run in (*self.at_work, *(one for one in self.waiting if one.status == RunStatus.RECOVERING))
        ]
        return forecast.starts(slots, occupants, self._in_line(), self.limits, self.turns)

    def _in_line(self) -> list[forecast.Waiting]:
        return [
            forecast.Waiting(
                run.id, run.project_id, run.queue, self.seconds_of(run), self.wait_of(run), _goes_on(run)
            )
            for run in self.waiting
        ]


def queue_of(user: User) -> list[dict[str, Any]]:
    """Every resource class that something waits for or that somebody serves, and the first one always."""
    scene = _scene()
    starts = scene.starts()
    asked = [run.id for run in (*scene.waiting, *scene.at_work)]
    visible = {run.id: run for run in runs_for(user).filter(id__in=asked)}
    by_class: dict[str, list[dict[str, Any]]] = defaultdict(list)
    like_ahead: Counter[str] = (
        Counter()
    )  # of each class: the most finished runs that one before this one is like
    for run in scene.waiting:
        rows = by_class[run.queue]
        mine = visible.get(run.id)
        seconds = starts.get(run.id)
        row: dict[str, Any] = {
            "position": len(rows) + 1,
            "priority": run.priority,
            "queued_at": run.queued_at,
            "start_s": None if seconds is None else round(seconds, 1),
            "start_basis": _basis(scene, run, seconds, like_ahead[run.queue]),
            "why": _why(scene, run, len(rows)) if mine else "",
            "run": None,
        }
        if mine is not None:
            row |= {
                "run": run.id,
                "name": run.name,
                "colour": run.colour,
                "status": run.status,
                "project": run.project.slug,
                "project_name": run.project.name,
                "created_by": run.created_by.get_username(),
                "url": reverse("run-detail", args=[run.id]),
                "may_cancel": may(mine.role, Role.EDITOR),
                "may_prioritise": may(mine.role, Role.ADMIN),
            }
        rows.append(row)
        like = scene.typical.get((run.preset, run.queue), (0.0, 0))[1]
        like_ahead[run.queue] = max(like_ahead[run.queue], like)
    return [
        _class(scene, name, by_class.get(name, []), visible)
        for name in CLASSES
        if _is_shown(scene, name, by_class)
    ]


def _is_shown(scene: _Scene, name: str, by_class: Mapping[str, Any]) -> bool:
    return name == CLASSES[0] or name in by_class or bool(scene.serving(name))


def _class(
    scene: _Scene, name: str, rows: list[dict[str, Any]], visible: Mapping[int, Run]
) -> dict[str, Any]:
    serving = scene.serving(name)
    slots = sum(one.slots for one in serving if one.drain_at is None)
    return {
        "queue": name,
        "workers": len(serving),
        "draining": sum(one.drain_at is not None for one in serving),
        "slots": slots,
        "working": sum(run.queue == name for run in scene.at_work),
        "at_work": [
            {
                "run": run.id,
                "name": run.name,
                "colour": run.colour,
                "url": reverse("run-detail", args=[run.id]),
                "step": run.step,
                "steps_total": run.steps_total,
                "eta_s": scene.etas.get(run.id),
            }
            for run in scene.at_work
            if run.queue == name and run.id in visible
        ],
        "waiting": rows,
    }


def _scene() -> _Scene:
    at_work = list(Run.objects.filter(status__in=LEASED).defer("config").order_by("id")[:MOST_AT_WORK])
    etas: dict[int, float | None] = {state["id"]: state["eta_s"] for state in run_states(at_work)}
    etas |= {run.id: STOPPING_SECONDS for run in at_work if run.status == RunStatus.STOPPING}
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        now = cursor.fetchone()[0]
    limits = {(row.project_id, row.queue): row.most for row in ProjectLimit.objects.all()}
    turns = {(row.project_id, row.queue): (row.at - now).total_seconds() for row in ProjectTurn.objects.all()}
    waiting = _waiting(at_work, turns)
    workers = list(Worker.objects.all())
    scene = _Scene(waiting, at_work, workers, now, etas, limits, turns, _typical(waiting))
    scene.busy = Counter(run.lease_owner for run in at_work)
    for run in (*at_work, *waiting):
        if run.status in OCCUPYING:
            scene.occupied.update([(run.project_id, ""), (run.project_id, run.queue)])
    return scene


def _waiting(at_work: Iterable[Run], turns: Mapping[forecast.Place, float]) -> list[Run]:
    """What waits, as workers will come to it; of each project and class as many as are shown. Two queries."""
    place = Window(
        RowNumber(),
        partition_by=[F("project_id"), F("queue")],
        order_by=[F("priority").desc(), F("queued_at").asc(), F("id").asc()],
    )
    first = Run.objects.filter(status__in=CLAIMABLE).annotate(place=place).filter(place__lte=MOST_SHOWN)
    columns = ("id", "project_id", "queue", "status", "lease_epoch", "settled_epoch")
    light = first.order_by(F("priority").desc(), "queued_at", "id").values_list(*columns)
    waiting, occupants = [], [forecast.Occupant(run.id, run.project_id, run.queue, None) for run in at_work]
    for run_id, project, queue, status, epoch, settled in light:
        waiting.append(forecast.Waiting(run_id, project, queue, None, goes_on=epoch > settled))
        if status == RunStatus.RECOVERING:
            occupants.append(forecast.Occupant(run_id, project, queue, None))
    of_class = {run.run: run.queue for run in waiting}
    shown: Counter[str] = Counter()
    ids = []
    for run_id in forecast.line(waiting, occupants, turns):
        shown[of_class[run_id]] += 1
        if shown[of_class[run_id]] <= MOST_SHOWN:
            ids.append(run_id)
    rows = Run.objects.select_related("project", "created_by").defer("config").in_bulk(ids)
    return [rows[run_id] for run_id in ids if run_id in rows]


def _goes_on(run: Run) -> bool:
    """As `order.GOES_ON`."""
    return run.lease_epoch > run.settled_epoch


def _typical(waiting: Iterable[Run]) -> dict[tuple[str, str], tuple[float, int]]:
    """(preset, class) -> (median wall seconds of a step, over how many finished runs). One query."""
    presets = sorted({run.preset for run in waiting})
    if not presets:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT preset, queue, percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds), count(*)::int
            FROM (
                SELECT preset, queue, extract(epoch FROM ended_at - started_at)::float8 / step AS seconds,
                       row_number() OVER (PARTITION BY preset, queue ORDER BY id DESC) AS k
                FROM arborist_run
                WHERE status = 'succeeded' AND origin = 'trained' AND step > 0 AND started_at < ended_at
                  AND preset = ANY(%s)
            ) finished
            WHERE k <= %s GROUP BY preset, queue
            """,
            [presets, LIKE_IT],
        )
        return {(preset, queue): (seconds, n) for preset, queue, seconds, n in cursor.fetchall()}


def _basis(scene: _Scene, run: Run, seconds: float | None, n: int) -> str:
    """What an expected start rests on, or why there is none. `n`: finished runs like those before it."""
    if seconds is not None:
        if seconds == 0:
            return FREE
        rests_on = ["the ETA of what is worked on"] if scene.at_work else []
        if n:
            rests_on.append(
                "a finished run like those before it" if n == 1 else f"{n} finished runs like those before it"
            )
        return f"from {' and '.join(rests_on)}" if rests_on else "when its back-off is over"
    serving = scene.serving(run.queue)
    if not serving:
        return f"no worker serves {run.queue}"
    if all(one.drain_at is not None for one in serving):
        return "every worker of its class is draining"
    return "how long the runs before it take is not known yet"


def _why(scene: _Scene, run: Run, ahead: int) -> str:
    """Why it is not worked on now, in one sentence."""
    serving = scene.serving(run.queue)
    if not serving:
        return f"No worker serves queue {run.queue}."
    taking = [one for one in serving if one.drain_at is None]
    if not taking:
        many = "The only worker" if len(serving) == 1 else f"All {len(serving)} workers"
        return f"{many} of queue {run.queue} {'is' if len(serving) == 1 else 'are'} draining."
    if wait := scene.wait_of(run):
        return f"{run.reason or 'It was lost.'} Not before {duration(wait)} from now."
    for name in ("", run.queue):
        most = scene.limits.get((run.project_id, name))
        if most is None:
            continue
        at_work = scene.occupied[run.project_id, name] - (run.status in OCCUPYING)
        if at_work >= most:
            where = f" of class {name}" if name else ""
            return f"{at_work} of {most} runs{where} of this project are running."
    slots = sum(one.slots for one in taking)
    busy = sum(min(scene.busy[one.name], one.slots) for one in taking)
    if busy >= slots:
        many = "The only worker" if slots == 1 else f"All {slots} places"
        before = f", and {ahead} {'run is' if ahead == 1 else 'runs are'} before it" if ahead else ""
        return f"{many} of queue {run.queue} {'is' if slots == 1 else 'are'} busy{before}."
    return "A worker is free: it starts within seconds."


# ------------------------------------------------------------------------------------------------ workers


def workers_of(user: User, worker_id: int | None = None) -> list[dict[str, Any]]:
    """Workers as they were last seen, by name; of their runs the ones that `user` may see."""
    rows = Worker.objects.select_related("drain_by").annotate(now=Now()).order_by("name")
    found = list(rows if worker_id is None else rows.filter(id=worker_id))
    at_work = list(
        Run.objects.filter(status__in=LEASED, lease_owner__in=[worker.name for worker in found])
        .defer("config")
        .order_by("id")
    )
    visible = set(runs_for(user).filter(id__in=[run.id for run in at_work]).values_list("id", flat=True))
    states = {state["id"]: state for state in run_states([run for run in at_work if run.id in visible])}
    return [
        _worker(worker, [run for run in at_work if run.lease_owner == worker.name], states)
        for worker in found
    ]


def _worker(worker: Any, at_work: Sequence[Run], states: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """`Any`: a Worker with the database's `now`."""
    age = max(0.0, (worker.now - worker.heartbeat_at).total_seconds())
    runs = [
        {**states[run.id], "colour": run.colour, "url": reverse("run-detail", args=[run.id])}
        for run in at_work
        if run.id in states
    ]
    word, words = _standing(worker, age, len(at_work))
    return {
        "id": worker.id,
        "name": worker.name,
        "url": reverse("worker-detail", args=[worker.id]),
        "queues": worker.queues.split(","),
        "slots": worker.slots,
        "state": word,
        "words": words,
        "heartbeat_age_s": round(age, 1),
        "started_at": worker.started_at,
        "versions": worker.versions,
        "machine": worker.machine,
        "runs": runs,
        "other_runs": len(at_work) - len(runs),
        "drain": None
        if worker.drain_at is None
        else {
            "now": worker.drain_now,
            "requested_at": worker.drain_at,
            "by": worker.drain_by.get_username() if worker.drain_by else "somebody",
            "acknowledged_at": worker.drain_seen_at,
            "done_at": worker.drained_at,
        },
    }


def _standing(worker: Worker, age: float, n_runs: int) -> tuple[str, str]:
    """One word, and the same for people."""
    if age >= LOST_WORKER_SECONDS:
        return "lost", f"lost: silent for {duration(age)}"
    if age >= SILENT_WORKER_SECONDS:
        return "silent", f"silent for {duration(round(age))}"
    if worker.drain_at is not None:
        return ("drained", "drained") if worker.drained_at is not None else ("draining", "draining")
    return ("working", "working") if n_runs else ("idle", "idle")


def last_runs(worker_name: str, user: User) -> list[dict[str, Any]]:
    """What the worker did last, as far as `user` may see it; the newest first. One query."""
    rows = (
        Attempt.objects.filter(owner=worker_name, run__in=runs_for(user))
        .select_related("run")
        .defer("run__config")
        .order_by("-started_at")[:LAST_RUNS]
    )
    return [
        {
            "run": row.run_id,
            "name": row.run.name,
            "colour": row.run.colour,
            "url": reverse("run-detail", args=[row.run_id]),
            "attempt": row.epoch,
            "started_at": row.started_at,
            "ended_at": row.ended_at,
            "outcome": row.outcome,
            "reason": row.reason,
        }
        for row in rows
    ]


def limits_for(user: User) -> list[dict[str, Any]]:
    """The limits of every project that `user` is in, by class; `may_edit` for its admins. Two queries."""
    mine = list(projects_for(user))
    of: dict[int, dict[str, int]] = defaultdict(dict)
    for row in ProjectLimit.objects.filter(project__in=mine):
        of[row.project_id][row.queue or "all"] = row.most
    return [
        {
            "slug": one.slug,
            "name": one.name,
            "limits": of[one.id],
            "may_edit": may(one.role, Role.ADMIN),
        }
        for one in mine
    ]
