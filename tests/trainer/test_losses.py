from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.losses import PolicyLoss, clipped_policy_loss


def loss_of(ratios: list[float], up: list[float], down: list[float]) -> PolicyLoss:
    old = torch.full((len(ratios),), -1.0, dtype=torch.float64)
    new = old + torch.tensor(ratios, dtype=torch.float64).log()
    weights = (torch.tensor(w, dtype=torch.float64) for w in (up, down))
    return clipped_policy_loss(new, old, *weights, clip_low=0.2, clip_high=0.3)


def test_loss_by_hand() -> None:
    # A = +2 at r = 1.5 (clipped to 1.3): 2.6.  A = +2 at r = .5 (not clipped): 1.
    # A = -1 at r = .5 (clipped to .8): -.8.   A = -1 at r = 1.5 (not clipped): -1.5.
    # Mean over four tokens: (2.6 + 1 - .8 - 1.5) / 4 = .325, and the loss is its negative.
    found = loss_of([1.5, 0.5, 0.5, 1.5], [0.5, 0.5, 0, 0], [0, 0, -0.25, -0.25])
    assert float(found.loss) == pytest.approx(-0.325)
    assert int(found.clipped) == 2
    assert float(found.gap) == pytest.approx(math.log(2))


def test_at_ratio_one_the_gradient_is_the_policy_gradient() -> None:
    # d loss / d logprob = -(w A): plain REINFORCE on the first update after sampling.
    new = torch.tensor([-0.5, -1.0], dtype=torch.float64, requires_grad=True)
    found = clipped_policy_loss(
        new,
        new.detach(),
        torch.tensor([0.5, 0.0], dtype=torch.float64),
        torch.tensor([0.0, -0.25], dtype=torch.float64),
        clip_low=0.2,
        clip_high=0.2,
    )
    (gradient,) = torch.autograd.grad(found.loss, new)
    assert gradient.tolist() == [-0.5, 0.25]
    assert int(found.clipped) == 0
    assert float(found.gap) == 0


def test_a_clipped_token_gives_no_gradient() -> None:
    new = torch.tensor([0.5, -0.5], dtype=torch.float64, requires_grad=True)
    up, down = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, -1.0]).double()
    found = clipped_policy_loss(new, torch.zeros(2).double(), up, down, clip_low=0.2, clip_high=0.2)
    (gradient,) = torch.autograd.grad(found.loss, new)
    assert gradient.tolist() == [0, 0]


def test_gradcheck_in_float64() -> None:
    generator = torch.Generator().manual_seed(1)
    old = -torch.rand(40, generator=generator, dtype=torch.float64)
    new = (old + 0.6 * torch.randn(40, generator=generator, dtype=torch.float64)).requires_grad_()
    up = torch.rand(40, generator=generator, dtype=torch.float64)
    down = -torch.rand(40, generator=generator, dtype=torch.float64)

    def loss(logprobs: Tensor) -> Tensor:
        return clipped_policy_loss(logprobs, old, up, down, clip_low=0.2, clip_high=0.3).loss

    assert torch.autograd.gradcheck(loss, (new,))


@given(
    st.lists(st.floats(-3, 3).map(lambda x: round(x, 3)), min_size=1, max_size=6),
    st.floats(-1.0, 1.0).map(lambda x: round(x, 3)),
)
def test_one_token_in_many_answers_equals_the_answers_written_out(
    advantages: list[float], change: float
) -> None:
    # sum_i min(r A_i, clip(r) A_i) = S+ min(r, 1 + hi) + S- max(r, 1 - lo)
    ratio = math.exp(change)
    written_out = sum(min(ratio * a, min(max(ratio, 0.8), 1.3) * a) for a in advantages)
    up, down = sum(max(a, 0) for a in advantages), sum(min(a, 0) for a in advantages)
    assert float(loss_of([ratio], [up], [down]).loss) == pytest.approx(-written_out, abs=1e-9)


def test_parts_add_up() -> None:
    whole = loss_of([1.5, 0.5, 1.1], [0.5, 0, 0.1], [0, -0.25, 0])
    parts = [loss_of([1.5], [0.5], [0.0]), loss_of([0.5, 1.1], [0, 0.1], [-0.25, 0])]
    assert float(whole.loss) == pytest.approx(sum(float(part.loss) for part in parts))


def test_empty_batch_has_loss_zero() -> None:
    found = loss_of([], [], [])
    assert float(found.loss) == 0
    assert float(found.gap) == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        loss_of([1.0, 1.0], [1.0], [0.0])
