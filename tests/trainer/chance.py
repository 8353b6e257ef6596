"""Do these counts follow those probabilities? Pearson's chi-square, for tests with fixed seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch


def chi_square(observed: Mapping[Any, int], expected: Mapping[Any, float]) -> float:
    """p-value of the counts under these probabilities, which sum to 1; cells of fewer than 5 expected are
    one cell."""
    total = sum(observed.values())
    assert sum(expected.values()) == pytest.approx(1)
    assert set(observed) <= set(expected)
    large = [word for word in expected if expected[word] * total >= 5]
    cells = [(observed.get(word, 0), expected[word] * total) for word in large]
    rest = total - sum(seen for seen, _ in cells), total - sum(wanted for _, wanted in cells)
    if rest[1] > 1e-9 * total:
        cells.append(rest)
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    return upper_tail(statistic, len(cells) - 1)


def upper_tail(statistic: float, freedom: int) -> float:
    """P(chi-square with so many degrees of freedom > statistic)."""
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, torch.tensor(statistic / 2, dtype=torch.float64)))
