from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.webapp.material import People, add_metrics
from trainer.config import RunConfig
from webapp.projects.models import Project
from webapp.runs.estimate import most_tokens
from webapp.runs.models import Attempt, Run
from webapp.runs.pace import Pace, pace_of
from webapp.runs.services import create_run

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MODEL = "this model and engine"


def with_changes(config: RunConfig, **changes: Any) -> RunConfig:
    """`changes`: sections with some knobs changed."""
    body = config.model_dump(mode="json")
    for section, knobs in changes.items():
        body[section] |= knobs
    return RunConfig.model_validate(body)


@pytest.fixture
def finished(project: Project, people: People) -> Any:
    """Makes a run that ended well after `steps`, `tokens` and `seconds` at work, in two attempts."""

    def make(config: RunConfig, steps: int, tokens: float, seconds: float, status: str = "succeeded") -> Run:
        run = create_run(project, people.editor, config, "done")
        add_metrics(run, steps, {"tree/unique_tokens_total": tokens})
        for epoch, begun in ((1, NOON), (2, NOON + timedelta(hours=3))):  # the pause is nobody's work
            ended = begun + timedelta(seconds=seconds / 2)
            Attempt.objects.create(run=run, epoch=epoch, owner="w", started_at=begun, ended_at=ended)
        Run.objects.filter(id=run.id).update(status=status, ended_at=NOON)
        return run

    return make


def test_time_is_told_from_finished_runs_that_are_alike_and_else_not_at_all(
    config: RunConfig, finished: Any, people: People
) -> None:
    def page(query: str = "") -> str:
        return people.client("editor").get(f"/p/lab/new?preset=treerpo-tiny{query}").content.decode()

    assert pace_of(config) == Pace(n_runs=0)
    assert f"The time is not known yet: no run with {MODEL} has finished in class cpu." in page()
    finished(config, 10, 40_000, 20, status="failed")
    finished(with_changes(config, resources={"queue": "gpu"}), 10, 40_000, 20)
    finished(with_changes(config, engine={"kind": "local"}), 10, 40_000, 20)
    assert pace_of(config).n_runs == 0

    # Other trees: only the speed is known, so only the most that all steps can take.
    finished(with_changes(config, training={"problems_per_step": 7}), 10, 40_000, 20)
    most = 150 * 48 * (4 * 16 + 8 * 16 + 16 * 64)
    assert most_tokens(config) == most
    told = pace_of(config)
    assert (told.n_runs, told.tokens_per_second, told.tokens, told.is_most) == (1, 2000, most, True)
    assert told.seconds == pytest.approx(most / 2000)
    assert f"From 1 run with {MODEL} that finished in class cpu: 2,000 tokens/s." in page()

    # The same trees: 3,000 tokens a step at 1,500 tokens/s are 2 s for each of 150 steps.
    for steps, tokens, seconds in ((10, 30_000, 20), (20, 60_000, 40), (5, 50_000, 1)):
        finished(config, steps, tokens, seconds)
    with CaptureQueriesContext(connection) as captured:
        told = pace_of(config)
    assert len(captured) == 1
    assert (told.n_runs, told.tokens_per_second, told.tokens_per_step) == (3, 1500, 3000)
    assert (told.tokens, told.seconds, told.is_most) == (450_000, 300, False)
    assert pace_of(config, from_step=100).seconds == 100
    shown = page()
    assert "about</span> 5 min</dd>" in shown
    assert (
        "From 3 runs with this model, engine and sampler that finished in class cpu: 1,500 tokens/s." in shown
    )
    # A run that ends at so many tokens ends after the step that reaches them.
    assert pace_of(with_changes(config, training={"max_sampled_tokens": 7000})).tokens == 10_000

    body = json.dumps({"config": config.model_dump(mode="json")})
    answer = people.client("viewer").post(
        "/api/v1/configs/validate", body, content_type="application/json"
    )  # fmt: skip
    assert answer.json()["estimate"]["pace"]["seconds"] == 300


def test_problems_that_are_drawn_again_count_in_the_most(config: RunConfig) -> None:
    drawn = {"filter": {"kind": "zero_variance", "resample_rounds": 2}, "scale": {"kind": "none"}}
    again = with_changes(config, credit=drawn)
    assert most_tokens(again) == 3 * most_tokens(config)
    assert most_tokens(config, from_step=140) == most_tokens(config) // 15
    assert most_tokens(config, from_step=150) == 0
