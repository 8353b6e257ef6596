from __future__ import annotations

import dataclasses
import math

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.trees import T2, Nested, children_of, credit_tree, leaves_below, nested_trees, tree_of
from trainer import tree as tree_module
from trainer.payload import advantages_in
from trainer.presets import PRESETS
from trainer.summary import summarise
from trainer.tree import ROOT, RolloutTree
from trainer.values import _weighted_child_mean, child_weights

TREERPO = PRESETS["treerpo-tiny"].config.credit


def assert_equal_trees(one: RolloutTree, other: RolloutTree) -> None:
    for field in dataclasses.fields(RolloutTree):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(first, np.ndarray):
            assert first.dtype == second.dtype
            np.testing.assert_array_equal(first, second)
        elif isinstance(first, float):
            assert first == second or (math.isnan(first) and math.isnan(second))
        else:
            assert first == second


# ---- shape


@given(nested_trees())
def test_shape_equals_the_slow_version(nested: Nested) -> None:
    tree = tree_of(nested)
    counts, first, leaf = tree.child_counts(), tree.first_children(), tree.is_leaf()
    for node in range(tree.n_nodes):
        children = children_of(tree, node)
        assert counts[node] == len(children)
        assert list(range(first[node], first[node] + counts[node])) == children
        assert leaf[node] == (not children and node != ROOT)
        below = [n for n in leaves_below(tree, node) if n != ROOT]
        assert tree.leaf_counts()[node] == len(below)
        assert tree.depths()[node] == len(tree.path(node)) - 1
        assert tree.find(tree.name(node)) == node


@given(nested_trees(max_children=6, max_leaves=60), st.integers(0, 2**32))
def test_sums_level_by_level_are_those_node_by_node_to_the_bit(nested: Nested, seed: int) -> None:
    tree = tree_of(nested)
    per_leaf = np.random.default_rng(seed).normal(size=tree.n_nodes)
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for least, width in ((10**9, 50), (0, 0)):
            patch.setattr(tree_module, "LEVELWISE_FROM", least)
            patch.setattr(tree_module, "LEVELWISE_WIDTH", width)
            found.append(tree.sum_over_leaves(per_leaf).tobytes())
            known = np.where(per_leaf < -1, np.nan, per_leaf)
            found.append(_weighted_child_mean(tree, known, child_weights(tree)).tobytes())
    assert found[:2] == found[2:]


def test_names_count_children_from_one() -> None:
    tree = tree_of(T2)
    assert [tree.name(node) for node in range(tree.n_nodes)] == ["0", "1", "2", "2.1", "2.2", "2.3"]
    assert tree.path(4) == [0, 2, 4]
    assert tree.find("") == ROOT


@pytest.mark.parametrize("name", ["3", "2.4", "2.0", "1.1", "x", "2.", ".", "2.٢", "1e1", "-1", "9" * 30])
def test_a_name_that_does_not_exist_is_a_key_error(name: str) -> None:
    with pytest.raises(KeyError, match="There is no node"):
        tree_of(T2).find(name)


def test_a_chain_of_five_thousand_nodes_has_no_recursion() -> None:
    nested: Nested = 1
    for _ in range(5000):
        nested = [nested]
    tree = credit_tree(tree_of(nested, tokens_per_segment=1), TREERPO)
    assert tree.value[ROOT] == 1
    assert summarise(tree).depth == 5000
    assert tree.find(tree.name(5000)) == 5000
    assert_equal_trees(RolloutTree.from_payload(tree.to_payload()), tree)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parent": np.array([-1, 0, 0, 3, 2, 2], np.int32)}, "Node 3 has parent 3"),
        ({"parent": np.array([-1, 0, 0, 5, 2, 2], np.int32)}, "Node 3 has parent 5"),
        ({"parent": np.array([-1, 0, -1, 2, 2, 2], np.int32)}, "Node 2 has parent -1"),
        ({"parent": np.array([-1, 0, 1, 0, 2, 2], np.int32)}, "breadth-first"),
        ({"parent": np.array([0, 0, 0, 2, 2, 2], np.int32)}, "starts with its root"),
        ({"parent": np.empty(0, np.int32)}, "starts with its root"),
        ({"reward": np.zeros(5)}, "Column reward has 5 rows; the tree has 6 nodes"),
        ({"texts": ("a",)}, "1 texts"),
        ({"logprobs": np.zeros(3, np.float32)}, "Column logprobs has 3 rows for 13 tokens"),
        ({"token_offsets": np.array([0, 3, 5, 4, 9, 11, 13])}, "token_offsets must rise"),
        ({"token_offsets": np.array([0, 3, 5, 7, 9, 11, 12])}, "token_offsets must rise from 0 to 13"),
        ({"verdict": np.array([0, 0, 0, 1, 6, 2], np.uint8)}, "Node 4 has verdict 6; expected 0 to 5"),
        ({"credit_state": np.array([0, 1, 1, 1, 1, 255], np.uint8)}, "Node 5 has credit_state 255"),
        ({"finish": np.array([0, 8, 1, 1, 1, 1], np.uint8)}, "Node 1 has finish 8; expected 0 to 7"),
        ({"finish": np.array([0, 1, 1, -1, 1, 1])}, "Node 3 has finish -1"),
    ],
)
def test_a_malformed_tree_is_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tree_of(T2), **change)  # type: ignore[arg-type]


# ---- payload


@given(nested_trees(), st.text(max_size=20))
def test_any_tree_survives_its_payload(nested: Nested, text: str) -> None:
    tree = credit_tree(tree_of(nested), TREERPO)
    tree = dataclasses.replace(tree, texts=(text, *tree.texts[1:]))
    again = RolloutTree.from_payload(tree.to_payload())
    stored = dataclasses.replace(tree, texts=(text.replace("\x00", "\u2400"), *tree.texts[1:]))
    assert_equal_trees(again, stored)


def full_tree() -> RolloutTree:
    """T2 with everything that a tree may be without."""
    tree = tree_of(T2)
    n, rng = len(tree.tokens), np.random.default_rng(1)
    return dataclasses.replace(
        tree,
        temperature=0.7,
        stream=2**64 - 1,
        mismatch=np.where(np.arange(n) < 3, np.nan, 1e-5 * rng.normal(size=n)).astype(np.float16),
        loss_share=0.25,
        update=2,
        updates=4,
        log_ratio=np.where(np.arange(n) < 3, np.nan, rng.normal(size=n)).astype(np.float16),
        clip=(np.arange(n) % 3).astype(np.uint8),
        top_tokens=rng.integers(-1, 50, (n, 3)).astype(np.int32),
        top_logprobs=-rng.random((n, 3)).astype(np.float16),
        token_bytes={7: b"a", 9: b"\xe2\x82", 50: b""},
    )


def test_what_a_tree_may_be_without_survives_its_payload() -> None:
    tree = full_tree()
    assert_equal_trees(RolloutTree.from_payload(tree.to_payload()), tree)
    assert tree.policy_logprobs is not None
    assert np.isnan(tree.policy_logprobs[:3]).all()
    np.testing.assert_allclose(tree.policy_logprobs[3:], tree.logprobs[3:], atol=1e-4)
    assert set(tree.token_ids()) == set(tree.tokens.tolist()) | (set(tree.top_tokens.ravel()) - {-1})


def test_payloads_of_earlier_versions_are_read() -> None:
    tree = full_tree()
    body = msgpack.unpackb(zstandard.ZstdDecompressor().decompress(tree.to_payload()), raw=False)
    old = {name: value for name, value in body.items() if name != "update"} | {"version": 3}
    old["columns"] = {k: v for k, v in body["columns"].items() if k not in ("log_ratio", "clip")}
    unclipped = tree.with_clips(0, 0, None, None)
    assert_equal_trees(RolloutTree.from_payload(zstandard.compress(msgpack.packb(old))), unclipped)
    later = ("temperature", "stream", "loss_share", "top_k", "token_bytes")
    old = {name: value for name, value in old.items() if name not in later} | {"version": 2}
    columns = {k: v for k, v in old["columns"].items() if k not in ("mismatch", "top_tokens", "top_logprobs")}
    plain = tree_of(T2)
    read = RolloutTree.from_payload(zstandard.compress(msgpack.packb(old | {"columns": columns})))
    assert_equal_trees(read, plain)
    for name in ("copies", "subgroup", "visits"):
        del columns[name]
    for name in ("batch_mean", "batch_std"):
        del old[name]
    oldest = old | {"version": 1, "columns": columns}
    assert_equal_trees(RolloutTree.from_payload(zstandard.compress(msgpack.packb(oldest))), plain)


def test_text_that_cannot_be_stored_is_made_storable() -> None:
    tree = dataclasses.replace(tree_of([1]), texts=("a\x00b", "c\ud83d d"))
    assert RolloutTree.from_payload(tree.to_payload()).texts == ("a␀b", "c\ufffd d")


def damaged_payloads() -> list[bytes]:
    good = tree_of(T2).to_payload()
    raw = zstandard.ZstdDecompressor().decompress(good)

    def packed(**changes: object) -> bytes:
        body = msgpack.unpackb(raw, raw=False) | changes
        return zstandard.ZstdCompressor().compress(msgpack.packb(body))

    columns = msgpack.unpackb(raw, raw=False)["columns"]
    without_parent = {k: v for k, v in columns.items() if k != "parent"}
    return [
        b"",
        b"not a payload",
        good[:-5],
        good[:20] + bytes([good[20] ^ 0xFF]) + good[21:],
        packed(version=99),
        packed(columns=without_parent),
        packed(columns=columns | {"parent": columns["parent"][:-2]}),
        packed(columns=columns | {"parent": columns["parent"][:-4]}),
        packed(texts=["one"]),
        packed(texts=None),
        packed(columns=columns | {"verdict": bytes([200] * 6)}),
        packed(columns=columns | {"credit_state": bytes([255] * 6)}),
        packed(columns=columns | {"finish": bytes([9] * 6)}),
        packed(step=float("inf")),
        packed(version=[3]),
        packed(top_k=10**9),
        packed(top_k=2, columns=columns | {"top_tokens": bytes(4 * 2 * 13)}),
        packed(top_k=0, columns=columns | {"top_tokens": b"", "top_logprobs": b""}),
        packed(columns=columns | {"mismatch": bytes(2)}),
        packed(token_bytes=[[1], [2]]),
        packed(token_bytes=[[1], []]),
        packed(stream="x"),
        packed(policy_version=float("nan")),
        zstandard.ZstdCompressor().compress(b"\xc1"),
        zstandard.ZstdCompressor().compress(msgpack.packb([1, 2])),
        zstandard.ZstdCompressor().compress(b"\x91" * 5000),
    ]


@pytest.mark.parametrize("payload", damaged_payloads())
def test_a_damaged_payload_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match="This tree cannot be read"):
        RolloutTree.from_payload(payload)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_error_at_worst(payload: bytes) -> None:
    for read in (RolloutTree.from_payload, advantages_in):
        with pytest.raises(ValueError, match="This tree cannot be read"):
            read(payload)


def test_the_advantages_alone_are_those_of_the_tree() -> None:
    tree = full_tree()
    np.testing.assert_array_equal(advantages_in(tree.to_payload()), tree.advantage)
    for damage in (tree.to_payload()[:40], zstandard.compress(msgpack.packb({"columns": {"reward": b""}}))):
        with pytest.raises(ValueError, match="This tree cannot be read"):
            advantages_in(damage)


def test_a_payload_that_claims_too_much_is_not_expanded() -> None:
    bomb = zstandard.ZstdCompressor().compress(b"\0" * (257 * 2**20))
    with pytest.raises(ValueError, match=r"it claims 269484032 bytes; at most"):
        RolloutTree.from_payload(bomb)
