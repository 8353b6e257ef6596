"""The first batch of a run, computed packed and flat: is it one gradient? Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from trainer.optim import Optimiser, UpdateData, UpdateResult
from trainer.policy import Policy
from trainer.sharding import own

MOST_FLAT_TOKENS = 40_000


class NotComparedError(RuntimeError):
    """The batch is too large to be written out; the message says how large."""


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
    """Of as many of the batch's trees, in order, as stay within `MOST_FLAT_TOKENS` when they are written out.
    None if nothing of them trains. Raises NotComparedError when not even one fits, and UpdateStopped.
    """
    part = _some_trees(data)
    parameters = [p for p in policy.named_parameters().values() if p.requires_grad]
    try:
        packed, packed_seconds = _gradient(optimiser, part, "packed", should_stop)
        if not packed.is_applied:
            return None
        # Beside the model there may be no room on the device for its gradient twice.
        kept = [
            torch.zeros(0) if p.grad is None else own(p.grad.detach()).to("cpu", copy=True)
            for p in parameters
        ]
        flat, flat_seconds = _gradient(optimiser, part, "flat", should_stop)
        difference = norm = 0.0
        for parameter, before in zip(parameters, kept, strict=True):
            found = own(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach())
            other = before.to(found) if before.numel() else torch.zeros_like(found)
            difference += float((other - found).double().square().sum())
            norm += float(found.double().square().sum())
        difference, norm = policy.ranks.sum(difference, norm)
    finally:
        optimiser.adamw.zero_grad(set_to_none=True)
    return PackingCheck(
        gradient_difference=difference**0.5 / max(norm**0.5, 1e-30),
        loss_difference=abs(packed.loss - flat.loss),
        packed_tokens=packed.computed_tokens,
        flat_tokens=flat.computed_tokens,
        packed_seconds=packed_seconds,
        flat_seconds=flat_seconds,
    )


def _some_trees(data: UpdateData) -> UpdateData:
    sizes = [int((own.tree.token_counts() * own.tree.leaf_counts()).sum()) for own in data.weights]
    chosen: list[int] = []
    room = MOST_FLAT_TOKENS
    for number, size in enumerate(sizes):
        if size <= room:
            chosen.append(number)
            room -= size
    if not chosen:
        raise NotComparedError(
            f"its smallest tree has {min(sizes, default=0):,} tokens written out answer by answer, and at "
            f"most {MOST_FLAT_TOKENS:,} are compared"
        )
    return replace(
        data,
        weights=[data.weights[number] for number in chosen],
        experts=[],
        old=None if data.old is None else [data.old[number] for number in chosen],
        reference=None if data.reference is None else [data.reference[number] for number in chosen],
    )


def _gradient(
    optimiser: Optimiser, data: UpdateData, layout: str, should_stop: Callable[[], bool]
) -> tuple[UpdateResult, float]:
    """The result, its gradient in the parameters' `grad`, and the CPU seconds."""
    began = time.process_time()
    result, _ = optimiser.gradient(data, should_stop, layout=layout)
    return result, time.process_time() - began
