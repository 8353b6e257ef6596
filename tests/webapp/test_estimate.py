from __future__ import annotations

import pytest

from trainer.config import RunConfig
from trainer.presets import PRESETS, Preset
from trainer.schema.sampler import FlatSampler, ForkTreeSampler, SegmentTreeSampler
from trainer.schema.training import TrainingConfig
from webapp.runs.estimate import estimate


@pytest.mark.parametrize(
    ("children", "depth", "length", "leaves", "nodes", "tokens", "flat", "saving"),
    [
        (2, 6, 128, 64, 126, 16_128, 49_152, 67),
        (4, 3, 256, 64, 84, 21_504, 49_152, 56),
        (4, 4, 192, 256, 340, 65_280, 196_608, 67),
        (8, 3, 384, 512, 584, 224_256, 589_824, 62),
    ],
)
def test_the_design_table(
    children: int, depth: int, length: int, leaves: int, nodes: int, tokens: int, flat: int, saving: int
) -> None:
    sampler = SegmentTreeSampler(
        depth=depth, branching_per_depth=(children,), segment_tokens_per_depth=(length,)
    )
    found = estimate(RunConfig(sampler=sampler, training=TrainingConfig(problems_per_step=3)))
    assert (found.leaves_per_tree, found.nodes_per_tree) == (leaves, nodes)
    assert (found.tokens_per_tree_max, found.flat_tokens_max) == (tokens, flat)
    assert found.saving is not None
    assert round(100 * found.saving) == saving
    assert found.saving == pytest.approx(1 - nodes / (leaves * depth))
    assert (found.tokens_per_step_max, found.flat_tokens_per_step_max) == (3 * tokens, 3 * flat)
    assert (found.leaves_per_step, found.nodes_per_step) == (3 * leaves, 3 * nodes)
    assert found.rows == tuple(children**d for d in range(1, depth + 1))


def test_lengths_that_differ_by_depth() -> None:
    """4 nodes of 10, 8 of 20, 16 of 30: 40 + 160 + 480 = 680; flat 16 answers of 60 = 960."""
    sampler = SegmentTreeSampler(
        depth=3, branching_per_depth=(4, 2, 2), segment_tokens_per_depth=(10, 20, 30)
    )
    found = estimate(RunConfig(sampler=sampler))
    assert (found.nodes_per_tree, found.tokens_per_tree_max, found.flat_tokens_max) == (28, 680, 960)


def test_flat_answers_save_nothing() -> None:
    found = estimate(RunConfig(sampler=FlatSampler(group_size=8, max_tokens=96)))
    assert (found.leaves_per_tree, found.nodes_per_tree, found.saving) == (8, 8, 0)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.slug)
def test_every_preset_has_a_picture_whose_last_row_is_no_wider_than_its_leaves(preset: Preset) -> None:
    found = estimate(preset.config)
    assert found.rows
    assert list(found.rows) == sorted(found.rows)
    assert found.rows[-1] <= max(found.leaves_per_tree, found.nodes_per_tree)
    assert sum(found.rows) <= found.nodes_per_tree or found.is_loose
    assert (found.saving is None) == found.is_loose
    assert found.saving is None or 0 <= found.saving < 1


def test_what_is_shared_by_chance_is_not_promised() -> None:
    """A forked or merged tree saves what it saves; its bounds are those of unshared answers."""
    forked = estimate(RunConfig(sampler=ForkTreeSampler(trees=3, rounds=1, forks=2, continuations=1)))
    assert (forked.leaves_per_tree, forked.rows, forked.saving) == (9, (3, 9), None)
    merged = PRESETS["step-grpo-tiny"].config
    assert (estimate(merged).is_loose, estimate(merged).saving) == (True, None)
