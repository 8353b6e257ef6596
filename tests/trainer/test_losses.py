from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainer.losses import (
    LossTensors,
    entropy_bonus,
    per_item,
    policy_loss,
    preference_loss,
    supervised_loss,
    value_loss,
)
from trainer.schema.objective import (
    ForwardKlRegularizer,
    K3Regularizer,
    PolicyObjective,
    PreferenceObjective,
    SquaredLogRatioRegularizer,
)


def floats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def tokens_of(n: int, **columns: Any) -> LossTensors:
    """n tokens, each a segment and an item of its own, without any weight but those given."""
    zero, own = torch.zeros(n, dtype=torch.float64), torch.arange(n)
    none = torch.empty(0, dtype=torch.int64)
    values: dict[str, Any] = {
        **dict.fromkeys(
            ("up", "down", "held", "supervised", "sampled", "old", "reference"),
            zero,
        ),
        **dict.fromkeys(("item_up", "item_down", "item_held"), zero),
        "group": own, "n_groups": n, "item_of": own, "item_group": own, "item_length": torch.ones_like(zero),
        **dict.fromkeys(("chosen_of", "chosen_group", "rejected_of", "rejected_group"), none),
        **dict.fromkeys(("smoothing", "pair_weight", "chosen_length", "rejected_length"), floats()),
    }  # fmt: skip
    return LossTensors(**(values | columns))


def loss_of(ratios: list[float], up: list[float], down: list[float], **objective: Any) -> Any:
    old = torch.full((len(ratios),), -1.0, dtype=torch.float64)
    new = old + floats(*ratios).log()
    tokens = tokens_of(len(ratios), old=old, up=floats(*up), down=floats(*down))
    return policy_loss(new, tokens, PolicyObjective(clip_low=0.2, clip_high=0.3, **objective))


def test_ppo_by_hand() -> None:
    # A = +2 at r = 1.5 (clipped to 1.3): 2.6.  A = +2 at r = .5 (not clipped): 1.
    # A = -1 at r = .5 (clipped to .8): -.8.   A = -1 at r = 1.5 (not clipped): -1.5.
    # Mean over four tokens: (2.6 + 1 - .8 - 1.5) / 4 = .325, and the loss is its negative.
    found = loss_of([1.5, 0.5, 0.5, 1.5], [0.5, 0.5, 0, 0], [0, 0, -0.25, -0.25])
    assert float(found.loss) == pytest.approx(-0.325)
    assert float(found.figures["clipped"]) == 2


def test_dual_clip_by_hand() -> None:
    # A = -1 at r = 5 counts as 3 at most; at r = 2 it is 2.
    assert float(loss_of([5, 2], [0, 0], [-1, -1], clip_dual=3).loss) == pytest.approx(5)
    assert float(loss_of([5, 2], [0, 0], [-1, -1]).loss) == pytest.approx(7)


def test_one_side_drops_what_went_too_far_and_nothing_else() -> None:
    # Kept: up at 1.2, down at .9. Dropped: up at 1.4, down at .7. Kept on the other side: up .5, down 2
    ratios = [1.2, 0.9, 1.4, 0.7, 0.5, 2.0]
    up, down = [1, 0, 1, 0, 1, 0], [0, -1, 0, -1, 0, -1]
    found = loss_of(ratios, up, down, ratio="none", clip="one_side")
    logs = [math.log(r) - 1 for r in ratios]
    assert float(found.loss) == pytest.approx(-(logs[0] - logs[1] + logs[4] - logs[5]))
    assert float(found.figures["clipped"]) == 2
    with_ratio = loss_of(ratios, up, down, clip="one_side")
    assert float(with_ratio.loss) == pytest.approx(-(1.2 - 0.9 + 0.5 - 2.0))


def test_at_ratio_one_every_objective_has_the_policy_gradient() -> None:
    # d loss / d logprob = -(up + down): plain REINFORCE on the first update after sampling.
    for ratio, clip in (("token", "both"), ("none", "none"), ("token", "none"), ("none", "one_side")):
        new = floats(-0.5, -1.0).requires_grad_()
        tokens = tokens_of(2, old=new.detach(), up=floats(0.5, 0), down=floats(0, -0.25))
        policy_loss(new, tokens, PolicyObjective(ratio=ratio, clip=clip)).loss.backward()
        assert new.grad is not None
        assert new.grad.tolist() == pytest.approx([-0.5, 0.25])


@given(st.floats(0.1, 4), st.lists(st.tuples(st.floats(-3, 3), st.floats(0.01, 2)), min_size=1, max_size=6))
def test_two_numbers_per_token_are_the_loss_of_all_its_answers(
    ratio: float, answers: list[tuple[float, float]]
) -> None:
    for dual in (0.0, 2.0):
        up = sum(w * max(a, 0) for a, w in answers)
        down = sum(w * min(a, 0) for a, w in answers)
        written_out = 0.0
        for a, w in answers:
            gain = min(ratio * a, min(max(ratio, 0.8), 1.3) * a)
            written_out += w * (max(gain, dual * a) if dual and a < 0 else gain)
        assert float(loss_of([ratio], [up], [down], clip_dual=dual).loss) == pytest.approx(
            -written_out, abs=1e-9
        )


def shared() -> LossTensors:
    """Two answers of three tokens that share the first: segments 0 (shared, one token), 1, 2 (two each)."""
    return tokens_of(
        5,
        group=torch.tensor([0, 1, 1, 2, 2]),
        n_groups=3,
        item_of=torch.tensor([0, 0, 1, 1]),
        item_group=torch.tensor([0, 1, 0, 2]),
        item_up=floats(0.5, 0),
        item_down=floats(0, -0.5),
        item_held=floats(0.5, 0.5),
        item_length=floats(3, 3),
        old=floats(-1, -1, -1, -1, -1),
    )


def test_items_sum_over_their_path() -> None:
    assert per_item(floats(1, 10, 20, 100, 200), shared()).tolist() == [31, 301]


def test_sequence_and_geometric_ratios_by_hand() -> None:
    change = floats(0.1, 0.1, 0.1, 0.0, 0.2)  # log r of the answers: .3 both
    wide = {"clip_low": 0.9, "clip_high": 9}
    found = policy_loss(shared().old + change, shared(), PolicyObjective(ratio="sequence", **wide))
    assert float(found.loss) == pytest.approx(-(0.5 - 0.5) * math.exp(0.3))
    narrow = PolicyObjective(ratio="geometric", clip_low=3e-4, clip_high=4e-4)
    found = policy_loss(shared().old + change, shared(), narrow)
    # log r / 3 = .1: the better answer is clipped to 1.0004, the worse is not.
    assert float(found.loss) == pytest.approx(-(0.5 * 1.0004 - 0.5 * math.exp(0.1)))
    assert float(found.figures["clipped"]) == 1


def test_regularizers_by_hand() -> None:
    tokens = tokens_of(2, old=floats(-1, -2), reference=floats(-1.5, -1.0), held=floats(0.25, 0.75))
    new = floats(-1.0, -2.0)
    found = policy_loss(new, tokens, PolicyObjective(regularizer=K3Regularizer(beta=0.1)))
    kl = 0.25 * (math.exp(-0.5) + 0.5 - 1) + 0.75 * (math.exp(1) - 1 - 1)
    assert float(found.loss) == pytest.approx(0.1 * kl)
    assert float(found.figures["kl"]) == pytest.approx(kl)
    change = floats(0.1, 0.1, 0.1, 0.0, 0.2)
    weightless = replace(shared(), item_up=floats(0, 0), item_down=floats(0, 0))
    squared = PolicyObjective(ratio="none", clip="none", regularizer=SquaredLogRatioRegularizer(beta=0.2))
    # Each answer counts .5 / 3: (beta / 2) (.3^2 + .3^2) / 6.
    assert float(policy_loss(weightless.old + change, weightless, squared).loss) == pytest.approx(
        0.1 * 0.18 / 6
    )
    forward = PolicyObjective(regularizer=ForwardKlRegularizer(beta=0.2))
    assert float(policy_loss(weightless.old + change, weightless, forward).loss) == pytest.approx(
        -0.2 * 0.6 / 6
    )


def test_token_weights_of_the_expert_by_hand() -> None:
    p = floats(0.5, 0.9)
    tokens = tokens_of(2, supervised=floats(0.5, 0.5))
    plain = supervised_loss(p.log(), tokens)
    assert float(plain.loss) == pytest.approx(-(math.log(0.5) + math.log(0.9)) / 2)
    weighed = supervised_loss(p.log(), tokens, token_weights=True)
    assert float(weighed.loss) == pytest.approx(-(0.25 * math.log(0.5) + 0.09 * math.log(0.9)) / 2)


def pair(smoothing: float = 0.0) -> LossTensors:
    """Chosen: segments 0 and 1; rejected: segment 2."""
    return tokens_of(
        3,
        reference=floats(-1, -1, -1),
        chosen_of=torch.tensor([0, 0]),
        chosen_group=torch.tensor([0, 1]),
        rejected_of=torch.tensor([0]),
        rejected_group=torch.tensor([2]),
        smoothing=floats(smoothing),
        pair_weight=floats(1.0),
        chosen_length=floats(2),
        rejected_length=floats(1),
    )


def test_preferences_by_hand() -> None:
    new = floats(-0.5, -0.9, -1.2)  # x = (.5 + .1) - (-.2) = .8
    found = preference_loss(new, pair(), PreferenceObjective(beta=0.5))
    assert float(found.loss) == pytest.approx(math.log(1 + math.exp(-0.4)))
    assert float(found.figures["margin"]) == pytest.approx(0.4)
    assert float(found.figures["preferred"]) == 1
    smoothed = preference_loss(new, pair(0.3), PreferenceObjective(beta=0.5))
    assert float(smoothed.loss) == pytest.approx(
        0.7 * math.log(1 + math.exp(-0.4)) + 0.3 * math.log(1 + math.exp(0.4))
    )
    ipo = preference_loss(new, pair(), PreferenceObjective(beta=0.5, loss="ipo"))
    assert float(ipo.loss) == pytest.approx((0.8 - 1) ** 2)
    by_length = preference_loss(new, pair(), PreferenceObjective(beta=1, length_power=1))
    assert float(by_length.loss) == pytest.approx(math.log(1 + math.exp(-(0.3 + 0.2))))


def test_values_and_entropy_by_hand() -> None:
    found = value_loss(floats(0.5, 0.8), floats(1, 0.5), floats(0.5, 0.5))
    assert float(found.loss) == pytest.approx(0.5 * 0.25 + 0.5 * 0.09)
    bonus = entropy_bonus(floats(1.0, 2.0), tokens_of(2, held=floats(0.25, 0.75)), 0.1)
    assert float(bonus.loss) == pytest.approx(-0.175)


GRADED = {
    "ppo": PolicyObjective(clip_low=0.3, clip_high=0.3, clip_dual=3),
    "none": PolicyObjective(ratio="none", clip="none"),
    "one side": PolicyObjective(ratio="none", clip="one_side", clip_low=0.3, clip_high=0.3),
    "sequence": PolicyObjective(ratio="sequence"),
    "geometric": PolicyObjective(ratio="geometric"),
    "k3": PolicyObjective(regularizer=K3Regularizer(beta=0.5)),
    "squared": PolicyObjective(ratio="none", clip="none", regularizer=SquaredLogRatioRegularizer(beta=0.5)),
    "forward": PolicyObjective(regularizer=ForwardKlRegularizer(beta=0.5)),
}


@pytest.mark.parametrize("objective", GRADED.values(), ids=GRADED)
def test_gradients_of_policy_losses_are_right(objective: PolicyObjective) -> None:
    tokens = replace(
        shared(),
        up=floats(0.2, 0.3, 0.0, 0.1, 0.0),
        down=floats(-0.1, 0.0, -0.4, 0.0, -0.2),
        held=floats(0.2, 0.2, 0.2, 0.2, 0.2),
        reference=floats(-1.2, -0.8, -1.1, -0.9, -1.4),
    )
    new = floats(-0.9, -1.13, -0.71, -1.21, -1.02).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, tokens, objective).loss, (new,))


def test_gradients_of_the_other_losses_are_right() -> None:
    new = floats(-0.5, -0.9, -1.2).requires_grad_()
    for objective in (
        PreferenceObjective(),
        PreferenceObjective(loss="ipo"),
        PreferenceObjective(length_power=0.5),
    ):
        assert torch.autograd.gradcheck(lambda x, o=objective: preference_loss(x, pair(0.2), o).loss, (new,))
    tokens = tokens_of(3, supervised=floats(0.2, 0.3, 0.5), held=floats(0.2, 0.3, 0.5))
    assert torch.autograd.gradcheck(lambda x: supervised_loss(x, tokens).loss, (new,))
    values = floats(0.2, 0.6, 0.9).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: value_loss(x, floats(0, 1, 1), floats(0.1, 0.2, 0.3)).loss, (values,)
    )
    assert torch.autograd.gradcheck(lambda x: entropy_bonus(x, tokens, 0.1).loss, (values,))
