"""Does the gradient probe order methods as training them does?

    python -m benchmarks.probe_order uniform-8 repair-8 late-8

For each task of the study: its sixteen methods are probed at the start policy (`trainer.probe`), all with
the same sampled tokens per batch, and compared with what the study found (docs/study/results.jsonl): a
method's gain is its mean accuracy over a run, mean over seeds, less the start's. Looked at are the pairs of
methods whose gains differ by more than 25 % of the smaller one: in how many has the method with the larger
gain the larger SNR, and the larger cosine? A coin gets half of them right. Pairs are not independent, so no
interval is given.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from benchmarks.parts import machine
from trainer.presets import PRESETS
from trainer.probe import Probe, Probed
from trainer.verifiers import Verifier
from webapp.study.plan import CREDITS, SAMPLINGS, TASKS, TUNING_SEED, Cell, Task, config
from webapp.study.results import Result, by_method, read_results

RESULTS: Final = Path(__file__).parents[1] / "docs" / "study" / "results.jsonl"
DIFFERENT: Final = 1.25


def gains(results: list[Result], slug: str) -> dict[tuple[str, str], float]:
    """Mean accuracy over a run less the accuracy it began with, mean over seeds."""
    return {
        (sampling, credit): statistics.fmean(run.mean_accuracy - run.curve[0][3] for run in runs)
        for (task, sampling, credit), runs in by_method(results).items()
        if task == slug
    }


def probed(task: Task, folder: str, batches: int, tokens: int, seed: int) -> dict[tuple[str, str], Probed]:
    """Every method of the study at the task's start policy."""
    probe = Probe(folder, task.operations, tokens, seed)
    found = {}
    with Verifier(PRESETS["grpo-tiny"].config.verifier) as verifier:
        reference = probe.pass1_gradient(verifier, task.max_tokens)
        for sampling, credit in itertools.product(SAMPLINGS, CREDITS):
            cell = Cell(task, sampling, credit, tokens, seed)
            method = replace(PRESETS["grpo-tiny"], slug=f"{sampling} x {credit}", config=config(cell))
            found[sampling, credit] = probe.method(method, verifier, batches, reference)
    return found


def agreement(gain: dict[tuple[str, str], float], score: dict[tuple[str, str], float]) -> tuple[int, int]:
    """(pairs in the same order, pairs) of those whose gains differ by more than a quarter."""
    same = pairs = 0
    for one, other in itertools.combinations(sorted(gain), 2):
        low, high = sorted((one, other), key=lambda method: gain[method])
        if gain[high] > 0 and gain[high] > DIFFERENT * max(gain[low], 0.0):
            pairs += 1
            same += score[high] > score[low]
    return same, pairs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="+", choices=sorted(TASKS))
    parser.add_argument("--models", type=Path, help="folder of the start policies that the study made")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=4000, help="sampled per batch")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    results = [one for one in read_results(RESULTS).values() if one.seed != TUNING_SEED]
    for slug in options.tasks:
        task = TASKS[slug]
        gain = gains(results, slug)
        if len(gain) < len(SAMPLINGS) * len(CREDITS):
            sys.exit(f"{slug}: the study has {len(gain)} of its methods; run it first.")
        model = config(Cell(task, "flat", "trajectory", options.tokens, options.seed)).model.path
        folder = model if task.errors == "uniform" else os.fspath((options.models or Path()) / model)
        found = probed(task, folder, options.batches, options.tokens, options.seed)
        print(f"\n{slug}\n{'method':<24}{'gain':>8}{'SNR':>8}{'cosine':>16}{'CPU-s':>8}")
        for method in sorted(gain, key=lambda method: -gain[method]):
            one = found[method]
            cosine = f"{one.cosine:.3f} ± {one.cosine_error:.3f}"
            print(f"{one.method:<24}{gain[method]:>8.3f}{one.snr:>8.4f}{cosine:>16}{one.cpu_seconds:>8.1f}")
        for word, score in (
            ("SNR", {method: one.snr for method, one in found.items()}),
            ("cosine", {method: one.cosine for method, one in found.items()}),
        ):
            same, pairs = agreement(gain, score)
            print(f"{word}: {same} of {pairs} pairs that differ by more than a quarter in the study's order")


if __name__ == "__main__":
    main()
