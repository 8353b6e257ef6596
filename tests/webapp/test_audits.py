"""The audit of a node comes to the recorded numbers, for every preset, after the tree went through its
payload; and what is not an ordinary node is called what it is."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from django.test import Client

from tests.trainer.trees import T1, T2, tree_of
from tests.webapp.material import People, add_tree, worked_tree
from tests.webapp.test_trees import read_columns
from trainer.clipping import Clip
from trainer.credit import credit_plan, credit_trees
from trainer.presets import PRESETS, Preset
from trainer.tree import CreditState, FinishReason, RolloutTree, Verdict
from webapp.runs.models import Run
from webapp.trees.models import StoredTree
from webapp.trees.nodes import node_json
from webapp.trees.opened import OpenTree
from webapp.trees.querysets import icicle
from webapp.trees.words import CREDIT_WORDS, FINISH_WORDS

DEEP = [[[1, 0], [1]], [0, [0, 1, 0]], 1]


def given(
    parent: list[int], copies: dict[int, int], subgroup: list[int], finish: dict[int, int]
) -> RolloutTree:
    """Leaves 1, 0, 1, 0, ... with copies, subgroups and finish reasons of choice."""
    children: dict[int, list[int]] = {}
    for node, up in enumerate(parent):
        children.setdefault(up, []).append(node)
    rewards = iter([1, 0] * len(parent))

    def nested(node: int) -> Any:
        return [nested(child) for child in children[node]] if node in children else None

    tree = tree_of(_rewarded(nested(0), rewards))
    n = len(parent)
    new_copies, new_finish = tree.copies.copy(), tree.finish.copy()
    for node, number in copies.items():
        new_copies[node] = number
    for node, reason in finish.items():
        new_finish[node] = reason
    return dataclasses.replace(
        tree,
        copies=new_copies,
        subgroup=np.array(subgroup, np.int32),
        finish=new_finish,
        visits=np.arange(n, dtype=np.int32),
    )


def _rewarded(nested: Any, rewards: Any) -> Any:
    return next(rewards) if nested is None else [_rewarded(child, rewards) for child in nested]


def trees_for(preset: Preset) -> list[RolloutTree]:
    """Trees as the preset's sampler makes them: shapes, copies, subgroups, and what it puts there itself."""
    sampler = preset.config.sampler
    if sampler.kind == "flat" and sampler.budgets:
        # Two budgets, two answers each: the budget's sentence is a node that was given.
        parent = [-1, 0, 0, 1, 1, 2, 2]
        return [given(parent, {}, [0, 0, 1, 0, 0, 1, 1], dict.fromkeys((1, 2), FinishReason.GIVEN))]
    if sampler.kind == "flat" and sampler.merge == "newline":
        return [given([-1, 0, 0, 1, 1, 1], {2: 3, 3: 2}, [0] * 6, {})]
    if sampler.kind == "flat" or sampler.kind == "lookahead":
        return [tree_of([1, 0, 0, 1, 0]), tree_of([1, 1, 0], problem_id="q")]
    if sampler.kind == "fork_tree":
        return [given([-1, 0, 0, 1, 1, 2, 2, 3, 3], {}, [0, 0, 1, 0, 0, 1, 1, 0, 0], {1: FinishReason.FORK})]
    if sampler.kind == "search_tree":
        return [given([-1, 0, 0, 1, 1, 2, 2], {}, [0] * 7, {})]
    return [tree_of(nested, problem_id=str(n)) for n, nested in enumerate((T1, T2, DEEP))]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.slug)
def test_every_audit_comes_to_what_was_recorded(preset: Preset) -> None:
    plan = credit_plan(preset.config)
    credited = 0
    for tree in credit_trees(trees_for(preset), plan):
        again = RolloutTree.from_payload(tree.to_payload())
        opened = OpenTree(again)
        for node in range(again.n_nodes):
            found = node_json(opened, node, preset.config)
            audit = found["audit"]
            assert audit["agrees"] is True, (tree.name(node), audit)
            assert audit["value_agrees"] is True, (tree.name(node), audit)
            has_credit = found["advantage"] is not None
            credited += has_credit
            # A number comes with its line of numbers, the lack of one with a reason.
            assert bool(audit["substituted"]) == has_credit
            assert bool(audit["reason"]) != has_credit
            assert bool(found["credit_words"]) == (not has_credit and node > 0)
            assert found["node"] in [row["node"] for row in audit["group"]] or not audit["group"]
    assert (credited > 0) == (preset.config.objective.kind == "policy")


@pytest.mark.parametrize("column", ["advantage", "value"])
def test_a_recorded_number_that_is_off_by_more_than_a_millionth_is_an_error(column: str) -> None:
    config = PRESETS["treerpo-tiny"].config
    (tree,) = credit_trees([tree_of(T1)], credit_plan(config))
    numbers = getattr(tree, column)
    key = "agrees" if column == "advantage" else "value_agrees"
    for size, fine in ((1e-7, True), (1e-5, False)):
        wrong = dataclasses.replace(tree, **{column: numbers * (1 + size)})
        assert node_json(OpenTree(wrong), 1, config)["audit"][key] is fine
    missing = dataclasses.replace(tree, **{column: np.full(tree.n_nodes, np.nan)})
    assert node_json(OpenTree(missing), 1, config)["audit"][key] is False


def test_an_error_of_the_audit_is_told_on_the_page(run: Run, people: People) -> None:
    plan = credit_plan(PRESETS["treerpo-tiny"].config)
    (tree,) = credit_trees([tree_of(T1)], plan)
    client = people.client("viewer")
    good = add_tree(run, 5, tree)
    page = client.get(f"/t/{good.id}/n/1").content.decode()
    assert "✓ computed again: the same value and advantage" in page
    assert "Please report this run" not in page
    wrong = add_tree(run, 6, tree.with_credit(tree.value + 0.1, tree.advantage * 2, tree.credit_state))
    page = client.get(f"/t/{wrong.id}/n/1").content.decode()
    assert page.count("Please report this run") == 2
    assert "computed again: the same" not in page


def stored(run: Run, slug: str) -> StoredTree:
    """The first tree of a preset, in a run of that preset."""
    config = PRESETS[slug].config
    (tree, *_) = credit_trees(trees_for(PRESETS[slug]), credit_plan(config))
    Run.objects.filter(id=run.id).update(config=config.model_dump(mode="json"))
    return add_tree(run, 7, tree)


def test_what_was_given_is_context_and_its_answers_name_their_budget(run: Run, people: People) -> None:
    tree, client = stored(run, "hbpo-tiny"), people.client("viewer")
    sentence = client.get(f"/api/v1/trees/{tree.id}/nodes/1").json()
    assert (sentence["credit_state"], sentence["credit_words"]) == ("given", "given")
    assert sentence["finish_words"] == "given, not sampled"
    answer = client.get(f"/api/v1/trees/{tree.id}/nodes/2.1").json()
    assert answer["subgroup"] == "budget 50 tokens"
    page = client.get(f"/t/{tree.id}/n/2.1").content.decode()
    assert "budget 50 tokens" in page
    assert 'class="segment segment-prompt" data-segment="2"' in page


def test_equal_answers_count_as_often_as_they_were_sampled(run: Run, people: People) -> None:
    """Below 1: 1 (twice), 0, 1; leaf 2: 0, three times. 3 of 7 answers are correct."""
    tree, client = stored(run, "step-grpo-tiny"), people.client("viewer")
    root = client.get(f"/api/v1/trees/{tree.id}/nodes/0").json()
    assert (root["n_leaves"], root["n_answers"], root["n_correct"]) == (4, 7, 3)
    assert root["leaf_mean"] == pytest.approx(3 / 7)
    assert root["value"] == pytest.approx(3 / 7)
    assert client.get(f"/api/v1/trees/{tree.id}/nodes/2").json()["copies"] == 3
    page = client.get(f"/t/{tree.id}/n/2").content.decode()
    assert "×3 equal answers" in page
    assert "(4 different)" in client.get(f"/t/{tree.id}/n/0").content.decode()


def test_a_forest_names_its_trees_and_shows_who_is_compared(run: Run, people: People) -> None:
    tree, client = stored(run, "tree-grpo-tiny"), people.client("viewer")
    leaf = client.get(f"/api/v1/trees/{tree.id}/nodes/2.1").json()
    assert leaf["subgroup"] == "tree 2 of 2"
    assert leaf["group_is_siblings"] is False
    assert len(leaf["audit"]["group"]) == leaf["audit"]["n_group"] > 2
    inner = client.get(f"/api/v1/trees/{tree.id}/nodes/1").json()
    assert (inner["credit_state"], inner["credit_words"]) == ("per_path", "per answer")
    assert (leaf["is_compared"], inner["is_compared"]) == (True, False)
    assert inner["finish_words"] == "cut where another answer forks off"
    page = client.get(f"/t/{tree.id}/n/2.1").content.decode()
    assert "Its group</h3>" in page


def test_a_search_shows_visits_and_is_coloured_by_value(run: Run, people: People) -> None:
    tree, client = stored(run, "mcts-dpo-tiny"), people.client("viewer")
    node = client.get(f"/api/v1/trees/{tree.id}/nodes/2").json()
    assert (node["visits"], node["credit_words"]) == (2, "no advantage")
    page = client.get(f"/t/{tree.id}/")
    assert (page.context["color"], page.context["usual_colour"]) == ("value", "value")
    assert client.get(f"/t/{tree.id}/?color=advantage").context["color"] == "advantage"
    assert "2 visits" in client.get(f"/t/{tree.id}/n/2").content.decode()
    (row,) = client.get(f"/api/v1/runs/{run.id}/trees?step=7&icicles=true").json()["trees"]
    assert row["icicle"]["advantage"] == [None] * 7
    assert row["icicle"]["value"][0] is not None


def test_icicles_carry_values_only_where_there_is_no_advantage() -> None:
    plan = credit_plan(PRESETS["treerpo-tiny"].config)
    (tree,) = credit_trees([tree_of(T1)], plan)
    drawn = icicle(tree.to_payload())
    assert drawn is not None
    assert "value" not in drawn
    assert drawn["state"] == tree.credit_state.tolist()
    (unsolved,) = credit_trees([tree_of([[0, 0], [0, 0]])], plan)  # all hatched, as on its own page
    drawn = icicle(unsolved.to_payload())
    assert drawn is not None
    assert "value" not in drawn
    assert drawn["advantage"] == [None] * 7


def test_every_state_and_reason_has_words_and_the_browsers_numbers_are_right() -> None:
    assert set(CREDIT_WORDS) == set(CreditState)
    assert set(FINISH_WORDS) == set(FinishReason)
    silent = {CreditState.NONE, CreditState.CREDITED}
    assert {state for state, words in CREDIT_WORDS.items() if not words} == silent
    # As `static/js/tree/signals.js` has them.
    assert (CreditState.PER_PATH, CreditState.GIVEN, CreditState.NO_ADVANTAGE) == (5, 7, 8)
    assert [member.word for member in Verdict] == [
        "none", "correct", "incorrect", "unparsed", "truncated", "error",
    ]  # fmt: skip


def test_a_leaf_that_was_given_up_has_no_verdict_and_says_so(run: Run, people: People) -> None:
    config = PRESETS["rest-mcts-tiny"].config
    tree = given([-1, 0, 0, 1, 1], {}, [0] * 5, {2: FinishReason.PRUNED})
    reward, verdict = tree.reward.copy(), tree.verdict.copy()
    reward[2], verdict[2] = np.nan, Verdict.NONE
    tree = tree.with_verdicts(verdict, reward, tree.answers)
    (tree,) = credit_trees([tree], credit_plan(config))
    Run.objects.filter(id=run.id).update(config=config.model_dump(mode="json"))
    kept = add_tree(run, 7, tree)
    client: Client = people.client("viewer")
    node = client.get(f"/api/v1/trees/{kept.id}/nodes/2").json()
    assert (node["verdict"], node["finish_words"]) == ("none", "given up before its end")
    assert node["audit"]["value_agrees"] is True
    root = client.get(f"/api/v1/trees/{kept.id}/nodes/0").json()
    assert (root["n_answers"], root["n_given_up"], root["n_leaves"]) == (2, 1, 3)
    assert "given up before its end" in client.get(f"/t/{kept.id}/n/2").content.decode()


def test_the_audit_counts_the_tokens_that_were_clipped(run: Run, people: People) -> None:
    """The worked tree's node 1 has two tokens, the first of them clipped above with a ratio of 1.5."""
    tree = worked_tree(5)
    log_ratio = np.full(len(tree.tokens), np.nan, np.float16)
    clip = np.zeros(len(tree.tokens), np.uint8)
    first = int(tree.token_offsets[1])
    log_ratio[first : first + 2] = np.log([1.5, 0.9])
    clip[first] = Clip.ABOVE
    client = people.client("viewer")
    words = {}
    for name, changed in {
        "clipped": tree.with_clips(2, 4, log_ratio, clip),
        "none": tree.with_clips(2, 4, log_ratio, np.zeros_like(clip)),
        "one": tree.with_clips(1, 1, None, None),
        "old": tree,
    }.items():
        stored = add_tree(run, 5, changed)
        page = client.get(f"/t/{stored.id}/n/1").content.decode()
        words[name] = re.search(r'<p class="clipped[^>]*>(.*?)</p>', page)[1]
        if name == "clipped":
            _, found = read_columns(client.get(f"/api/v1/trees/{stored.id}/paths/1/tokens").content)
            assert found["clip"].tolist()[-2:] == [1, 0]
            np.testing.assert_allclose(np.exp(found["log_ratio"][-2:]), [1.5, 0.9], rtol=1e-3)
    assert words == {
        "clipped": "1 of 2 tokens clipped: 1 above. Ratios 0.900 to 1.500, mean 1.200, in update 2 of 4.",
        "none": "None of its 2 tokens was clipped. Ratios 0.900 to 1.500, mean 1.200, in update 2 of 4.",
        "one": "The step had one update: every ratio was 1, and nothing was clipped.",
        "old": "What was clipped of it was not recorded.",
    }
