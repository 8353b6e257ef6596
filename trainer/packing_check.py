"""The first batch of a run, computed packed and flat: is it one gradient? Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.optim import Optimiser, UpdateData
from trainer.policy import Policy

MOST_FLAT_TOKENS = 40_000


@dataclass(frozen=True, slots=True)
class PackingCheck:
    """`gradient_difference`: |g_packed - g_flat| / |g_flat|; `loss_difference`: absolute. Tokens that went
    through the model either way, and the CPU seconds of both.
    """

    gradient_difference: float
    loss_difference: float
    packed_tokens: int
    flat_tokens: int
    packed_seconds: float
    flat_seconds: float


def check_packing(
    policy: Policy, optimiser: Optimiser, data: UpdateData, should_stop: Callable[[], bool]
) -> PackingCheck | None:
    """Of as many of the batch's first trees as are cheap, one at least. None if nothing of them trains.
    Raises UpdateStopped.
    """
    part = _first_trees(data)
    packed = _gradient(policy, optimiser, part, "packed", should_stop)
    flat = _gradient(policy, optimiser, part, "flat", should_stop)
    if packed is None or flat is None:
        return None
    difference = torch.stack(
        [(p - f).double().square().sum() for p, f in zip(packed[0], flat[0], strict=True)]
    )
    norm = torch.stack([f.double().square().sum() for f in flat[0]]).sum().sqrt()
    return PackingCheck(
        gradient_difference=float(difference.sum().sqrt() / norm.clamp(min=1e-30)),
        loss_difference=abs(packed[1] - flat[1]),
        packed_tokens=packed[2],
        flat_tokens=flat[2],
        packed_seconds=packed[3],
        flat_seconds=flat[3],
    )


def _first_trees(data: UpdateData) -> UpdateData:
    tokens, count = 0, 0
    for own in data.weights:
        tokens += int((own.tree.token_counts() * own.tree.leaf_counts()).sum())
        count += 1
        if tokens > MOST_FLAT_TOKENS:
            break
    return replace(
        data,
        weights=data.weights[:count],
        experts=[],
        old=None if data.old is None else data.old[:count],
        reference=None if data.reference is None else data.reference[:count],
    )


def _gradient(
    policy: Policy, optimiser: Optimiser, data: UpdateData, layout: str, should_stop: Callable[[], bool]
) -> tuple[list[Tensor], float, int, float] | None:
    """(gradients by parameter, loss, tokens, CPU seconds), or None if nothing trains."""
    began = time.process_time()
    result, _ = optimiser.gradient(data, should_stop, layout=layout)
    spent = time.process_time() - began
    gradients = [
        torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for p in policy.named_parameters().values()
        if p.requires_grad
    ]
    optimiser.adamw.zero_grad(set_to_none=True)
    return (gradients, result.loss, result.computed_tokens, spent) if result.is_applied else None
