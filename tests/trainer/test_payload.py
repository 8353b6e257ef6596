"""Payloads in parts: what is left packed reads as the array it stands for; damage is told wherever it is."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.trainer.test_tree import assert_equal_trees, full_tree
from trainer import payload as payload_module
from trainer.payload import PackedColumn, advantages_in, open_payload, pack
from trainer.token_means import mean_mismatch, token_means
from trainer.tree import OPTIONAL_COLUMNS, TOKEN_COLUMNS, RolloutTree

NAMES = (*TOKEN_COLUMNS, *OPTIONAL_COLUMNS)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "CHUNK_TOKENS", 4)
    monkeypatch.setattr(payload_module, "HEAD_BYTES", 16)  # the index is longer than what is read at once


def test_a_large_tree_survives_its_payload_in_parts() -> None:
    for tree in (full_tree(), dataclasses.replace(full_tree(), top_tokens=None, top_logprobs=None)):
        packed = tree.to_payload()
        assert_equal_trees(RolloutTree.from_payload(packed), tree)
        np.testing.assert_array_equal(advantages_in(packed), tree.advantage)


def test_of_a_large_tree_only_the_parts_that_are_looked_at_are_read() -> None:
    tree = full_tree()
    packed = tree.to_payload()
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return packed[start:stop]

    opened = open_payload(read)
    n_opening = len(asked)
    assert isinstance(opened.tokens, PackedColumn)
    np.testing.assert_array_equal(opened.entropies[1:3], tree.entropies[1:3])
    np.testing.assert_array_equal(opened.logprobs[2:4], tree.logprobs[2:4])  # the same stretch
    assert len(asked) == n_opening + 1
    np.testing.assert_array_equal(opened.top_tokens[5], tree.top_tokens[5])  # type: ignore[index]
    assert len(asked) == n_opening + 2
    assert sum(stop - start for start, stop in asked) < len(packed)
    # Means of segments were stored.
    np.testing.assert_allclose(token_means(opened, opened.entropies), token_means(tree, tree.entropies), 1e-6)
    assert mean_mismatch(opened) is mean_mismatch(tree) is None
    off = dataclasses.replace(tree, mismatch=tree.mismatch * np.float16(900))  # type: ignore[operator]
    expected = mean_mismatch(off)
    assert expected is not None
    found = mean_mismatch(open_payload(lambda start, stop: pack(off)[start:stop]))
    np.testing.assert_allclose(found, expected, 1e-6)  # type: ignore[arg-type]
    assert len(asked) == n_opening + 2


def test_a_packed_column_reads_as_the_array_it_stands_for() -> None:
    tree = full_tree()
    packed = tree.to_payload()
    n = len(tree.tokens)
    keys: list[Any] = [
        0, n - 1, -1, np.int64(5), slice(None), slice(2, 9), slice(4, 4), slice(8, 2), slice(None, None, -2),
        np.array([0, n - 1, 3, 3]), np.array([-1, 2]), np.arange(n) % 2 == 0, [1, 2], (slice(1, 6),),
    ]  # fmt: skip
    for name in NAMES:
        column = getattr(open_payload(lambda start, stop: packed[start:stop]), name)
        whole = getattr(tree, name)
        assert (len(column), column.shape, column.ndim, column.dtype, column.nbytes) == (
            n, whole.shape, whole.ndim, whole.dtype, whole.nbytes
        )  # fmt: skip
        for key in keys:
            np.testing.assert_array_equal(column[key], whole[key], str(key))
        np.testing.assert_array_equal(column + 1, whole + 1)
        np.testing.assert_array_equal(column.astype(np.float64), whole.astype(np.float64))
        np.testing.assert_array_equal(np.isfinite(column), np.isfinite(whole))
        with pytest.raises(IndexError):
            column[n]


def test_damage_is_a_value_error_wherever_it_is() -> None:
    packed = full_tree().to_payload()
    for cut in range(0, len(packed), 7):
        with pytest.raises(ValueError, match="This tree cannot be read"):
            RolloutTree.from_payload(packed[:cut])
    for place in range(0, 60, 3):
        torn = bytearray(packed)
        torn[place] ^= 0x55
        with contextlib.suppress(ValueError):  # and nothing else; a flipped bit may also pass unseen
            RolloutTree.from_payload(bytes(torn))
    opened = open_payload(lambda start, stop: packed[start:stop] if start < 200 else b"torn")
    with pytest.raises(ValueError, match="This tree cannot be read"):
        np.asarray(opened.top_tokens)
