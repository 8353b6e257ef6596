"""A node and its tree under every estimator: the page says what `trainer.comparison` says."""

from __future__ import annotations

import pytest

from tests.webapp.material import People, add_tree, worked_tree
from webapp.runs.models import Run


def test_a_node_under_every_estimator_with_its_own_among_them(run: Run, people: People) -> None:
    """Node 1 of the worked tree: V = 1/2 of 1/4 in all, rewards 1, 0, 0, 0."""
    tree, client = add_tree(run, 5, worked_tree(5)), people.client("viewer")
    found = client.get(f"/api/v1/trees/{tree.id}/nodes/1/estimators").json()["estimators"]
    rows = {row["name"]: row for row in found}
    (own,) = [row for row in found if row["is_own"]]
    assert (own["name"], own["advantage"], own["flips"]) == ("treerpo", pytest.approx(4 / 3), False)
    assert rows["dr-grpo"]["advantage"] is None  # its answers have it
    assert rows["dr-grpo"]["words"] == "per answer"
    assert rows["dr-grpo"]["push"] == pytest.approx((0.75 - 0.25) / 2)
    assert "whole batch" in rows["lite-ppo"]["reason"]
    assert rows["lite-ppo"]["push"] is None


def test_what_would_be_pushed_the_other_way_is_counted_and_named(run: Run, people: People) -> None:
    """Every credited node of the worked tree has the sign that Dr. GRPO gives it; turned round, none has."""
    tree, client = add_tree(run, 5, worked_tree(5)), people.client("viewer")
    whole = client.get(f"/api/v1/trees/{tree.id}/estimators").json()["estimators"]
    by_name = {row["name"]: row for row in whole}
    assert by_name["treerpo"]["likeness"] is None
    assert by_name["treerpo"]["n_pushed"] == 4
    assert by_name["dr-grpo"]["n_pushed"] == 6
    assert by_name["dr-grpo"]["n_flips"] == 0
    wrong = worked_tree(5)
    wrong = wrong.with_credit(wrong.value, -wrong.advantage, wrong.credit_state)
    flipped = add_tree(run, 6, wrong)
    page = client.get(f"/t/{flipped.id}/estimators?n=1.1&under=dr-grpo")
    assert [row["node"] for row in page.context["flips"]["rows"]] == ["1.1", "1.2", "1", "2"]
    assert client.get(f"/t/{tree.id}/estimators?under=<b>").status_code == 404


def test_the_inspector_beside_the_tree_lists_them_too(run: Run, people: People) -> None:
    tree, client = add_tree(run, 5, worked_tree(5)), people.client("viewer")
    for path in (f"/t/{tree.id}/?n=1", f"/t/{tree.id}/n/1"):
        page = client.get(path).content.decode()
        inspector = page[page.index('id="inspector"') :]
        assert "Dr. GRPO" in inspector, path
        assert "+0.25" in inspector, path  # what Dr. GRPO would have given node 1
        undefined = inspector[inspector.index("not defined on this tree") :].split("</details>")[0]
        assert "Lite PPO" in undefined, path
        assert "whole batch" in undefined, path  # the reason in words, not only under a pointer
