"""Trees as pages and API show them, against a tree worked by hand (`material.worked_tree`)."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import re
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from django.test import Client

from tests.trainer.trees import credit_tree
from tests.webapp.material import People, add_tree, worked_tree
from trainer.config import RunConfig
from trainer.credit import credit_plan
from trainer.intervals import wilson_interval
from trainer.presets import PRESETS
from trainer.schema.credit import CreditConfig
from trainer.tree import FinishReason, RolloutTree, sampled_tree
from webapp.runs.models import Run, RunStatus
from webapp.trees import lists
from webapp.trees.columns import columns
from webapp.trees.models import GrowingTrees, StoredTree
from webapp.trees.nodes import MAX_OUTLINE_ROWS, MAX_SIBLINGS, node_json, outline, text_start
from webapp.trees.opened import OpenTree
from webapp.trees.querysets import icicles_of
from webapp.trees.scale import advantage_limit, coarse_first

SIGNALS = Path(__file__).resolve().parents[2] / "webapp/static/js/tree/signals.js"

CONFIG = PRESETS["treerpo-tiny"].config
PLAN = credit_plan(CONFIG)


@pytest.fixture
def stored(run: Run) -> StoredTree:
    return StoredTree.objects.get(run=run, step=1)


@pytest.fixture
def client(people: People) -> Client:
    return people.client("viewer")


def chain(n: int) -> RolloutTree:
    """A tree that is one path of n nodes."""
    return grown([-1, *range(n - 1)])


def star(children: int) -> RolloutTree:
    return grown([-1, *[0] * children])


def grown(parent: list[int]) -> RolloutTree:
    n = len(parent)
    tree = sampled_tree(
        problem_id="p", reference_answer="1", step=1, policy_version=0, parent=parent,
        segment_tokens=[[1]] * n, segment_logprobs=[[-1.0]] * n, segment_entropies=[[1.0]] * n,
        finish=[0] + [1] * (n - 1), texts=["t"] * n,
    )  # fmt: skip
    leaf = tree.is_leaf()
    reward = np.where(leaf, np.arange(n) % 2, np.nan)
    verdict = np.where(leaf, 2 - np.arange(n) % 2, 0).astype(np.uint8)
    return credit_tree(tree.with_verdicts(verdict, reward, [""] * n), PLAN.credit)


# ------------------------------------------------------------------------------------------------ columns


def read_columns(raw: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """As the browser does it: typed arrays straight over the buffer, so every column must be aligned."""
    (length,) = struct.unpack_from("<I", raw)
    header = json.loads(raw[4 : 4 + length])
    start = 4 + length
    assert start % 4 == 0
    arrays = {}
    for column in header["columns"]:
        assert column["offset"] % 4 == 0
        arrays[column["name"]] = np.frombuffer(
            raw, column["dtype"], column["length"], start + column["offset"]
        )
    return header, arrays


def test_columns_are_the_trees_numbers(stored: StoredTree, client: Client) -> None:
    response = client.get(f"/api/v1/trees/{stored.id}/columns")
    assert response.headers["Content-Type"] == "application/octet-stream"
    header, found = read_columns(response.content)
    assert (header["n_nodes"], header["policy_version"]) == (7, 0)
    assert found["n_children"].tolist() == [2, 2, 2, 0, 0, 0, 0]
    assert found["tokens"].tolist() == [3, 2, 1, 2, 1, 1, 0]
    np.testing.assert_allclose(found["value"], [0.25, 0.5, 0, 1, 0, 0, 0])
    np.testing.assert_allclose(found["advantage"], [np.nan, 4 / 3, -4 / 3, 2, -2, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(found["entropy"], [np.nan, 1.5, 3, 4.5, 6, 7, np.nan])
    np.testing.assert_allclose(found["logprob"], [np.nan, -1, -1, -1.5, -3, -4, np.nan])
    words = [header["labels"]["verdict"][v] for v in found["verdict"]]
    assert words == ["none", "none", "none", "correct", "incorrect", "incorrect", "truncated"]
    states = [header["labels"]["credit_state"][v] for v in found["credit_state"]]
    assert states == ["none", *["credited"] * 4, *["dropped_by_filter"] * 2]
    assert [header["labels"]["finish"][v] for v in found["finish"]][-1] == "length"
    assert not {"copies", "visits"} & set(found), "what no node has is not sent"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 100])
def test_columns_are_aligned_for_any_size(n: int) -> None:
    header, found = read_columns(columns(chain(n)))
    assert all(len(array) == n for array in found.values())
    assert header["names_from"] == "n_children"


def test_columns_stay_below_24_bytes_a_node() -> None:
    tree = grown([-1, *[0] * 300, *[node for node in range(1, 301) for _ in range(9)]])
    raw = columns(tree)
    assert len(raw) < 24 * tree.n_nodes + 1500  # the header
    _, found = read_columns(raw)
    assert found["n_children"].dtype == np.uint16, "300 children need two bytes"
    merged = dataclasses.replace(tree, copies=np.where(tree.is_leaf(), 3, 0).astype(np.int32))
    assert read_columns(columns(merged))[1]["copies"].tolist() == merged.copies.tolist()


def test_given_text_has_no_entropy_and_no_logprob() -> None:
    tree = worked_tree()
    finish = tree.finish.copy()
    finish[1] = FinishReason.GIVEN
    _, found = read_columns(columns(dataclasses.replace(tree, finish=finish)))
    for name in ("entropy", "logprob"):
        assert np.isnan(found[name][[0, 1]]).all(), "what is stored there is no measurement"
        assert np.isfinite(found[name][2:6]).all()


def test_mismatch_is_a_column_where_it_is_more_than_rounding() -> None:
    tree = worked_tree()
    away = np.full(len(tree.tokens), np.nan, np.float16)
    first, last = tree.token_offsets[1], tree.token_offsets[2]
    away[first:last] = 1e-5
    assert "mismatch" not in read_columns(columns(tree))[1]
    assert "mismatch" not in read_columns(columns(tree.with_training(away, 0.1)))[1]
    away[first] = -0.5
    found = read_columns(columns(tree.with_training(away, 0.1)))[1]["mismatch"]
    assert found[1] == pytest.approx(0.5 / (last - first), abs=1e-3)
    assert np.isnan(found[[0, 2, 3, 4, 5, 6]]).all()


@pytest.mark.parametrize("accepted", ["gzip, deflate", "br, zstd", "gzip;q=0", ""])
def test_columns_are_compressed_as_the_browser_accepts(
    stored: StoredTree, client: Client, accepted: str
) -> None:
    response = client.get(f"/api/v1/trees/{stored.id}/columns", headers={"Accept-Encoding": accepted})
    body, encoding = response.content, response.headers.get("Content-Encoding", "")
    assert encoding == {"gzip, deflate": "gzip", "br, zstd": "zstd"}.get(accepted, "")
    raw = {
        "gzip": lambda: gzip.decompress(body),
        "zstd": lambda: zstandard.ZstdDecompressor().decompress(body),
        "": lambda: body,
    }[encoding]()
    assert read_columns(raw)[0]["n_nodes"] == 7
    assert "Accept-Encoding" in response.headers["Vary"]


def test_texts_come_by_the_block_and_say_when_asked_wrongly(
    stored: StoredTree, client: Client, run: Run
) -> None:
    found = client.get(f"/api/v1/trees/{stored.id}/texts?blocks=0,9").json()
    assert list(found) == ["0"], "blocks beyond the end are left out"
    assert found["0"][2:4] == ["no", "#### 71"]
    wide = add_tree(run, 3, grown([-1, *[0] * 200]))
    assert [
        len(texts) for texts in client.get(f"/api/v1/trees/{wide.id}/texts?blocks=0,1").json().values()
    ] == [128, 73]
    for blocks in ("", "x", "-1", "0," * 100 + "0"):
        assert client.get(f"/api/v1/trees/{stored.id}/texts?blocks={blocks}").status_code == 400


def test_letters_are_found_in_texts_and_answers_whatever_their_case(
    stored: StoredTree, client: Client
) -> None:
    def find(query: str) -> Any:
        return client.get(f"/api/v1/trees/{stored.id}/find", {"q": query}).json()

    assert find("BOOKS.") == {"query": "BOOKS.", "total": 2, "nodes": [0, 1]}
    assert find("#### 7")["nodes"] == [3, 4]
    assert find("%_")["total"] == 0
    assert client.get(f"/api/v1/trees/{stored.id}/find?q=").status_code == 400
    assert client.get(f"/api/v1/trees/{stored.id}/find", {"q": "a" * 201}).status_code == 400


def test_a_tree_is_looked_at_under_another_estimator(stored: StoredTree, client: Client) -> None:
    """GRPO on the leaves: rewards 1, 0, 0, 0 have mean 1/4 and a sample deviation of 1/2; what is above a
    leaf takes the mean over its answers. 2.1 and 2.2 had no credit to differ from.
    """
    address = f"/api/v1/trees/{stored.id}/difference"
    found = np.frombuffer(client.get(address, {"under": "grpo"}).content, "<f4")
    expected = np.array([0, 0.25, -0.25, 0.75, -0.25]) / (0.5 + 1e-4) - [0, 4 / 3, -4 / 3, 2, -2]
    np.testing.assert_allclose(found[1:5], expected[1:], rtol=1e-4)
    assert np.isnan(found[[0, 5, 6]]).all()
    own = np.frombuffer(client.get(address, {"under": "treerpo"}).content, "<f4")
    assert own[1:5].tolist() == [0, 0, 0, 0]
    wrong = client.get(address, {"under": "nothing"})
    assert (wrong.status_code, "grpo" in wrong.json()["detail"]) == (400, True)
    undefined = client.get(address, {"under": "hbpo"})
    assert (undefined.status_code, "budgets" in undefined.json()["detail"]) == (422, True)


def test_one_scale_for_all_trees_of_a_run(run: Run) -> None:
    """The worked trees have |A| of 4/3, 4/3, 2, 2; what has no credit does not count."""
    limit, n_trees = advantage_limit(run) or (0.0, 0)
    sizes = [4 / 3, 4 / 3, 2, 2] * n_trees
    assert limit == pytest.approx(np.percentile(sizes, 98))
    assert n_trees == StoredTree.objects.filter(run=run).count()


@pytest.mark.parametrize("n", [0, 1, 2, 47, 48])
def test_any_number_of_trees_that_fit_is_spread_over_the_run(n: int) -> None:
    order = coarse_first(n)
    assert sorted(order) == list(range(n))
    for count in range(4, n):
        # No stretch of the run that is longer than two fair parts goes without.
        assert np.diff([-1, *sorted(order[:count]), n]).max() <= 2 * n / count + 2


# ------------------------------------------------------------------------------------------------ nodes


def test_node_json_of_the_worked_tree(stored: StoredTree, client: Client) -> None:
    node = client.get(f"/api/v1/trees/{stored.id}/nodes/1.1").json()
    assert (node["node"], node["depth"], node["text"], node["tokens"]) == ("1.1", 2, "#### 71", 2)
    assert (node["value"], node["parent_value"], node["advantage"]) == (1.0, 0.5, 2.0)
    assert (node["verdict"], node["finish"], node["answer"], node["reference_answer"]) == (
        "correct",
        "eos",
        "71",
        "71",
    )
    assert [(s["node"], s["value"], s["advantage"], s["n_leaves"]) for s in node["siblings"]] == [
        ("1.1", 1.0, 2.0, 1),
        ("1.2", 0.0, -2.0, 1),
    ]
    assert [part["node"] for part in node["path"]] == ["0", "1", "1.1"]
    assert "".join(part["text"] for part in node["path"]) == (
        "Cal has 45 books. Finds 26. How many?\n45+26=71 books.\n#### 71"
    )
    assert [part["siblings"] for part in node["path"]] == [
        [],
        [{"node": "2", "value": 0.0}],
        [{"node": "1.2", "value": 0.0}],
    ]
    assert node["audit"]["agrees"] is True
    assert node["audit"]["recomputed"] == 2.0
    assert node["audit"]["substituted"] == "A = (1 − 0.5) / (0.5 × 0.5) = 2"
    assert node["audit"]["filter"] == "Kept: max V − min V = 1 > τ = 0.1."


def test_inner_nodes_and_the_root(stored: StoredTree, client: Client) -> None:
    root = client.get(f"/api/v1/trees/{stored.id}/nodes/0").json()
    assert (root["depth"], root["n_leaves"], root["n_correct"], root["value"]) == (0, 4, 1, 0.25)
    assert (root["parent_value"], root["advantage"], root["siblings"], root["verdict"]) == (
        None,
        None,
        [],
        "none",
    )
    assert root["leaf_path_suggestion"] == "1.1"
    one = client.get(f"/api/v1/trees/{stored.id}/nodes/1").json()
    assert (one["n_leaves"], one["n_correct"], one["leaf_mean"]) == (2, 1, 0.5)
    assert one["advantage"] == pytest.approx(4 / 3)
    assert one["leaf_path_suggestion"] == "1.1"


def test_no_credit_is_null_and_says_why(stored: StoredTree, client: Client) -> None:
    node = client.get(f"/api/v1/trees/{stored.id}/nodes/2.1").json()
    assert (node["advantage"], node["credit_state"], node["value"]) == (None, "dropped_by_filter", 0.0)
    assert node["audit"]["filter"] == "Dropped: max V − min V = 0 ≤ τ = 0.1."
    assert (node["audit"]["agrees"], node["audit"]["recomputed"]) == (True, None)


def test_an_audit_that_disagrees_says_so() -> None:
    tree = worked_tree()
    wrong = tree.with_credit(tree.value, tree.advantage * 1.01, tree.credit_state)
    audit = node_json(OpenTree(wrong), 1, CONFIG)["audit"]
    assert (audit["agrees"], audit["recomputed"]) == (False, pytest.approx(4 / 3))


@pytest.mark.parametrize(
    "name", ["3", "1.3", "1.1.1", "1.0", "x", "1..1", "-1", "1.1.", "١", "9" * 50, "a\x00b", "0.1"]
)
def test_nodes_that_do_not_exist_are_404(stored: StoredTree, client: Client, name: str) -> None:
    for path in (f"/api/v1/trees/{stored.id}/nodes/{name}", f"/t/{stored.id}/n/{name}"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("1.7.2", "1"), ("1.1.1.1", "1.1"), ("x", "0"), ("1..1", "1"), ("0.1", "0"), ("a\x00b", "0")],
)
def test_an_address_with_an_unknown_node_leads_to_the_nearest_one_above(
    stored: StoredTree, client: Client, name: str, nearest: str
) -> None:
    page = client.get(f"/t/{stored.id}/", {"n": name, "color": "value"}, follow=True)
    assert page.redirect_chain == [(f"/t/{stored.id}/?n={nearest}&color=value", 302)]
    assert page.context["node"]["node"] == nearest
    shown = name.replace("\x00", "�")
    assert f"This tree has no node {shown}. The nearest one above it is shown." in page.content.decode()


def test_the_interval_of_the_leaf_mean(stored: StoredTree, client: Client) -> None:
    """1 of 2 correct: .0945 to .9055 (Wilson, 95 %); nothing scored: no interval."""
    node = client.get(f"/api/v1/trees/{stored.id}/nodes/1").json()
    assert node["wilson"] == pytest.approx([0.0945, 0.9055], abs=5e-5)
    assert "0.09 – 0.91" in client.get(f"/t/{stored.id}/n/1").content.decode()
    tree = worked_tree()
    unscored = tree.with_verdicts(tree.verdict, np.full(7, np.nan), tree.answers)
    assert node_json(OpenTree(unscored), 1, CONFIG)["wilson"] is None


def test_an_interval_counts_only_answers_that_were_scored() -> None:
    tree = star(2)  # as imported: both correct, one without a reward
    tree = tree.with_verdicts(np.array([0, 1, 1], np.uint8), np.array([np.nan, 1, np.nan]), tree.answers)
    found = node_json(OpenTree(tree), 0, CONFIG)
    assert (found["n_correct"], found["n_scored"]) == (2, 1)
    assert found["wilson"] == wilson_interval(1, 1)


def test_no_cliff_is_told_by_what_the_answers_are(run: Run, client: Client) -> None:
    wrong, right = star(2), star(2)
    right = right.with_verdicts(np.array([0, 1, 1], np.uint8), np.array([np.nan, 1, 1]), right.answers)
    wrong = wrong.with_verdicts(np.array([0, 2, 2], np.uint8), np.array([np.nan, 0, 0]), wrong.answers)
    for index, (tree, told) in enumerate(
        [(right, "Every answer is correct"), (wrong, "No single edge explains")]
    ):
        page = client.get(f"/t/{add_tree(run, 1, tree, index).id}/n/0").content.decode()
        assert told in page
        assert "Plain page" not in page  # it is the plain page


def test_no_interval_where_leaves_share_text_or_are_the_node_itself(
    stored: StoredTree, client: Client
) -> None:
    for name in ("0", "1.1"):
        assert client.get(f"/api/v1/trees/{stored.id}/nodes/{name}").json()["wilson"] is None
        assert "Wilson" not in client.get(f"/t/{stored.id}/n/{name}").content.decode()


@pytest.mark.parametrize("given_up", [False, True])
def test_no_interval_where_a_search_gave_an_answer_up(given_up: bool) -> None:
    tree = star(3)
    tree = tree.with_verdicts(np.array([0, 1, 2, 2], np.uint8), np.array([np.nan, 1, 0, 0]), tree.answers)
    if given_up:
        tree.finish[3] = FinishReason.PRUNED
    assert (node_json(OpenTree(tree), 0, CONFIG)["wilson"] is None) == given_up


@pytest.mark.parametrize("parent", [[-1, 0, 0, 1], [-1, 0, 0, 2, 2]])
def test_no_interval_where_only_some_leaves_are_children(parent: list[int]) -> None:
    tree = grown(parent)
    leaf = tree.is_leaf()
    tree = tree.with_verdicts(
        np.where(leaf, 1, 0).astype(np.uint8), np.where(leaf, 1.0, np.nan), tree.answers
    )
    assert node_json(OpenTree(tree), 0, CONFIG)["wilson"] is None


# ------------------------------------------------------------------------------------------------ shapes


def test_leaves_below_equal_the_slow_version() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        parent = [-1, *sorted(int(random.integers(0, node)) for node in range(1, 40))]
        tree = grown(parent)
        leaf = tree.is_leaf()
        for node in range(40):
            wanted = [other for other in range(40) if leaf[other] and node in tree.path(other)]
            found = node_json(OpenTree(tree), node, CONFIG)
            assert found["n_leaves"] == len(wanted)
            assert found["node"] == tree.name(node)
            assert found["n_correct"] == int((tree.verdict[wanted] == 1).sum())


def test_a_path_of_five_thousand_nodes_is_no_recursion() -> None:
    tree = chain(5000)
    rows, is_cut = outline(OpenTree(tree), 0)
    assert (len(rows), is_cut) == (MAX_OUTLINE_ROWS, True)
    assert rows[-1]["depth"] == MAX_OUTLINE_ROWS - 1
    assert node_json(OpenTree(tree), 200, CONFIG)["depth"] == 200


def test_fifty_thousand_siblings_are_cut_around_the_node() -> None:
    tree = star(50_000)
    node = node_json(OpenTree(tree), 30_000, CONFIG)
    assert (node["n_siblings"], len(node["siblings"])) == (50_000, MAX_SIBLINGS)
    assert "30000" in [sibling["node"] for sibling in node["siblings"]]
    last = node_json(OpenTree(tree), 50_000, CONFIG)
    assert last["siblings"][-1]["node"] == "50000"


def test_the_outline_reads_depth_first() -> None:
    rows, is_cut = outline(OpenTree(worked_tree()), 3)
    assert [row["node"] for row in rows] == ["0", "1", "1.1", "1.2", "2", "2.1", "2.2"]
    assert [row["depth"] for row in rows] == [0, 1, 2, 2, 1, 2, 2]
    assert [row["node"] for row in rows if row["selected"]] == ["1.1"]
    assert not is_cut


def test_text_starts_are_one_short_line() -> None:
    assert text_start("a\n\tb") == "a b"
    assert len(text_start("x" * 10**6)) == 80


# ------------------------------------------------------------------------------------------------ pages


def test_the_tree_page_shows_the_chosen_node(stored: StoredTree, client: Client) -> None:
    page = client.get(f"/t/{stored.id}/?n=1.1&view=outline&color=value")
    assert page.context["node"]["node"] == "1.1"
    assert (page.context["view"], page.context["color"]) == ("outline", "value")
    method = page.context["method"]
    assert (method.title, method.formula) == ("TreeRPO", PRESETS["treerpo-tiny"].formula)
    assert [row["selected"] for row in page.context["outline"]].index(True) == 2
    assert [row["id"] for row in page.context["beside"]] == [stored.id]


def test_the_choices_above_a_tree_are_there_without_scripts(stored: StoredTree, client: Client) -> None:
    def choices(query: str) -> dict[str, tuple[list[str], list[str]]]:
        """Of each choice its words, and those that are chosen."""
        page = client.get(f"/t/{stored.id}/?{query}").content.decode()
        selects = re.findall(r'<select id="(\w+)-choice"[^>]*>(.*?)</select>', page)
        found = re.compile(r'<option value="\w+"( selected)?>([^<]*)</option>')
        return {
            name: (
                [word for _, word in found.findall(inside)],
                [word for on, word in found.findall(inside) if on],
            )
            for name, inside in selects
        }

    usual = choices("")
    assert usual["width"] == (["leaves", "tokens", "equal per child", "weight in the loss"], ["leaves"])
    assert usual["order"] == (["as sampled", "by value"], ["as sampled"])
    # Only what this tree has: no policies to tell apart, no mismatch, but a limit of its run.
    words = re.search(r"SIGNAL_WORDS = \{(.*?)\}", SIGNALS.read_text(), re.DOTALL)
    assert words is not None
    spoken = [
        word for name, word in re.findall(r'(\w+): "([^"]*)"', words[1]) if name not in ("mismatch", "policy")
    ]
    assert usual["colour"] == (spoken, ["advantage"])
    assert usual["scale"] == (["this run", "this tree", "fixed ±2", "symlog"], ["this run"])
    asked = choices("width=loss&order=value&color=entropy&scale=symlog")
    assert {name: asked[name][1] for name in usual if name != "estimator"} == {
        "width": ["weight in the loss"], "order": ["by value"], "colour": ["entropy"], "scale": ["symlog"],
    }  # fmt: skip
    assert choices("width=x&scale=&color=mismatch")["colour"][1] == ["value"]


@pytest.mark.parametrize(
    ("query", "name"), [("view=x", "view"), ("color=__class__", "color"), ("color=", "color")]
)
def test_an_address_with_an_unknown_word_shows_its_tree_and_says_so(
    stored: StoredTree, client: Client, query: str, name: str
) -> None:
    page = client.get(f"/t/{stored.id}/?n=1.1&{query}")
    assert page.status_code == 200
    assert (page.context["view"], page.context["color"]) == ("icicle", "advantage")
    (note,) = re.findall(r'class="address-note" role="status">([^<]*)', page.content.decode())
    assert note.startswith(f"The address asks for {query}, which there is not, so ")
    assert ("advantage, value," in note) == (name == "color")
    assert "address-note" not in client.get(f"/t/{stored.id}/?view=graph&color=value").content.decode()


def test_a_tree_keeps_the_list_that_it_was_opened_from(
    run: Run, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order, filter and page of the list stand in a tree's address; behind the page's last comes the next."""
    monkeypatch.setattr(lists, "PAGE_SIZE", 2)
    made = [add_tree(run, 7, worked_tree(7), index=n) for n in range(5)]
    StoredTree.objects.filter(id=made[1].id).update(n_errors=1)
    for n, tree in enumerate(made):
        StoredTree.objects.filter(id=tree.id).update(value=n / 10)
    listed = client.get(f"/r/{run.id}/trees?sort=-value&q=errors:0&step=7").content.decode()
    links = re.findall(r'href="(/t/\d+/\?list=[^"]*)" class="tree-link"', listed)
    assert [link.split("/")[2] for link in links] == [str(made[4].id), str(made[3].id)]
    page = client.get(links[1])
    assert [row["id"] for row in page.context["beside"]] == [made[4].id, made[3].id]
    text = page.content.decode()
    assert f'href="/r/{run.id}/trees?step=7&amp;sort=-value&amp;q=errors%3A0"' in text
    (following,) = re.findall(r'data-next="([^"]*)"', text)
    page = client.get(following)
    assert [row["id"] for row in page.context["beside"]] == [made[2].id, made[0].id]
    assert page.context["tree"]["id"] == made[2].id
    for other in ("q=errors:9", "sort=nonsense", "x" * 5000, "q=%22"):
        page = client.get(f"/t/{made[1].id}/", {"list": other})
        assert page.context["beside_words"] == "trees of step 7", "not of that list: the trees of its step"


def test_a_changed_estimator_is_named_by_its_parts(
    run: Run, stored: StoredTree, client: Client, config: RunConfig
) -> None:
    credit = CreditConfig.model_validate({"scale": {"kind": "none"}, "filter": {"kind": "none"}})
    changed = config.model_copy(update={"credit": credit})
    Run.objects.filter(id=run.id).update(config=changed.model_dump(mode="json"))
    estimator = client.get(f"/api/v1/trees/{stored.id}").json()["estimator"]
    assert estimator == {"name": "TreeRPO, changed", "formula": "A = V − μ,  μ = mean V of the siblings"}


def test_one_tree_by_api(stored: StoredTree, run: Run, client: Client) -> None:
    answer = client.get(f"/api/v1/trees/{stored.id}").json()
    assert (answer["run"], answer["project"], answer["reference_answer"], answer["policy_version"]) == (
        run.id,
        "lab",
        "71",
        0,
    )


HOSTILE = [
    "<script>fetch('/api/tokens',{method:'POST'})</script>",
    "<img src=x onerror=alert(1)>",
    "</script><!--",
    "[click](javascript:alert(1))",
    "\u202e1 = rewsna",
    "Z" + "\u0335" * 500,
    "a\u2028b\u2029c",
    "<|im_end|><|im_start|>system",
    "\x1b[2J\x1b]0;pwned\x07",
    "a\x00b",
    "a\ud83d b",
    "{{7*7}}{% debug %}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_model_text_is_shown_inert_and_given_back_whole(run: Run, client: Client, text: str) -> None:
    tree = add_tree(run, 7, worked_tree(7, text=text, problem_id="<b>p</b>"))
    shown = text.replace("\x00", "\u2400").replace("\ud83d", "\ufffd")
    assert client.get(f"/api/v1/trees/{tree.id}/nodes/1").json()["text"] == shown
    for path in (
        f"/t/{tree.id}/",
        f"/t/{tree.id}/?n=1.1",
        f"/t/{tree.id}/n/1.1",
        f"/r/{run.id}/trees?step=7",
    ):
        page = client.get(path)
        assert page.status_code == 200
        content = page.content.decode()
        for danger in ("<script>fetch", "<img src=x", "</script><!--", "<b>p"):
            assert danger not in content
        assert 'href="javascript:' not in content


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\x28\xb5\x2f\xfd"])
def test_a_damaged_tree_says_so_everywhere(
    run: Run, stored: StoredTree, client: Client, damage: bytes
) -> None:
    StoredTree.objects.filter(id=stored.id).update(payload=damage or stored.payload[:-9])
    for path in ("", "/columns", "/nodes/0"):
        response = client.get(f"/api/v1/trees/{stored.id}{path}")
        assert response.status_code == 422
        assert response.json()["detail"].startswith("This tree cannot be read: ")
    for path in (f"/t/{stored.id}/", f"/t/{stored.id}/n/0"):
        page = client.get(path)
        assert page.status_code == 422
        assert "This tree cannot be read" in page.content.decode()
    assert icicles_of(StoredTree.objects.filter(run=run, step=1)) == {stored.id: None}
    assert client.get(f"/r/{run.id}/trees?step=1").status_code == 200


def test_damage_in_a_part_that_is_read_later_is_told_by_who_reads_it(
    run: Run, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.payload.CHUNK_TOKENS", 4)
    stored = add_tree(run, 8, worked_tree())
    payload = bytes(stored.payload)
    index = struct.unpack_from("<II", payload)[1]
    first = 8 + index + msgpack.unpackb(payload[8 : 8 + index])[0]
    StoredTree.objects.filter(id=stored.id).update(payload=payload[:first] + b"\0" * (len(payload) - first))
    for path in ("columns", "estimators", "find?q=1"):  # what needs no token is still there
        assert client.get(f"/api/v1/trees/{stored.id}/{path}").status_code == 200
    response = client.get(f"/api/v1/trees/{stored.id}/nodes/1")
    assert (response.status_code, response.json()["detail"][:25]) == (422, "This tree cannot be read:")
    for path in ("n/1", "siblings?n=1"):
        page = client.get(f"/t/{stored.id}/{path}")
        assert page.status_code == 422, path
        assert "Its summary in the list of trees is still right." in page.content.decode()


def test_a_verdict_that_does_not_exist_is_damage_too(run: Run, stored: StoredTree, client: Client) -> None:
    raw = msgpack.unpackb(zstandard.ZstdDecompressor().decompress(bytes(stored.payload)))
    raw["columns"]["verdict"] = bytes([200] * stored.n_nodes)
    payload = zstandard.ZstdCompressor().compress(msgpack.packb(raw))
    StoredTree.objects.filter(id=stored.id).update(payload=payload)
    assert client.get(f"/t/{stored.id}/").status_code == 422
    assert client.get(f"/t/{stored.id}/n/1").status_code == 422
    assert client.get(f"/api/v1/trees/{stored.id}/nodes/1").status_code == 422


def test_numbers_are_strict_json(run: Run, client: Client) -> None:
    tree = worked_tree()
    stored = add_tree(
        run, 8, tree.with_credit(tree.value + math.inf, tree.advantage + math.inf, tree.credit_state)
    )
    for path in ("/nodes/1", "/nodes/0", ""):
        content = client.get(f"/api/v1/trees/{stored.id}{path}").content
        json.loads(content, parse_constant=lambda word: pytest.fail(f"{word} in JSON"))


def test_an_address_of_a_growing_tree_that_nobody_made_is_404(run: Run, client: Client) -> None:
    for query in ("", "?step=x", "?step=1&problem=%00", "?step=%D9%A1"):
        assert client.get(f"/r/{run.id}/growing{query}").status_code == 404, query


def test_growing_trees_are_told_while_the_run_is_active(run: Run, client: Client) -> None:
    def told() -> dict[str, Any]:
        return dict(client.get(f"/api/v1/runs/{run.id}/growing").json())

    page = f"/r/{run.id}/trees"
    hint = {"problem_id": "p", "parent": [-1, 0], "tokens": [0, 3], "finish": [0, 1]}
    assert (told()["step"], told()["trees"]) == (None, [])
    GrowingTrees.objects.create(run=run, step=4, at=datetime.now(UTC), trees=[hint])
    assert (told()["step"], told()["is_recorded"], told()["trees"]) == (4, False, [hint])
    assert told()["branching"] == [4, 2, 2]
    assert told()["occupancy"] is None
    busy = {"running": 31, "waiting": 7, "kv_use": 0.125, "cached_share": 0.5}
    GrowingTrees.objects.filter(run=run).update(occupancy=busy)
    Run.objects.filter(id=run.id).update(phase="sampling")
    assert told()["occupancy"] == busy
    system = client.get(f"/r/{run.id}/system").content.decode()
    assert all(words in system for words in ("Step 4 is being sampled", ">31<", ">7<", "12.5 %", "50.0 %"))
    panels = json.loads(system.partition('id="catalogue"')[2].partition(">")[2].partition("</script>")[0])
    assert {panel["section"] for panel in panels} == {"Engine", "Speed"}
    assert "engine/logprob_gap" in [panel["metrics"][0] for panel in panels]
    Run.objects.filter(id=run.id).update(phase="training")  # the engine rests
    assert told()["occupancy"] is None
    assert b'id="growing"' in client.get(page).content
    Run.objects.filter(id=run.id).update(step=4)
    assert told()["is_recorded"]
    Run.objects.filter(id=run.id).update(
        status=RunStatus.SUCCEEDED, ended_at=datetime.now(UTC), lease_until=None, lease_owner=""
    )
    assert (told()["is_active"], told()["trees"]) == (False, [])
    assert b'id="growing"' not in client.get(page).content
