from __future__ import annotations

import math
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection, transaction
from django.utils import timezone
from psycopg.types.json import Jsonb

from trainer.credit import credit_plan
from trainer.events import TreeSummary
from trainer.presets import PRESETS
from trainer.summary import summarise
from trainer.tree import RolloutTree
from webapp.accounts.models import User
from webapp.errors import RequestError
from webapp.projects.access import Role
from webapp.projects.models import Membership, Project
from webapp.runs.models import Event, Point, Run, RunStatus, Series
from webapp.runs.services import check_name
from webapp.trees.forest import Forest, ForestPlan
from webapp.trees.models import StoredTree, summary_columns

PROJECT = "synthetic"
PRESET = "treerpo"
BATCH_NODES = 200_000
BATCH_TREES = 5_000
TELL_SECONDS = 5.0
_BINARY = {
    "bigint": "int8", "integer": "int4", "smallint": "int2", "boolean": "bool", "real": "float4",
    "double precision": "float8", "timestamp with time zone": "timestamptz",
}  # fmt: skip


class Command(BaseCommand):
    help = (
        "Make a run of synthetic trees, for trying and measuring the tree browser. Nothing is sampled "
        "or trained. The run stands in a project of its own and says in its name that it is synthetic."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--trees", type=int, required=True, help="how many trees, up to 10,000,000")
        parser.add_argument(
            "--nodes", type=int, required=True, help="about how many nodes each, up to 1,000,000"
        )
        parser.add_argument(
            "--steps", type=int, help="of training they are spread over (default: 64 trees a step)"
        )
        parser.add_argument("--run", default="", help="added to the run's name")
        parser.add_argument(
            "--project", default=PROJECT, help=f"slug (default: {PROJECT}); it may hold nothing else"
        )
        parser.add_argument(
            "--words", action="store_true", help="long texts of several lines, as models write them"
        )
        parser.add_argument("--seed", type=int, default=0)

    def handle(self, *_args: Any, **options: Any) -> None:
        trees = options["trees"]
        steps = math.ceil(trees / 64) if options["steps"] is None else options["steps"]
        try:
            plan = ForestPlan(trees, options["nodes"], steps, options["words"], options["seed"])
            name = check_name(f"synthetic: {trees:,} trees of {plan.nodes:,} nodes {options['run']}")
        except (ValueError, RequestError) as refused:
            raise CommandError(str(refused)) from refused
        with transaction.atomic():
            run = self._run(plan, name, self._project(options["project"]))
        self.stdout.write(f"run {run.id}: {name}")
        self._fill(run, Forest(plan, credit_plan(PRESETS[PRESET].config)))
        self.stdout.write(f"done: /r/{run.id}/trees")

    def _project(self, slug: str) -> Project:
        """The project of synthetic runs; every user of the site may see it."""
        users = list(User.objects.filter(is_active=True))
        if not users:
            raise CommandError("Nobody could look at it: make a user first, with manage.py create_user NAME.")
        project = Project.objects.filter(slug=slug).first()
        if project is None:
            project = Project.objects.create(slug=slug, name=slug.capitalize())
        elif Run.objects.filter(project=project).exclude(name__startswith="synthetic: ").exists():
            raise CommandError(f"Project {slug} holds real runs. Name another --project, or leave it out.")
        Membership.objects.bulk_create(
            [Membership(project=project, user=user, role=Role.EDITOR) for user in users],
            ignore_conflicts=True,
        )
        return project

    def _run(self, plan: ForestPlan, name: str, project: Project) -> Run:
        config = PRESETS[PRESET].config
        user = User.objects.filter(memberships__project=project).order_by("id")[0]
        now = timezone.now()
        return Run.objects.create(
            project=project,
            name=name,
            config=config.model_dump(mode="json"),
            config_sha256=config.sha256(),
            preset=config.preset,
            seed=plan.seed,
            colour=Run.objects.filter(project=project).count() % 10 + 1,
            created_by=user,
            status=RunStatus.SUCCEEDED,
            reason="Synthetic trees, made by make_forest. Nothing was sampled or trained.",
            started_at=now,
            ended_at=now,
            steps_total=plan.steps,
        )

    def _fill(self, run: Run, forest: Forest) -> None:
        """Store all trees, some thousand in a transaction. Ended early it leaves a run of fewer trees."""
        plan = forest.plan
        per_batch = max(1, min(BATCH_TREES, BATCH_NODES // plan.nodes))
        numbers = iter(range(plan.trees))
        rows = _Rows(run, forest)
        began = told = time.monotonic()
        done = 0
        while batch := list(islice(numbers, per_batch)):
            rows.store(batch)
            done += len(batch)
            now = time.monotonic()
            if now - told >= TELL_SECONDS:
                told = now
                left = (now - began) * (plan.trees - done) / done
                self.stdout.write(f"{done:,} of {plan.trees:,} trees, {timedelta(seconds=round(left))} left")
        if not connection.in_atomic_block:
            with connection.cursor() as cursor:  # a database at work does so by itself, in time
                cursor.execute("VACUUM (ANALYZE) arborist_tree, arborist_event")
        self.stdout.write(f"{plan.trees:,} trees in {timedelta(seconds=round(time.monotonic() - began))}")


class _Rows:
    """Trees as the recorder stores them: a row and an event each, and a metric a step."""

    def __init__(self, run: Run, forest: Forest) -> None:
        self.run, self.forest = run, forest
        self.seq = 0
        self.step = 0
        self.values: list[float] = []  # of the step's trees
        self.series = Series(run=run, name="reward/mean")
        self.summaries: dict[int, tuple[Any, TreeSummary]] = {}

    def store(self, numbers: list[int]) -> None:
        """Trees with these numbers. One transaction."""
        self.events: list[dict[str, Any]] = []
        self.points: list[dict[str, Any]] = []
        trees = [row for number in numbers for row in self._tree_rows(number)]
        if numbers[-1] == self.forest.plan.trees - 1:
            self._end_step()
        with transaction.atomic():
            self.series.save()
            for point in self.points:
                point["series_id"] = self.series.id
            _copy(StoredTree, trees)
            _copy(Event, self.events)
            _copy(Point, self.points)
            Run.objects.filter(id=self.run.id).update(last_seq=self.seq, step=self.series.last_step)

    def _tree_rows(self, number: int) -> Iterator[dict[str, Any]]:
        tree = self.forest.tree(number)
        step, index = self.forest.place(number)
        if step != self.step:
            self._end_step()
            self.step = step
        summary = self._summary(tree)
        self.values.append(summary.value)
        self._event("tree", step, {"index": index, "problem_id": tree.problem_id})
        yield {
            **summary_columns(summary),
            "run_id": self.run.id,
            "seq": self.seq,
            "epoch": 1,
            "step": step,
            "index": index,
            "problem_id": tree.problem_id,
            "prompt": tree.texts[0],
            "superseded": False,
            "payload": tree.to_payload(),
        }

    def _summary(self, tree: RolloutTree) -> TreeSummary:
        """The tree's summary; trees that share their columns share it."""
        known = id(tree.parent)
        if known not in self.summaries:
            # Keeps the array alive too, so that no other takes its identity.
            self.summaries = self.summaries if len(self.summaries) < 200_000 else {}
            self.summaries[known] = (tree.parent, summarise(tree))
        return self.summaries[known][1]

    def _event(self, kind: str, step: int, body: dict[str, Any]) -> None:
        self.seq += 1
        at = self.run.created_at + timedelta(seconds=step)
        self.events.append(
            {
                "run_id": self.run.id,
                "seq": self.seq,
                "epoch": 1,
                "kind": kind,
                "step": step,
                "at": at,
                "body": Jsonb(body),
            }
        )

    def _end_step(self) -> None:
        if not self.values:
            return
        known = [value for value in self.values if math.isfinite(value)]
        mean = sum(known) / len(known) if known else math.nan
        self._event("metrics", self.step, {})
        self.points.append(
            {"run_id": self.run.id, "seq": self.seq, "step": self.step, "value": mean, "superseded": False}
        )
        series = self.series
        series.n_points += 1
        series.first_value = mean if series.n_points == 1 else series.first_value
        series.last_step, series.last_value = self.step, mean
        if known:
            series.minimum = mean if series.minimum is None else min(series.minimum, mean)
            series.maximum = mean if series.maximum is None else max(series.maximum, mean)
        self.values = []


def _copy(model: type[StoredTree | Event | Point], rows: list[dict[str, Any]]) -> None:
    """Rows by COPY; every column but the id must be there."""
    if not rows:
        return
    columns = {
        str(field.column): (field.db_type(connection) or "").partition("(")[0]
        for field in model._meta.concrete_fields
        if not field.primary_key
    }
    names = ", ".join(f'"{name}"' for name in columns)
    with (
        connection.cursor() as cursor,
        cursor.copy(f'COPY "{model._meta.db_table}" ({names}) FROM STDIN (FORMAT BINARY)') as copy,
    ):
        copy.set_types([_BINARY.get(kind, kind) for kind in columns.values()])
        for row in rows:
            copy.write_row([row[name] for name in columns])
