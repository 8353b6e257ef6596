from __future__ import annotations

import json

import numpy as np
import pytest

from trainer.presets import PRESETS
from trainer.probe import fitted, probe_lines, signal_and_noise


def test_signal_and_noise_by_hand() -> None:
    # g = (3, 0), (1, 0): the only pair has the product 3; mean |g|^2 = 5, so noise 2.
    assert signal_and_noise(np.array([[3, 0], [1, 0]], np.float32)) == (3.0, 2.0)
    # Opposite ones: the estimate of |E g|^2 is below 0.
    assert signal_and_noise(np.array([[1, 0], [-1, 0]], np.float32)) == (-1.0, 2.0)
    with pytest.raises(ValueError, match="two or more"):
        signal_and_noise(np.ones((1, 2), np.float32))


def test_signal_and_noise_are_unbiased() -> None:
    rng = np.random.default_rng(0)
    mean = np.array([0.3, -0.2, 0.1])
    found = [signal_and_noise((mean + rng.normal(0, 0.7, (5, 3))).astype(np.float32)) for _ in range(4000)]
    signal, noise = np.mean(found, axis=0)
    assert signal == pytest.approx(float(mean @ mean), abs=0.02)
    assert noise == pytest.approx(3 * 0.49, rel=0.02)


def test_a_probe_ranks_methods_at_equal_tokens_and_repeats() -> None:
    presets = [PRESETS["grpo-tiny"], PRESETS["step-grpo-tiny"], PRESETS["treerpo-tiny"]]

    def run() -> list[dict[str, float]]:
        (line,) = probe_lines(
            "tiny-reasoner", presets, operations=3, batches=3, tokens=800, seed=1, as_json=True
        )
        found: list[dict[str, float]] = json.loads(line)["methods"]
        return found

    first = run()
    assert [one["snr"] for one in first] == sorted((one["snr"] for one in first), reverse=True)
    for one in first:
        assert 500 < one["sampled_tokens"] < 1200
        assert one["noise"] > 0
        assert -1 <= one["cosine"] <= 1
    again = {one["method"]: one["snr"] for one in run()}
    assert again == {one["method"]: one["snr"] for one in first}


@pytest.mark.parametrize("slug", [slug for slug, preset in PRESETS.items() if preset.scale == "tiny"])
def test_every_tiny_preset_can_be_made_long_enough(slug: str) -> None:
    config = fitted(PRESETS[slug], 12).config
    assert config.sampler.bounds.answer_tokens >= 16 + 16 * 12
