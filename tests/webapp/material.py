"""What the tests of pages and API are made of: people, a run's rows as workers write them, a tree worked by
hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from django.db import connection
from django.test import Client

from tests.trainer.trees import credit_tree
from trainer.presets import PRESETS
from trainer.summary import summarise
from trainer.tree import FinishReason, RolloutTree, Verdict, sampled_tree
from webapp.accounts.models import User
from webapp.runs.models import Event, Point, Run, RunStatus, Series
from webapp.trees.models import StoredTree, summary_columns

MORNING = datetime(2026, 1, 1, 8, tzinfo=UTC)


@dataclass(frozen=True)
class People:
    viewer: User
    editor: User
    admin: User
    stranger: User  # admin of another project

    def client(self, name: str) -> Client:
        """A browser that is logged in as one of them; `anonymous` is not."""
        client = Client()
        if name != "anonymous":
            client.force_login(getattr(self, name))
        return client


def start(run: Run) -> None:
    """As if a worker had claimed it."""
    Run.objects.filter(id=run.id).update(
        status=RunStatus.RUNNING,
        lease_epoch=1,
        lease_owner="worker-1",
        lease_until=MORNING + timedelta(days=36500),
        heartbeat_at=datetime.now(UTC),
        started_at=MORNING,
    )


def next_event(
    run: Run, kind: str, step: int | None, body: dict[str, Any], at: datetime | None = None
) -> int:
    """As the recorder writes it. Returns its seq."""
    run.refresh_from_db()
    seq = run.last_seq + 1
    Event.objects.create(run=run, seq=seq, epoch=1, kind=kind, step=step, at=at or MORNING, body=body)
    Run.objects.filter(id=run.id).update(last_seq=seq)
    return seq


def add_metrics(run: Run, step: int, values: dict[str, float], *, superseded: bool = False) -> int:
    """One metrics event; steps are ten seconds apart."""
    seq = next_event(run, "metrics", step, {}, MORNING + timedelta(seconds=10 * step))
    for name, value in values.items():
        series, _ = Series.objects.get_or_create(run=run, name=name)
        Point.objects.create(
            series=series, run_id=run.id, seq=seq, step=step, value=value, superseded=superseded
        )
        if not series.n_points:
            series.first_value = value
        series.n_points += 1
        series.last_step, series.last_value = step, value
        series.save()
    Run.objects.filter(id=run.id).update(step=step)
    return seq


def add_many_points(run: Run, name: str, values: list[float]) -> Series:
    """A long series, value i at step i + 1, without events."""
    series = Series.objects.create(
        run=run, name=name, n_points=len(values), last_step=len(values), last_value=values[-1]
    )
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO arborist_point (series_id, run_id, seq, step, value, superseded)
            SELECT %s, %s, n, n, v, false FROM unnest(%s::float8[]) WITH ORDINALITY AS t (v, n)
            """,
            [series.id, run.id, values],
        )
    return series


def add_tree(run: Run, step: int, tree: RolloutTree, index: int = 0) -> StoredTree:
    seq = next_event(run, "tree", step, {"tree": index, "problem_id": tree.problem_id})
    return StoredTree.objects.create(
        run=run,
        seq=seq,
        epoch=1,
        step=step,
        index=index,
        problem_id=tree.problem_id,
        prompt=tree.texts[0],
        payload=tree.to_payload(),
        **summary_columns(summarise(tree)),
    )


def worked_tree(step: int = 1, *, text: str = "45+26=71 books.\n", problem_id: str = "p-1") -> RolloutTree:
    """A tree worked by hand, under TreeRPO (child means, siblings, Bernoulli variance, tau 0.1):

    0            V = (1/2 + 0) / 2 = 1/4
    1   2        V = 1/2, 0         mu = 1/4, mu(1-mu) = 3/16
    1.1 1.2 2.1 2.2   rewards 1, 0, 0, 0

    A(1) = (1/2 - 1/4) / (3/16) = 4/3     A(2) = (0 - 1/4) / (3/16) = -4/3
    A(1.1) = (1 - 1/2) / (1/4) = 2        A(1.2) = -2
    2.1, 2.2: max - min = 0, dropped by the filter
    """
    leaf = Verdict.INCORRECT
    tree = sampled_tree(
        problem_id=problem_id,
        reference_answer="71",
        step=step,
        policy_version=step - 1,
        parent=[-1, 0, 0, 1, 1, 2, 2],
        segment_tokens=[[1, 2, 3], [4, 5], [6], [7, 8], [9], [10], []],
        segment_logprobs=[[0, 0, 0], [-0.5, -1.5], [-1], [-1, -2], [-3], [-4], []],
        segment_entropies=[[0, 0, 0], [1, 2], [3], [4, 5], [6], [7], []],
        finish=[0, *[FinishReason.SPLIT] * 2, *[FinishReason.EOS] * 3, FinishReason.LENGTH],
        texts=["Cal has 45 books. Finds 26. How many?\n", text, "no", "#### 71", "#### 72", "#### 1", ""],
    ).with_verdicts(
        np.array([0, 0, 0, Verdict.CORRECT, leaf, leaf, Verdict.TRUNCATED], np.uint8),
        np.array([np.nan, np.nan, np.nan, 1, 0, 0, 0]),
        ["", "", "", "71", "72", "1", ""],
    )
    return credit_tree(tree, PRESETS["treerpo-tiny"].config.credit)
