"""The clipped policy gradient. Pure: tensors in, a named result out; sums in float32 or better."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PolicyLoss:
    """`loss`: scalar with gradient, this micro-batch's part of the whole batch's loss (parts add up).
    `clipped`: tokens whose ratio was clipped; `gap`: largest |logprob - old logprob|, 0 without tokens. The
    latter two are detached.
    """

    loss: Tensor
    clipped: Tensor
    gap: Tensor


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, up: Tensor, down: Tensor, *, clip_low: float, clip_high: float
) -> PolicyLoss:
    """PPO-clip (Schulman et al. 2017, eq. 7) over M tokens, as a sum of weighted terms:

        r    = exp(logprob - old logprob)
        loss = - sum [ up * min(r, 1 + clip_high) + down * max(r, 1 - clip_low) ]

    For one advantage A with weight w per token, up = w max(A, 0) and down = w min(A, 0) give exactly
    - sum w min(r A, clip(r, 1 - clip_low, 1 + clip_high) A). A token that stands in several answers takes the
    sums of w_i max(A_i, 0) and of w_i min(A_i, 0) over them: then each token is computed once and the loss is
    still exact.

    All [M] of one float dtype; up >= 0, down <= 0 (the normaliser is inside them).
    """
    if not (logprobs.shape == old_logprobs.shape == up.shape == down.shape) or logprobs.dim() != 1:
        shapes = [tuple(x.shape) for x in (logprobs, old_logprobs, up, down)]
        raise ValueError(f"All four inputs must have one shape [M]; they have {shapes}.")
    change = logprobs - old_logprobs
    ratio = change.exp()
    gain = up * ratio.clamp(max=1 + clip_high) + down * ratio.clamp(min=1 - clip_low)
    with torch.no_grad():
        is_clipped = ((up > 0) & (ratio > 1 + clip_high)) | ((down < 0) & (ratio < 1 - clip_low))
        gap = change.abs().max() if len(change) else change.new_zeros(())
    return PolicyLoss(loss=-gain.sum(), clipped=is_clipped.sum(), gap=gap)
