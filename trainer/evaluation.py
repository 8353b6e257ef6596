"""Held-out accuracy of the policy as it is: independent samples at temperature 1, and greedy. Changes
nothing.

    python -m trainer.evaluation tiny-reasoner --operations 5 --samples 8
    python -m trainer.evaluation run/checkpoints/step-150 --samples 16 --problems 256

avg@k is the mean over problems of the share of right answers; pass@k the chance that of k answers one is
right, by the unbiased estimator; maj@k whether the most frequent answer of k is right. All from i.i.d.
samples: the leaves of a tree share their beginnings, so none of this may be estimated from them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.config import RunConfig
from trainer.data import Problem, load_data
from trainer.intervals import bootstrap_interval, wilson_interval
from trainer.judges import canonical
from trainer.ranks import ALONE, Ranks
from trainer.sampling.engine import Attempt, Engine, SamplingPlan, attempt_once, ends_together
from trainer.seeding import named_seed
from trainer.tree import RolloutTree, Verdict
from trainer.verifiers import JudgeAnswer, verify_trees

PASS_AT: Final = (2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Per problem with at least one verdict: correct [P] of n [P] answers, and whether the majority is
    right [P]."""

    correct: NDArray[np.int64]
    n: NDArray[np.int64]
    majority: NDArray[np.float64]


def evaluate(
    engine: Engine,
    problems: Sequence[Problem],
    judge: JudgeAnswer,
    *,
    most_tokens: int,
    seed: int,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, int], None],
    samples: int = 1,
    ranks: Ranks = ALONE,
    attempt: Attempt = attempt_once,
) -> dict[str, float]:
    """`eval/...` metrics. Every evaluation of a run draws the same random numbers, so that two differ by the
    policy alone.

    `most_tokens`: longest answer; `samples`: k. Intervals are Wilson's for one answer per problem, else a
    bootstrap over problems. Each of `ranks` answers its share of the problems, and `attempt` is what samples
    on it. Raises what `Engine.sample` and `verify_trees` raise.
    """

    def judged(answers: int, temperature: float, part: int) -> Judged:
        def grow(own: Sequence[Problem]) -> list[RolloutTree]:
            trees = attempt(
                lambda: engine.sample(
                    own,
                    SamplingPlan((answers,), (most_tokens,), split_at_newline=False, temperature=temperature),
                    seed=named_seed(seed, "evaluation"),
                    step=0,
                    should_stop=should_stop,
                    on_progress=lambda done, total: on_progress(part * total + done, 2 * total),
                )
            )
            return verify_trees(trees, judge, should_stop=should_stop)

        return count_verdicts(ranks.grown(problems, grow, ends_together(engine), is_shared=engine.is_shared))

    sampled, greedy = judged(samples, 1.0, 0), judged(1, 0.0, 1)
    values = _share("eval/pass1_sampled", sampled) | _share("eval/pass1_greedy", greedy)
    for k in PASS_AT:
        if k <= samples:
            enough = sampled.n >= k
            per_problem = np.array(
                [
                    pass_at_k(int(n), int(c), k)
                    for n, c in zip(sampled.n[enough], sampled.correct[enough], strict=True)
                ]
            )
            values |= _with_interval(f"eval/pass_at_{k}", per_problem)
    if samples > 1:
        values |= _with_interval("eval/maj_at_k", sampled.majority)
    return values


def count_verdicts(trees: Sequence[RolloutTree]) -> Judged:
    """Of verified trees of depth one. Answers whose verifier failed count neither way."""
    correct, n, majority = [], [], []
    for tree in trees:
        leaves = np.flatnonzero(tree.is_leaf() & (tree.verdict != Verdict.ERROR))
        if not len(leaves):
            continue
        right = tree.verdict[leaves] == Verdict.CORRECT
        correct.append(int(right.sum()))
        n.append(len(leaves))
        said = [canonical(tree.answers[leaf]) for leaf in leaves.tolist()]
        counts = Counter(answer for answer in said if answer)
        # Of equally frequent ones the first that was said.
        top = max(counts, key=lambda answer: counts[answer]) if counts else None
        majority.append(float(top is not None and right[said.index(top)]))
    return Judged(np.array(correct, np.int64), np.array(n, np.int64), np.array(majority))


def pass_at_k(n: int, correct: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): chance that k of n answers, drawn without replacement, hold a right one.

    Unbiased for i.i.d. answers (Chen et al. 2021, arXiv:2107.03374 eq. 1). Raises ValueError unless 1 <= k
    <= n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@{k} of {n} answers, {correct} of them right, is not defined.")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def _share(name: str, judged: Judged) -> dict[str, float]:
    if len(judged.n) and judged.n.max() > 1:
        return _with_interval(name, judged.correct / judged.n)
    right, trials = int(judged.correct.sum()), int(judged.n.sum())
    low, high = wilson_interval(right, trials)
    return {name: right / trials if trials else math.nan, f"{name}_low": low, f"{name}_high": high}


def _with_interval(name: str, per_problem: NDArray[np.float64]) -> dict[str, float]:
    low, high = bootstrap_interval(per_problem)
    mean = float(per_problem.mean()) if len(per_problem) else math.nan
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


# ------------------------------------------------------------------------------------------- from a shell


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate a model folder or a checkpoint; prints one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m trainer.evaluation", description="Held-out accuracy.")
    parser.add_argument("model", help="a model folder, a checkpoint of a run, or tiny-reasoner")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE.yaml",
        help="whose data and verifier (default: a checkpoint's own)",
    )
    parser.add_argument("--operations", type=int, help="chain problems of so many operations instead")
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--samples", type=int, default=1, metavar="K")
    parser.add_argument("--max-tokens", type=int, default=0, help="longest answer (default: the config's)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    import torch

    from trainer.checkpoint import CheckpointError, model_folder, read_checkpoint
    from trainer.config_file import ConfigError, config_from_yaml
    from trainer.data import DataError
    from trainer.policy import ModelError, load_policy
    from trainer.sampling.local_engine import LocalEngine
    from trainer.schema.data import ChainData, GraphData
    from trainer.verifiers import Verifier, VerifierError

    torch.set_num_threads(1)
    try:
        folder: Path | str = options.model
        config = RunConfig()
        if (Path(options.model) / "manifest.json").is_file():
            _, config = read_checkpoint(Path(options.model))
            folder = model_folder(Path(options.model))
        if options.config:
            config = config_from_yaml(options.config.read_bytes())
        if options.operations:
            config = config.model_copy(update={"data": ChainData(operations=options.operations)})
        policy = load_policy(folder)
        if not isinstance(config.data, ChainData | GraphData) and config.data.chat:
            policy.use_chat_template()
        most = options.max_tokens or config.evaluation.max_tokens or config.sampler.bounds.answer_tokens
        data = load_data(
            config.data,
            seed=config.seed,
            evaluation_problems=options.problems,
            prompt_tokens=lambda problem: len(policy.encode(problem.prompt)),
            most_evaluation_prompt=policy.positions - most,
        )
        if not data.evaluation:
            raise DataError("Not one held-out problem fits the model together with an answer.")
        with Verifier(config.verifier) as verifier:
            values = evaluate(
                LocalEngine(policy),
                data.evaluation,
                verifier,
                most_tokens=most,
                seed=named_seed(options.seed, "evaluation"),
                should_stop=lambda: False,
                on_progress=lambda _done, _total: None,
                samples=options.samples,
            )
            trouble = verifier.troubles()
    except (CheckpointError, ConfigError, DataError, ModelError, VerifierError, ValueError, OSError) as error:
        print(f"evaluation: {error}", file=sys.stderr)  # noqa: T201
        return 2
    for warning in filter(None, (*data.warnings, trouble)):
        print(f"evaluation: {warning}", file=sys.stderr)  # noqa: T201
    told = {
        "model": str(options.model),
        "problems": len(data.evaluation),
        "samples": options.samples,
        **values,
    }
    print(json.dumps({key: None if value != value else value for key, value in told.items()}))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
