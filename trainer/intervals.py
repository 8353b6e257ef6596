"""Intervals for shares: how much a few answers can tell. Torch-free, so that pages may use it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_Z = 1.959963984540054  # 97.5 % point of the normal distribution: a 95 % interval


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927): unlike mean ± 2 s.e. it stays in [0, 1] and is honest near 0
    and 1.

    centre = (p + z²/2n) / (1 + z²/n), half width = z sqrt(p(1-p)/n + z²/4n²) / (1 + z²/n). NaN, NaN without
    trials.
    """
    if trials == 0:
        return math.nan, math.nan
    share, weight = successes / trials, _Z**2 / trials
    centre = (share + weight / 2) / (1 + weight)
    half = _Z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials)) / (1 + weight)
    # Rounding may put an end past the share itself when that is 0 or 1.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def difference_interval(successes: int, trials: int, others: int, other_trials: int) -> tuple[float, float]:
    """95 % interval of the difference of two shares, from the Wilson interval of each (Newcombe 1998, method
    10): p1 - p2 - sqrt((p1 - l1)² + (u2 - p2)²) to p1 - p2 + sqrt((u1 - p1)² + (p2 - l2)²).

    NaN, NaN without trials on either side.
    """
    if trials == 0 or other_trials == 0:
        return math.nan, math.nan
    p1, p2 = successes / trials, others / other_trials
    (l1, u1), (l2, u2) = wilson_interval(successes, trials), wilson_interval(others, other_trials)
    return p1 - p2 - math.hypot(p1 - l1, u2 - p2), p1 - p2 + math.hypot(u1 - p1, p2 - l2)


def bootstrap_interval(values: NDArray[np.float64], draws: int = 2000) -> tuple[float, float]:
    """95 % interval of a mean over problems: percentiles of the means of `draws` resamples (Efron 1979).

    The same values always give the same interval. NaN, NaN without values.
    """
    if not len(values):
        return math.nan, math.nan
    resampled = np.random.Generator(np.random.Philox(key=len(values))).integers(
        0, len(values), (draws, len(values))
    )
    low, high = np.percentile(values[resampled].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)
