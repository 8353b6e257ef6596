"""What a finished run of the study came to, one JSON line each: the file that figures and tables are made of.

The file is kept with the source, so a study can be cut short, gone on with elsewhere, and checked. A line is
known by `plan.identity` of its run's config: a cell whose config changed is another cell.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from webapp.study.plan import TASKS, Cell


@dataclass(frozen=True, slots=True)
class Result:
    """One run. `curve`: per evaluation [generated tokens, trained tokens, CPU-seconds, sampled, greedy], the
    first before any training, all of one length and rising in tokens.
    """

    identity: str
    task: str
    sampling: str
    credit: str
    update_tokens: int
    seed: int
    status: str
    curve: tuple[tuple[float, float, float, float, float], ...]

    @property
    def mean_accuracy(self) -> float:
        """Sampled accuracy on held-out problems, mean over generated tokens from 0 to the end (trapezoid)."""
        area = sum(
            (after[0] - before[0]) * (after[3] + before[3]) / 2
            for before, after in zip(self.curve, self.curve[1:], strict=False)
        )
        return area / (self.curve[-1][0] - self.curve[0][0])

    @property
    def final_accuracy(self) -> float:
        return self.curve[-1][3]

    @property
    def trained_tokens(self) -> float:
        return self.curve[-1][1]

    @property
    def cpu_seconds(self) -> float:
        return self.curve[-1][2]

    def accuracy_at(self, axis: int, budget: float) -> float:
        """Sampled accuracy when `budget` was spent, on a straight line between evaluations; beyond them the
        last one. axis: 0 generated tokens, 1 trained tokens, 2 CPU-seconds.
        """
        for before, after in zip(self.curve, self.curve[1:], strict=False):
            if after[axis] >= budget > before[axis]:
                share = (budget - before[axis]) / (after[axis] - before[axis])
                return before[3] + share * (after[3] - before[3])
        return self.curve[-1][3] if budget > 0 else self.curve[0][3]

    @property
    def is_collapsed(self) -> bool:
        """Whether the run failed, or ended below where it began, sampled, or by more than .1, greedy."""
        first, last = self.curve[0], self.curve[-1]
        return self.status != "succeeded" or last[3] < first[3] or last[4] < first[4] - 0.1


def result_of(cell: Cell, identity: str, status: str, series: dict[str, dict[int, float]]) -> Result:
    """From the run's stored points: {metric: {step: value}}. Raises ValueError when it was never
    evaluated."""
    sampled, greedy = series.get("eval/pass1_sampled", {}), series.get("eval/pass1_greedy", {})
    steps = sorted(step for step in sampled if step in greedy)
    if len(steps) < 2:
        raise ValueError(f"{cell.name} was evaluated {len(steps)} times; a curve needs two.")
    trained, points = 0.0, []
    spent = sorted(series.get("policy/trained_tokens", {}).items())
    for step in steps:
        while spent and spent[0][0] <= step:
            trained += spent.pop(0)[1]
        points.append(
            (
                series.get("tree/unique_tokens_total", {}).get(step, 0.0),
                trained,
                series.get("speed/cpu_seconds_total", {}).get(step, 0.0),
                sampled[step],
                greedy[step],
            )
        )
    return Result(
        identity, cell.task.slug, cell.sampling, cell.credit, cell.update_tokens, cell.seed, status,
        tuple(points),
    )  # fmt: skip


def read_results(path: Path) -> dict[str, Result]:
    """By identity; the last line of each counts. Raises ValueError naming a line that cannot be read."""
    found: dict[str, Result] = {}
    if not path.exists():
        return found
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            row["curve"] = tuple(tuple(map(float, point)) for point in row["curve"])
            result = Result(**row)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path.name}, line {number}: not a result of the study: {error}.") from error
        if result.task in TASKS:
            found[result.identity] = result
    return found


def append_result(path: Path, result: Result) -> None:
    """Add a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = asdict(result)
    row["curve"] = [[round(value, 4) for value in point] for point in result.curve]
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, separators=(",", ":")) + "\n")


def by_method(results: Iterable[Result]) -> dict[tuple[str, str, str], list[Result]]:
    """{(task, sampling, credit): its runs by seed}."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in sorted(results, key=lambda found: found.seed):
        groups.setdefault((result.task, result.sampling, result.credit), []).append(result)
    return groups
