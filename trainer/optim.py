"""One optimiser update: AdamW over the clipped policy gradient, accumulated over micro-batches.

An update whose loss or gradient is not finite is not applied and says so; what follows from that is decided
in `loop`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.losses import clipped_policy_loss
from trainer.packing import TrainingBatch, micro_batches
from trainer.policy import Policy
from trainer.schema.objective import PolicyObjective
from trainer.schema.training import TrainingConfig


class UpdateStopped(Exception):  # noqa: N818  # an orderly end, not an error
    """`should_stop` said so before the weights were touched."""


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """`grad_norm` before clipping; `clip_fraction` over tokens with loss; `logprob_gap`: largest |policy -
    sampling logprob| before the update, nats; `is_applied` False: nothing to train on, or not finite (then
    `is_finite` is False).
    """

    loss: float
    grad_norm: float
    clip_fraction: float
    logprob_gap: float
    trained_tokens: int
    learning_rate: float
    is_applied: bool
    is_finite: bool


class Optimiser:
    """AdamW (Loshchilov & Hutter 2019) with linear warm-up and global norm clipping."""

    def __init__(self, policy: Policy, config: TrainingConfig) -> None:
        self._policy, self._config = policy, config
        self.adamw = torch.optim.AdamW(
            policy.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def learning_rate(self, step: int) -> float:
        """Of step 1, 2, ...: rises linearly over the warm-up steps, then stays."""
        return self._config.learning_rate * min(1.0, step / max(self._config.warmup_steps, 1))

    def update(
        self,
        batch: TrainingBatch,
        objective: PolicyObjective,
        *,
        step: int,
        temperature: float,
        should_stop: Callable[[], bool],
    ) -> UpdateResult:
        """One step down the gradient of `batch`. Raises UpdateStopped with the weights unchanged."""
        device = self._policy.device
        rate = self.learning_rate(step)
        self.adamw.zero_grad(set_to_none=True)
        loss = gap = 0.0
        clipped = 0
        for part in micro_batches(batch, self._config.microbatch_tokens):
            if should_stop():
                self.adamw.zero_grad(set_to_none=True)
                raise UpdateStopped
            logprobs = self._policy.logprobs(
                torch.from_numpy(part.tokens).to(device),
                torch.from_numpy(part.rows).to(device),
                torch.from_numpy(part.columns).to(device),
                temperature,
            )
            result = clipped_policy_loss(
                logprobs,
                torch.from_numpy(part.old_logprobs).to(device),
                torch.from_numpy(part.up).to(device),
                torch.from_numpy(part.down).to(device),
                clip_low=objective.clip_low,
                clip_high=objective.clip_high,
            )
            result.loss.backward()  # type: ignore[no-untyped-call]  # torch leaves `Tensor.backward` untyped
            loss += result.loss.item()
            clipped += int(result.clipped)
            gap = max(gap, float(result.gap))
        if batch.n_rows == 0:
            return UpdateResult(0.0, 0.0, 0.0, 0.0, 0, rate, is_applied=False, is_finite=True)
        parameters = list(self._policy.model.parameters())
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        if is_finite:
            torch.nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm)
            for group in self.adamw.param_groups:
                group["lr"] = rate
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return UpdateResult(
            loss=loss,
            grad_norm=norm,
            clip_fraction=clipped / batch.unique_tokens,
            logprob_gap=gap,
            trained_tokens=batch.unique_tokens,
            learning_rate=rate,
            is_applied=is_finite,
            is_finite=is_finite,
        )
