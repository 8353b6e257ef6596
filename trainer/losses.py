"""The objectives, as sums over a micro-batch of weighted tokens, items and pairs. Pure: tensors in, a named
result out; float32 or better. The weights hold every normaliser (`loss_weights`), so parts of a batch add up.

    r = exp(log pi - log pi_old), of a token, or of a whole item:  sum over its tokens (sequence), or that
    divided by its length (geometric, GSPO)

    both       - [up min(r, 1 + high) + down min(max(r, 1 - low), dual)]          PPO-clip, exact for shared
    tokens one_side   up counts while r <= 1 + high, down while r >= 1 - low             REC-OneSide-NoIS
    none       - (up + down) r
    ratio none: log pi in the place of r

Regularizers: k3 of tokens, (beta / 2)(log pi - log pi_old)^2 and -beta log(pi / pi_old) of whole items.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from trainer.clipping import clipped_sides
from trainer.packing import LossTokens
from trainer.schema.objective import PolicyObjective, PreferenceObjective


@dataclass(frozen=True, slots=True, eq=False)
class LossTensors:
    """`packing.LossTokens` on the device, in one float dtype. Sizes as there."""

    up: Tensor
    down: Tensor
    held: Tensor
    supervised: Tensor
    sampled: Tensor
    old: Tensor
    reference: Tensor
    group: Tensor
    n_groups: int
    item_of: Tensor
    item_group: Tensor
    item_up: Tensor
    item_down: Tensor
    item_held: Tensor
    item_length: Tensor
    chosen_of: Tensor
    chosen_group: Tensor
    rejected_of: Tensor
    rejected_group: Tensor
    smoothing: Tensor
    pair_weight: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @classmethod
    def of(cls, tokens: LossTokens, device: torch.device, dtype: torch.dtype = torch.float32) -> LossTensors:
        """The same numbers as tensors."""
        values = {}
        for name in cls.__slots__:
            column = getattr(tokens, name)
            if name != "n_groups":
                column = torch.from_numpy(column).to(device)
                column = column.to(dtype) if column.is_floating_point() else column
            values[name] = column
        return cls(**values)


@dataclass(frozen=True, slots=True, eq=False)
class LossPart:
    """`loss`: scalar with gradient. `figures`: detached sums, by name: what they are divided by is in their
    names' other half (`clipped` tokens, `kl` weighted, ...).
    """

    loss: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)


def policy_loss(logprobs: Tensor, tokens: LossTensors, objective: PolicyObjective) -> LossPart:
    """PPO and its relatives. logprobs [M] with gradient."""
    change = logprobs - tokens.old  # [M]
    if objective.ratio in ("token", "none"):
        gain, clipped = _surrogate(change, logprobs, tokens.up, tokens.down, objective)
    else:
        whole = per_item(change, tokens)  # [I]
        if objective.ratio == "geometric":
            whole = whole / tokens.item_length.clamp(min=1)
        gain, clipped = _surrogate(whole, whole, tokens.item_up, tokens.item_down, objective)
    loss = -gain.sum()
    figures = {"clipped": clipped.sum().to(loss.dtype).detach(), "terms": loss.new_tensor(float(len(gain)))}
    regularizer = objective.regularizer
    if regularizer.kind == "k3":
        away = tokens.reference - logprobs
        kl = away.exp() - away - 1
        loss = loss + regularizer.beta * (tokens.held * kl).sum()
        figures["kl"] = (tokens.held * kl).sum().detach()
    elif regularizer.kind == "squared_log_ratio":
        loss = loss + regularizer.beta / 2 * (_shares(tokens) * per_item(change, tokens) ** 2).sum()
    elif regularizer.kind == "forward_kl":
        loss = loss - regularizer.beta * (_shares(tokens) * per_item(change, tokens)).sum()
    return LossPart(loss, figures)


def _surrogate(
    log_ratio: Tensor, logprobs: Tensor, up: Tensor, down: Tensor, objective: PolicyObjective
) -> tuple[Tensor, Tensor]:
    """[M] gains and [M] whether a term was clipped."""
    ratio = log_ratio.exp()
    high, low = 1 + objective.clip_high, 1 - objective.clip_low
    too_high, too_low, dual = clipped_sides(ratio, up, down, objective)
    gained = logprobs if objective.ratio == "none" else ratio
    if objective.clip == "none":
        return (up + down) * gained, too_high
    if objective.clip == "one_side":
        return torch.where(too_high, 0.0, up * gained) + torch.where(
            too_low, 0.0, down * gained
        ), too_high | too_low
    worst = ratio.clamp(min=low)
    if objective.clip_dual:
        worst = worst.clamp(max=objective.clip_dual)
    return up * ratio.clamp(max=high) + down * worst, too_high | too_low | dual


def per_item(values: Tensor, tokens: LossTensors) -> Tensor:
    """[I] sum of `values` [M] over each item's tokens: by segments first, then by the segments of each
    path."""
    groups = values.new_zeros(tokens.n_groups).index_add(0, tokens.group, values)
    return values.new_zeros(len(tokens.item_up)).index_add(0, tokens.item_of, groups[tokens.item_group])


def _shares(tokens: LossTensors) -> Tensor:
    """[I] how much each item counts among all: its weight per token, whatever the mean over tokens."""
    return tokens.item_held / tokens.item_length.clamp(min=1)


def supervised_loss(logprobs: Tensor, tokens: LossTensors, *, token_weights: bool = False) -> LossPart:
    """Weighted cross-entropy; with token weights also times p (1 - p), p = pi(token) detached (CHORD-phi)."""
    weight = tokens.supervised
    if token_weights:
        p = logprobs.detach().exp()
        weight = weight * p * (1 - p)
    loss = -(weight * logprobs).sum()
    return LossPart(loss, {"supervised": -(tokens.supervised * logprobs).sum().detach()})


def preference_loss(logprobs: Tensor, tokens: LossTensors, objective: PreferenceObjective) -> LossPart:
    """DPO (arXiv:2305.18290 eq. 7) with smoothed labels, or IPO, over P pairs.

    x    = log (pi / pi_ref)(chosen) / |chosen|^p - the same of the rejected
    dpo  - (1 - s) log sigmoid(beta x) - s log sigmoid(-beta x)
    ipo  (x - 1 / (2 beta))^2
    """
    change = logprobs - tokens.reference
    groups = change.new_zeros(tokens.n_groups).index_add(0, tokens.group, change)
    n = len(tokens.pair_weight)
    chosen = change.new_zeros(n).index_add(0, tokens.chosen_of, groups[tokens.chosen_group])
    rejected = change.new_zeros(n).index_add(0, tokens.rejected_of, groups[tokens.rejected_group])
    if objective.length_power:
        chosen = chosen / tokens.chosen_length**objective.length_power
        rejected = rejected / tokens.rejected_length**objective.length_power
    margin = chosen - rejected  # [P]
    if objective.loss == "ipo":
        each = (margin - 1 / (2 * objective.beta)) ** 2
    else:
        s, scaled = tokens.smoothing, objective.beta * margin
        each = -(1 - s) * functional.logsigmoid(scaled) - s * functional.logsigmoid(-scaled)
    figures = {
        "pairs": margin.new_tensor(float(n)),
        "margin": (tokens.pair_weight * objective.beta * margin).sum().detach(),
        "preferred": (tokens.pair_weight * (margin > 0)).sum().detach(),
    }
    return LossPart((tokens.pair_weight * each).sum(), figures)


def value_loss(values: Tensor, target: Tensor, weight: Tensor) -> LossPart:
    """sum of w (v - V)^2 over Q places; all [Q], values in [0, 1]."""
    loss = (weight * (values - target) ** 2).sum()
    return LossPart(loss, {"value_error": loss.detach()})


def entropy_bonus(entropies: Tensor, tokens: LossTensors, coefficient: float) -> LossPart:
    """- coefficient * weighted mean entropy. entropies [M], nats, with gradient."""
    mean = (tokens.held * entropies).sum()
    return LossPart(-coefficient * mean, {"entropy": mean.detach()})
