from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.seeding import ROOT_PATH, child_paths, generator, named_seed, philox, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers published with the Random123 library for philox4x32, 10 rounds
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_numbers(counter: list[int], key: list[int], expected: list[int]) -> None:
    words = philox(np.array(counter, np.uint64)[:, None], np.array(key, np.uint64)[:, None])
    assert words[:, 0].tolist() == expected


def test_names_are_told_apart() -> None:
    seeds = {
        named_seed("ab", "c"),
        named_seed("a", "bc"),
        named_seed("abc"),
        named_seed(1),
        named_seed("1"),
        named_seed(1, 0),
    }
    assert len(seeds) == 6
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert named_seed(1, "tree", 5) == named_seed(1, "tree", 5)


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 6))
def test_a_node_draws_the_same_numbers_whatever_else_is_drawn(count: int, more: int, rows: int) -> None:
    keys = np.array([named_seed("k", i) for i in range(rows)], np.uint64)
    paths = child_paths(np.full(rows, ROOT_PATH, np.uint64), np.arange(rows))
    together = uniforms(keys, paths, count + more)
    for row in range(rows):
        alone = uniforms(keys[row : row + 1], paths[row : row + 1], count)
        assert alone[0].tolist() == together[row, :count].tolist()
        later = uniforms(keys[row : row + 1], paths[row : row + 1], 8, first=count // 4 * 4)
        assert later[0].tolist() == uniforms(keys, paths, 80)[row, count // 4 * 4 :][:8].tolist()


def test_every_bit_of_key_and_path_matters() -> None:
    def draw(key: int, path: int) -> float:
        return float(uniforms(np.array([key], np.uint64), np.array([path], np.uint64), 1)[0, 0])

    assert (
        len(
            {draw(0, 0), *(draw(1 << bit, 0) for bit in range(64)), *(draw(0, 1 << bit) for bit in range(64))}
        )
        == 129
    )


def test_draws_are_uniform_and_strictly_inside() -> None:
    paths = child_paths(np.zeros(500, np.uint64), np.arange(500))
    draws = uniforms(np.full(500, named_seed("x"), np.uint64), paths, 200)
    assert 0 < draws.min() < draws.max() < 1
    histogram = np.histogram(draws, 20, (0, 1))[0] / draws.size
    assert np.abs(histogram - 0.05).max() < 5 * np.sqrt(0.05 * 0.95 / draws.size)
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 5 / np.sqrt(500)


def test_paths_differ_by_every_turn() -> None:
    first = child_paths(np.zeros(64, np.uint64), np.arange(64))
    second = child_paths(np.repeat(first, 64), np.tile(np.arange(64), 64))
    third = child_paths(second, np.zeros(64 * 64, np.int64))
    assert len({ROOT_PATH, *first.tolist(), *second.tolist(), *third.tolist()}) == 1 + 64 + 2 * 64 * 64


def test_generators_of_equal_names_are_equal() -> None:
    assert generator(3, "epoch", 1).random(4).tolist() == generator(3, "epoch", 1).random(4).tolist()
    assert generator(3, "epoch", 1).random() != generator(3, "epoch", 2).random()
