"""`manage.py make_forest`: synthetic trees that hold together, apart from real ones."""

from __future__ import annotations

from io import StringIO
from typing import Any

import numpy as np
import pytest
from django.core.management import CommandError, call_command

from tests.webapp.material import People
from trainer.credit import credit_plan, credit_trees
from trainer.presets import PRESETS
from trainer.summary import summarise
from trainer.tree import RolloutTree
from webapp.runs.models import Event, Run, Series
from webapp.trees.forest import Forest, ForestPlan
from webapp.trees.models import StoredTree


def forest(**options: Any) -> Run:
    call_command("make_forest", stdout=StringIO(), **options)
    return Run.objects.get(name__startswith="synthetic: ")


def test_a_forest_is_stored_as_the_recorder_stores_trees(people: People) -> None:
    run = forest(trees=10, nodes=20, steps=3, words=True)
    assert (run.project.slug, run.status, run.step, run.steps_total) == ("synthetic", "succeeded", 3, 3)
    stored = list(StoredTree.objects.filter(run=run).order_by("seq"))
    assert [(tree.step, tree.index) for tree in stored] == [(1 + n // 4, n % 4) for n in range(10)]
    assert list(run.events.order_by("seq").values_list("seq", flat=True)) == list(range(1, run.last_seq + 1))
    assert Event.objects.filter(run=run, kind="metrics").count() == 3 == Series.objects.get(run=run).n_points
    plan = credit_plan(PRESETS["treerpo"].config)
    for row in stored:
        tree = RolloutTree.from_payload(bytes(row.payload))
        assert (tree.step, tree.problem_id, tree.texts[0]) == (row.step, row.problem_id, row.prompt)
        np.testing.assert_array_equal(credit_trees([tree], plan)[0].advantage, tree.advantage)
        assert summarise(tree).n_correct == row.n_correct
    for user in (people.viewer, people.stranger):
        assert run.project.memberships.filter(user=user).exists()


def test_trees_of_a_large_plan_are_used_again_under_their_own_step_and_problem() -> None:
    plan = ForestPlan(trees=1_000_000, nodes=7, steps=15_625, long=False, seed=1)
    large = Forest(plan, credit_plan(PRESETS["treerpo"].config))
    numbers = (0, 64 * 20, 999_999)
    trees = [large.tree(number) for number in numbers]
    assert [tree.step for tree in trees] == [1, 21, 15_625]
    assert trees[0].problem_id != trees[1].problem_id
    assert plan.stock_problems * plan.stages * plan.nodes <= 100_000
    assert trees[0].parent is large.tree(plan.problems).parent  # the same problem, some steps later


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trees": 0, "nodes": 7}, "trees is 0. Use 1 to"),
        ({"trees": 5, "nodes": 1}, "nodes is 1. Use 2 to"),
        ({"trees": 5, "nodes": 7, "steps": 6}, "steps is 6. Use 1 to 5."),
        ({"trees": 5, "nodes": 7, "seed": -1}, "seed is -1."),
        ({"trees": 10_000_000, "nodes": 1000}, "Use at most 2,000,000,000 nodes."),
        ({"trees": 1, "nodes": 1_000_000, "words": True}, "leave out --words"),
        ({"trees": 5, "nodes": 7, "run": "a\x00"}, "holds a NUL"),
        ({"trees": 5, "nodes": 7, "project": "lab"}, "Project lab holds real runs."),
    ],
)
def test_a_forest_that_makes_no_sense_is_refused(run: Run, options: dict[str, Any], words: str) -> None:
    with pytest.raises(CommandError, match=words):
        forest(**options)
    assert Run.objects.count() == 1


def test_a_forest_needs_somebody_to_look_at_it(db: None) -> None:
    with pytest.raises(CommandError, match="make a user first"):
        forest(trees=1, nodes=7)
