"""How much a method's gradient says: signal and noise at a checkpoint, without training.

For every method, n independent batches of equally many sampled tokens, each on problems of its own, give
gradients g_1 ... g_n:

    |E g|^2      estimated without bias by (|sum g|^2 - sum |g|^2) / (n (n - 1))
    tr Cov(g)    mean |g|^2 less that
    SNR          their ratio: 1 / SNR batches are about as much signal as noise
    cosine       mean over batches of cos(g_i, g*), g* the gradient of pass@1: REINFORCE with a leave-one-out
                 baseline on answers sampled for this alone, eight times as many tokens as a batch

g* is itself an estimate, so every cosine is somewhat too small, for all methods alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.checkpoint import model_folder
from trainer.config import RunConfig
from trainer.credit import credit_plan, credit_trees
from trainer.data import ChainStream, Problem
from trainer.experts import expert_count, expert_trees
from trainer.loop import needs_reference
from trainer.optim import Optimiser
from trainer.policy import Policy, load_policy, load_reference
from trainer.presets import PRESETS, Preset
from trainer.rewards import shape_rewards
from trainer.sampling.engine import plan_from_config
from trainer.sampling.local_engine import LocalEngine
from trainer.schema.credit import CreditConfig, LeaveOneOutBaseline, NoFilter, NoScale
from trainer.schema.data import ChainData
from trainer.schema.model import ModelConfig
from trainer.schema.objective import PolicyObjective
from trainer.schema.sampler import FlatSampler
from trainer.seeding import named_seed
from trainer.tree import RolloutTree
from trainer.verifiers import Verifier, verify_trees

Vector = NDArray[np.float32]
REFERENCE_BATCHES: Final = 8
PILOT_PROBLEMS: Final = 8


@dataclass(frozen=True, slots=True)
class Probed:
    """One method. signal: |E g|^2; noise: tr Cov(g); snr: signal / noise, 0 where the signal is not above its
    own error; cosine to the pass@1 gradient, and its standard error; tokens: sampled and trained per batch.
    """

    method: str
    snr: float
    cosine: float
    cosine_error: float
    signal: float
    noise: float
    sampled_tokens: float
    trained_tokens: float
    problems: int
    cpu_seconds: float


def signal_and_noise(gradients: NDArray[np.float32]) -> tuple[float, float]:
    """(|E g|^2, tr Cov(g)) of n independent gradients [n, P], n >= 2; both unbiased, so the first may be
    below 0."""
    n = len(gradients)
    if n < 2:
        raise ValueError(f"{n} gradients; signal and noise need two or more.")
    total = gradients.sum(axis=0, dtype=np.float64)
    squares = float(np.einsum("np,np->", gradients, gradients, dtype=np.float64))
    signal = (float(total @ total) - squares) / (n * (n - 1))
    return signal, squares / n - signal


class Probe:
    """A checkpoint, the problems, and the verifier. Use it as a context."""

    def __init__(self, checkpoint: str, operations: int, tokens: int, seed: int) -> None:
        path = Path(checkpoint)
        self.folder = str(model_folder(path)) if (path / "manifest.json").is_file() else checkpoint
        self.policy = load_policy(self.folder)
        self.operations, self.tokens, self.seed = operations, tokens, seed
        self.engine = LocalEngine(self.policy)
        self.problems = ChainStream(named_seed(seed, "probe") % 2**31, operations)

    def batch_gradient(
        self, config: RunConfig, verifier: Verifier, number: int, count: int
    ) -> tuple[Vector, int, int]:
        """(gradient of the policy's parameters, sampled tokens, trained tokens) of batch `number`."""
        problems = self.problems.batch(number + 1, count)
        before = self.engine.spent
        trees = self._trees(config, verifier, problems, number)
        sampled = (self.engine.spent - before).sampled
        optimiser = self._optimiser(config)
        experts: list[RolloutTree] = []
        objective = config.objective
        if objective.kind == "policy" and objective.expert.kind == "chord":
            answers = sum(int(tree.is_leaf().sum()) for tree in trees)
            experts = expert_trees(self.policy, problems, expert_count(answers, objective.expert.share), 1)
        if objective.kind == "policy" and config.reward.kl_coefficient:
            raise ValueError("KL in the reward is 0 at the reference itself, and is not probed.")
        (data,) = optimiser.data([trees], experts, 1)
        result, _ = optimiser.gradient(data, lambda: False)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.policy.model.parameters()]
        gradient: Vector = torch.cat([part.detach().flatten() for part in parts]).numpy().copy()
        optimiser.adamw.zero_grad(set_to_none=True)
        return gradient, sampled, result.trained_tokens

    def _trees(
        self, config: RunConfig, verifier: Verifier, problems: Sequence[Problem], number: int
    ) -> list[RolloutTree]:
        plan = credit_plan(config)
        trees = self.engine.sample(
            problems,
            plan_from_config(config.sampler, verifier),
            seed=named_seed(self.seed, "probe", config.preset),
            step=number + 1,
            should_stop=lambda: False,
            on_progress=lambda _done, _total: None,
        )
        trees = shape_rewards(verify_trees(trees, verifier), config.reward, plan.budgets)
        return credit_trees(trees, plan)

    def _optimiser(self, config: RunConfig) -> Optimiser:
        if config.objective.kind == "supervised" and config.objective.value_weight:
            self.policy.add_value_head(self.seed)
        return Optimiser(
            self.policy,
            config.training,
            config.objective,
            config.credit.spread,
            reference=self._reference() if needs_reference(config) else None,
            temperature=config.sampler.temperature,
        )

    def _reference(self) -> Policy:
        return load_reference(self.folder)

    def problems_for(self, config: RunConfig, verifier: Verifier) -> int:
        """So many problems that a batch samples about `tokens` tokens, by a pilot of a few."""
        before = self.engine.spent
        self._trees(config, verifier, self.problems.batch(10**6, PILOT_PROBLEMS), 10**6)
        each = (self.engine.spent - before).sampled / PILOT_PROBLEMS
        return max(1, round(self.tokens / max(each, 1.0)))

    def pass1_gradient(self, verifier: Verifier, longest: int) -> Vector:
        """The gradient of -pass@1, of `REFERENCE_BATCHES` batches' tokens."""
        config = RunConfig(
            preset="rloo-tiny",
            model=ModelConfig(path="tiny-reasoner"),
            data=ChainData(operations=self.operations),
            sampler=FlatSampler(group_size=8, max_tokens=longest),
            credit=CreditConfig(
                backup="leaf_mean",
                baseline=LeaveOneOutBaseline(group="prompt"),
                scale=NoScale(),
                spread="trajectory",
                filter=NoFilter(),
            ),
            objective=PolicyObjective(ratio="none", clip="none", aggregate="fixed_length", fixed_length=1),
        )
        count = self.problems_for(config, verifier)
        found = [self.batch_gradient(config, verifier, 10**7 + n, count)[0] for n in range(REFERENCE_BATCHES)]
        return np.mean(found, axis=0)  # type: ignore[no-any-return]  # numpy types a mean of a list as Any

    def method(self, preset: Preset, verifier: Verifier, batches: int, reference: Vector) -> Probed:
        """All batches of one method."""
        began = time.process_time()
        config = preset.config.model_copy(update={"data": ChainData(operations=self.operations)})
        if config.reward.kl_coefficient:
            config = config.model_copy(
                update={"reward": config.reward.model_copy(update={"kl_coefficient": 0.0})}
            )
        count = self.problems_for(config, verifier)
        rows = [self.batch_gradient(config, verifier, number, count) for number in range(batches)]
        gradients = np.stack([gradient for gradient, _, _ in rows])
        signal, noise = signal_and_noise(gradients)
        norms = np.linalg.norm(gradients, axis=1) * np.linalg.norm(reference)
        cosines = np.divide(
            gradients @ reference, norms, out=np.zeros(len(norms), np.float32), where=norms > 0
        )
        return Probed(
            method=preset.slug,
            snr=max(0.0, signal) / noise if noise > 0 else 0.0,
            cosine=float(cosines.mean()),
            cosine_error=float(cosines.std(ddof=1) / np.sqrt(len(cosines))),
            signal=signal,
            noise=noise,
            sampled_tokens=float(np.mean([sampled for _, sampled, _ in rows])),
            trained_tokens=float(np.mean([trained for _, _, trained in rows])),
            problems=count,
            cpu_seconds=time.process_time() - began,
        )


def probe_lines(
    checkpoint: str,
    presets: Sequence[Preset],
    *,
    operations: int,
    batches: int,
    tokens: int,
    seed: int,
    as_json: bool,
) -> list[str]:
    """The table of `arborist probe`, the most telling gradient first. Raises ModelError and ValueError."""
    if batches < 2:
        raise ValueError(f"--batches {batches}: signal and noise need two or more.")
    torch.set_num_threads(1)
    probe = Probe(checkpoint, operations, tokens, seed)
    config = PRESETS["grpo-tiny"].config
    with Verifier(config.verifier) as verifier:
        reference = probe.pass1_gradient(verifier, 16 + 16 * operations)
        found = [probe.method(fitted(preset, operations), verifier, batches, reference) for preset in presets]
    found.sort(key=lambda one: -one.snr)
    if as_json:
        return [
            json.dumps(
                {
                    "checkpoint": checkpoint,
                    "operations": operations,
                    "methods": [asdict(one) for one in found],
                }
            )
        ]
    lines = [f"{'method':<20}{'SNR':>8}{'cosine':>16}{'sampled':>10}{'trained':>10}{'CPU-s':>8}"]
    for one in found:
        cosine = f"{one.cosine:.3f} ± {one.cosine_error:.3f}"
        lines.append(
            f"{one.method:<20}{one.snr:>8.4f}{cosine:>16}{one.sampled_tokens:>10,.0f}{one.trained_tokens:>10,.0f}"
            f"{one.cpu_seconds:>8.1f}"
        )
    if any(one.snr == 0 for one in found):
        lines.append("SNR 0: in so few batches the signal could not be told from noise. Give more --batches.")
    return lines


def fitted(preset: Preset, operations: int) -> Preset:
    """The preset with answers long enough for so many operations."""
    sampler = preset.config.sampler
    longest = 16 + 16 * operations
    if sampler.kind in ("flat", "fork_tree", "lookahead") and sampler.max_tokens < longest:
        sampler = sampler.model_copy(update={"max_tokens": longest})
    elif sampler.kind == "segment_tree" and sum(sampler.segment_tokens) < longest:
        *first, last = sampler.segment_tokens
        last += longest - sum(sampler.segment_tokens)
        sampler = sampler.model_copy(update={"segment_tokens_per_depth": (*first, last)})
    elif sampler.kind == "search_tree" and sampler.bounds.answer_tokens < longest:
        more = longest - sampler.bounds.answer_tokens
        sampler = sampler.model_copy(update={"last_tokens": sampler.last_tokens + more})
    return replace(preset, config=preset.config.model_copy(update={"sampler": sampler}))
