"""Tables and figures of the study, from its results alone. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from webapp.study.plan import (
    CREDIT_WORDS,
    CREDITS,
    SAMPLING_WORDS,
    SAMPLINGS,
    TASKS,
    TUNING_SEED,
    UPDATE_TOKENS,
    Credit,
    Sampling,
)
from webapp.study.results import Result, by_method

# Two-sided 95 % points of Student's t by degrees of freedom.
_T95: Final = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean over seeds, and half of its 95 % interval (Student's t; NaN from a single seed)."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.half:.3f}" if self.n > 1 else "")


def estimate(values: Sequence[float]) -> Estimate:
    """Of at least one value."""
    n = len(values)
    if n < 2:
        return Estimate(values[0], math.nan, n)
    t = _T95[n - 1] if n <= len(_T95) else 1.96
    return Estimate(statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(n), n)


def choose_update_tokens(results: Iterable[Result]) -> dict[tuple[str, Sampling, Credit], int]:
    """For each task and method the tokens per update with the best mean accuracy on the tuning seed."""
    best: dict[tuple[str, Sampling, Credit], Result] = {}
    for result in results:
        if result.seed != TUNING_SEED:
            continue
        key = (result.task, _sampling(result.sampling), _credit(result.credit))
        if key not in best or result.mean_accuracy > best[key].mean_accuracy:
            best[key] = result
    return {key: best[key].update_tokens for key in sorted(best, key=_order)}


def tables(results: Iterable[Result]) -> str:
    """Markdown: one table per task, rows by mean accuracy; the tuning seed is in no figure."""
    groups = by_method(result for result in results if result.seed != TUNING_SEED)
    parts = []
    for slug, task in TASKS.items():
        rows = [(key, runs) for key, runs in groups.items() if key[0] == slug]
        if not rows:
            continue
        rows.sort(key=lambda row: -statistics.fmean(run.mean_accuracy for run in row[1]))
        start = statistics.fmean(run.curve[0][3] for _, runs in rows for run in runs)
        trained, seconds = _smallest_budgets([runs for _, runs in rows])
        parts += [
            f"### {task.errors} errors, k = {task.operations}",
            "",
            f"Start: {start:.3f} sampled.",
            "",
            (
                f"| sampling | credit | mean accuracy | final | after {trained / 1e3:.0f} k trained "
                f"| after {seconds:.0f} CPU-s | update | M tokens | M trained | CPU-s | fell |"
            ),
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for (_, sampling, credit), runs in rows:
            parts.append(
                f"| {SAMPLING_WORDS[_sampling(sampling)]} | {CREDIT_WORDS[_credit(credit)]} "
                f"| {estimate([run.mean_accuracy for run in runs])} "
                f"| {estimate([run.final_accuracy for run in runs])} "
                f"| {statistics.fmean(run.accuracy_at(1, trained) for run in runs):.3f} "
                f"| {statistics.fmean(run.accuracy_at(2, seconds) for run in runs):.3f} "
                f"| {runs[0].update_tokens:,} "
                f"| {statistics.fmean(run.curve[-1][0] for run in runs) / 1e6:.2f} "
                f"| {statistics.fmean(run.trained_tokens for run in runs) / 1e6:.2f} "
                f"| {statistics.fmean(run.cpu_seconds for run in runs):.0f} "
                f"| {sum(run.is_collapsed for run in runs)} of {len(runs)} |"
            )
        parts += ["", *_contrast_table([run for _, runs in rows for run in runs])]
    return "\n".join(parts)


def _smallest_budgets(methods: Sequence[Sequence[Result]]) -> tuple[float, float]:
    """Trained tokens, and CPU-seconds, of the method that spent the least: what all of them reached."""
    trained = min(statistics.fmean(run.trained_tokens for run in runs) for runs in methods)
    seconds = min(statistics.fmean(run.cpu_seconds for run in runs) for runs in methods)
    return trained, seconds


# What is compared, given the trained tokens and CPU-seconds that all methods of a task reached.
_MEASURES: Final[tuple[tuple[str, Callable[[float, float], Callable[[Result], float]]], ...]] = (
    ("At equal generated tokens (mean accuracy over the run)", lambda _t, _s: lambda run: run.mean_accuracy),
    (
        "At equal trained tokens (accuracy when the method that trains on the fewest ends)",
        lambda trained, _: lambda run: run.accuracy_at(1, trained),
    ),
    (
        "At equal CPU time (accuracy when the fastest method ends)",
        lambda _, seconds: lambda run: run.accuracy_at(2, seconds),
    ),
)


def overview(results: Iterable[Result]) -> str:
    """Markdown: the contrasts of all tasks with two seeds or more, a table for each measure of what was
    spent. In bold those whose interval leaves out 0.
    """
    by_task: dict[str, list[Result]] = {}
    for result in results:
        if result.seed != TUNING_SEED:
            by_task.setdefault(result.task, []).append(result)
    levels = [*(SAMPLING_WORDS[s] for s in SAMPLINGS[1:]), *(CREDIT_WORDS[c] for c in CREDITS[1:])]
    parts = []
    for title, measure in _MEASURES:
        rows = []
        for slug, task in TASKS.items():
            runs = by_task.get(slug, [])
            if not runs:
                continue
            trained, seconds = _smallest_budgets(list(by_method(runs).values()))
            found = contrasts(runs, measure(trained, seconds))
            if found and found[0].difference.n > 1:
                cells = " | ".join(_signed(one, is_marked=True) for one in found)
                rows.append(f"| {task.errors}, k = {task.operations} | {cells} |")
        if rows:
            head = f"| errors | {' | '.join(levels)} |"
            parts += [f"**{title}**", "", head, "|---|" + "---|" * len(levels), *rows, ""]
    return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class Contrast:
    """What one level of a factor does against the factor's first: difference in accuracy, the mean over all
    levels of the other factor, seed by seed. Runs of a seed share start and held-out problems: a pair.
    """

    level: str
    difference: Estimate


def contrasts(
    results: Iterable[Result], measure: Callable[[Result], float] = lambda run: run.mean_accuracy
) -> list[Contrast]:
    """Of one task: samplings against flat, then credits against trajectory. Only seeds with all methods
    count.
    """
    runs = {(r.sampling, r.credit, r.seed): measure(r) for r in results if r.seed != TUNING_SEED}
    cells = [(sampling, credit) for sampling in SAMPLINGS for credit in CREDITS]
    seeds = sorted({seed for *_, seed in runs})
    seeds = [seed for seed in seeds if all((*cell, seed) in runs for cell in cells)]
    if not seeds:
        return []

    def over(seed: int, sampling: str = "", credit: str = "") -> float:
        chosen = [cell for cell in cells if (sampling or cell[0], credit or cell[1]) == cell]
        return statistics.fmean(runs[*cell, seed] for cell in chosen)

    found = []
    for kind in SAMPLINGS[1:]:
        differences = [over(seed, sampling=kind) - over(seed, sampling=SAMPLINGS[0]) for seed in seeds]
        found.append(Contrast(SAMPLING_WORDS[kind], estimate(differences)))
    for given in CREDITS[1:]:
        differences = [over(seed, credit=given) - over(seed, credit=CREDITS[0]) for seed in seeds]
        found.append(Contrast(CREDIT_WORDS[given], estimate(differences)))
    return found


def _contrast_table(results: Sequence[Result]) -> list[str]:
    found = contrasts(results)
    if not found:
        return []
    half = len(SAMPLINGS) - 1
    lines = [
        (
            f"Over all credits, against {SAMPLING_WORDS[SAMPLINGS[0]]} sampling; over all samplings, against "
            f"{CREDIT_WORDS[CREDITS[0]]} credit (paired by seed, {found[0].difference.n} seeds):"
        ),
        "",
        "| sampling | mean accuracy | credit | mean accuracy |",
        "|---|---|---|---|",
    ]
    for left, right in zip(found[:half], found[half:], strict=True):
        lines.append(f"| {left.level} | {_signed(left)} | {right.level} | {_signed(right)} |")
    return [*lines, ""]


def _signed(contrast: Contrast, *, is_marked: bool = False) -> str:
    found = contrast.difference
    words = f"{found.mean:+.3f}" + (f" ± {found.half:.3f}" if found.n > 1 else "")
    return f"**{words}**" if is_marked and abs(found.mean) > found.half else words


def tuning_tables(results: Iterable[Result]) -> str:
    """Markdown: what tuning saw, one row per method and task, a column for each number of tokens per update.
    One run each, so no intervals: they choose, they do not compare.
    """
    tuning = [result for result in results if result.seed == TUNING_SEED]
    parts = []
    for slug, task in TASKS.items():
        rows: dict[tuple[str, Sampling, Credit], dict[int, Result]] = {}
        for result in tuning:
            if result.task == slug:
                key = (slug, _sampling(result.sampling), _credit(result.credit))
                rows.setdefault(key, {})[result.update_tokens] = result
        if not rows:
            continue
        heads = " | ".join(f"{update:,} tokens, mean → final" for update in UPDATE_TOKENS)
        parts += [
            f"### Tuning: {task.errors} errors, k = {task.operations}",
            "",
            "One run each (seed 0), which chose the tokens per update and is in no other figure.",
            "",
            f"| sampling | credit | {heads} |",
            "|---|---|" + "---|" * len(UPDATE_TOKENS),
        ]
        for key in sorted(rows, key=_order):
            cells = " | ".join(_tuned(rows[key].get(update)) for update in UPDATE_TOKENS)
            parts.append(f"| {SAMPLING_WORDS[key[1]]} | {CREDIT_WORDS[key[2]]} | {cells} |")
        parts.append("")
    return "\n".join(parts)


def _tuned(result: Result | None) -> str:
    if result is None:
        return "not run"
    fell = ", fell" if result.is_collapsed else ""
    return f"{result.mean_accuracy:.3f} → {result.final_accuracy:.3f}{fell}"


# ------------------------------------------------------------------------------------------------ figures

_WIDTH, _ROW, _LEFT, _RIGHT, _TOP = 760, 22, 260, 40, 44
_COLOURS: Final = {"flat": "#4477aa", "segments": "#ee6677", "forks": "#228833", "lookahead": "#aa7700"}


def figure(results: Iterable[Result], slug: str) -> str:
    """An SVG of one task: each method's mean accuracy with its interval, and a dot per seed. "" while no
    method has two seeds: a picture of single runs would be read as a comparison.
    """
    groups = by_method(r for r in results if r.seed != TUNING_SEED and r.task == slug)
    if all(len(runs) < 2 for runs in groups.values()):
        return ""
    rows = sorted(groups.items(), key=lambda row: -statistics.fmean(r.mean_accuracy for r in row[1]))
    values = [run.mean_accuracy for _, runs in rows for run in runs]
    low, high = math.floor(min(values) * 20) / 20, math.ceil(max(values) * 20) / 20
    high = max(high, low + 0.05)
    height = _TOP + _ROW * len(rows) + 40

    def x(value: float) -> float:
        return _LEFT + (min(max(value, low), high) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    task = TASKS[slug]
    title = (
        f"Mean held-out accuracy over equal generated tokens · {task.errors} errors, k = {task.operations}"
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">',
        '<g font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-size="14" font-weight="600" fill="#1a1a1a">{escape(title)}</text>',
    ]
    ticks = round((high - low) / 0.05)
    for tick in range(0, ticks + 1, max(1, ticks // 6)):
        value = low + 0.05 * tick
        at = f"{x(value):.1f}"
        lines.append(
            f'<line x1="{at}" x2="{at}" y1="{_TOP - 8}" y2="{height - 34}" stroke="#e3e3e3"/>'
            f'<text x="{at}" y="{height - 18}" text-anchor="middle" fill="#555">{value:.2f}</text>'
        )
    for number, ((_, sampling, credit), runs) in enumerate(rows):
        y = _TOP + _ROW * number + _ROW / 2
        found = estimate([run.mean_accuracy for run in runs])
        colour = _COLOURS[sampling]
        label = f"{SAMPLING_WORDS[_sampling(sampling)]} × {CREDIT_WORDS[_credit(credit)]}"
        lines.append(
            f'<text x="{_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end" fill="#1a1a1a">{escape(label)}</text>'
        )
        if found.n > 1:
            lines.append(
                f'<line x1="{x(found.mean - found.half):.1f}" x2="{x(found.mean + found.half):.1f}" '
                f'y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="2"/>'
            )
        lines += [
            f'<circle cx="{x(run.mean_accuracy):.1f}" cy="{y:.1f}" r="2.5" fill="none" stroke="{colour}"/>'
            for run in runs
        ]
        lines.append(f'<circle cx="{x(found.mean):.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
    lines.append("</g></svg>")
    return "\n".join(lines) + "\n"


def _order(key: tuple[str, Sampling, Credit]) -> tuple[int, int, int]:
    return list(TASKS).index(key[0]), SAMPLINGS.index(key[1]), CREDITS.index(key[2])


def _sampling(word: str) -> Sampling:
    return next(known for known in SAMPLINGS if known == word)


def _credit(word: str) -> Credit:
    return next(known for known in CREDITS if known == word)
