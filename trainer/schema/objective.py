"""What is minimised: policy gradient, preference pairs, or supervised answers. Torch-free."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainer.schema.section import Section, knob


class NoRegularizer(Section):
    """Nothing holds the policy back."""

    kind: Literal["none"] = "none"


class K3Regularizer(Section):
    """+ beta (exp(u) - u - 1), u = log pi_ref - log pi: KL to the reference model, unbiased and never
    negative
    (GRPO)."""

    kind: Literal["k3"] = "k3"
    beta: float = knob(0.001, title="Beta", description="Weight of the KL term.", gt=0, le=10)


class SquaredLogRatioRegularizer(Section):
    """+ (beta / 2) (log pi - log pi_old)^2 of whole answers (OPMD)."""

    kind: Literal["squared_log_ratio"] = "squared_log_ratio"
    beta: float = knob(0.1, title="Beta", description="Weight of the term.", gt=0, le=10)


class ForwardKlRegularizer(Section):
    """+ beta log(pi_old / pi) of whole answers (AsymRE's other form)."""

    kind: Literal["forward_kl"] = "forward_kl"
    beta: float = knob(0.1, title="Beta", description="Weight of the term.", gt=0, le=10)


Regularizer = Annotated[
    NoRegularizer | K3Regularizer | SquaredLogRatioRegularizer | ForwardKlRegularizer,
    Field(discriminator="kind"),
]


class NoExpert(Section):
    """The policy trains on its own answers alone."""

    kind: Literal["none"] = "none"


class ExpertMix(Section):
    """(1 - mu) L + mu L_SFT on worked solutions of the data; mu goes from 0 to peak over the warm-up, by a
    cosine to valley over the decay, and stays (CHORD, arXiv:2508.11408)."""

    kind: Literal["chord"] = "chord"
    peak: float = knob(0.9, title="Peak mu", description="Weight of the expert.", ge=0, le=1)
    valley: float = knob(0.05, title="Valley mu", description="After the decay.", ge=0, le=1)
    warmup_steps: int = knob(
        0, title="Mu warm-up", unit="steps", description="From 0 to peak.", ge=0, le=1_000_000
    )
    decay_steps: int = knob(
        200, title="Mu decay", unit="steps", description="From peak to valley.", ge=0, le=1_000_000
    )
    token_weights: bool = knob(
        False,
        title="Token weights",
        description="Weigh each expert token by p (1 - p), p its probability (CHORD-phi).",
    )
    share: float = knob(
        0.2,
        title="Expert share",
        description="Expert answers among all answers of a step.",
        gt=0,
        lt=1,
        advanced=True,
    )


class NoImportance(Section):
    """The engine's logprobs are taken for the policy's."""

    kind: Literal["none"] = "none"


def _level(cut: str) -> Any:  # `Any`: pydantic's field
    return knob(
        "token",
        title="Level",
        description=f"token: of each token, {cut} by itself. sequence: the product over the trained tokens "
        "of the answer; with spread node the segment stands for the answer.",
    )


class TruncatedImportance(Section):
    """Advantages times min(rho, cap), rho = pi_old / pi_sampled: what the engine's logprobs, or an older
    policy's, lie off (TIS; the cap is IMPALA's, arXiv:1802.01561)."""

    kind: Literal["truncated"] = "truncated"
    level: Literal["token", "sequence"] = _level("cut off")
    cap: float = knob(2.0, title="Cap", description="No weight is larger.", ge=1, le=1000)


class MaskedImportance(Section):
    """Advantages times rho = pi_old / pi_sampled where low <= rho <= high, and 0 elsewhere: what the two
    disagree about too much does not train (IcePop's masking)."""

    kind: Literal["masked"] = "masked"
    level: Literal["token", "sequence"] = _level("masked")
    low: float = knob(0.5, title="Least ratio", description="Below it nothing trains.", ge=0, le=1)
    high: float = knob(5.0, title="Largest ratio", description="Above it nothing trains.", ge=1, le=1000)


Importance = Annotated[NoImportance | TruncatedImportance | MaskedImportance, Field(discriminator="kind")]


class PolicyObjective(Section):
    """Policy gradient on ratios r = pi / pi_old: - min(r A, clip(r, 1 - low, 1 + high) A)."""

    kind: Literal["policy"] = "policy"
    ratio: Literal["token", "sequence", "geometric", "none"] = knob(
        "token",
        title="Ratio",
        description="Of each token; of the whole answer (RLOO); its geometric mean per token (GSPO); or "
        "none, plain REINFORCE. With spread node the segment stands for the answer.",
    )
    clip: Literal["both", "one_side", "none"] = knob(
        "both",
        title="Clip",
        description="both: PPO. one_side: a token whose ratio has gone too far is dropped, and the ratio "
        "is not part of the gradient (REC-OneSide-NoIS). none.",
        advanced=True,
    )
    clip_low: float = knob(
        0.2,
        title="Clip low",
        description="Ratios below 1 minus this stop pulling down.",
        gt=0,
        lt=1,
        advanced=True,
    )
    clip_high: float = knob(
        0.2,
        title="Clip high",
        description="Ratios above 1 plus this stop pushing up.",
        gt=0,
        le=10,
        advanced=True,
    )
    clip_dual: float = knob(
        0.0,
        title="Dual clip",
        description="With A < 0 no ratio counts as more than this (c > 1). 0: off.",
        ge=0,
        le=1000,
        advanced=True,
    )
    aggregate: Literal["token_mean", "sequence_mean", "fixed_length"] = knob(
        "token_mean",
        title="Loss mean",
        description="Over all trained tokens of the batch; first over each answer (or segment), then over "
        "those; or the sum over answers x a fixed length (Dr. GRPO).",
        advanced=True,
    )
    fixed_length: int = knob(
        96,
        title="Fixed length",
        unit="tokens",
        description="Used by the loss mean fixed_length alone.",
        ge=1,
        le=1_000_000,
        advanced=True,
    )
    segment_weight: Literal["once", "answers"] = knob(
        "once",
        title="Count a segment",
        description="With spread node: once (TreeRPO), or once per answer through it (TreeRL, step-grpo).",
        advanced=True,
    )
    max_token_probability: float = knob(
        1.0,
        title="Most token probability",
        description="Only tokens sampled with a lower probability train (SPO: 0.9). 1: all.",
        gt=0,
        le=1,
        advanced=True,
    )
    mask_truncated: bool = knob(
        False,
        title="Mask truncated",
        description="Answers that were cut off do not train (DAPO's overlong filtering).",
        advanced=True,
    )
    entropy_bonus: float = knob(
        0.0,
        title="Entropy bonus",
        description="This much times the mean entropy is taken off the loss.",
        ge=0,
        le=10,
        advanced=True,
    )
    importance: Importance = knob(
        NoImportance(),
        title="Importance correction",
        description="For what was sampled under other logprobs than the policy's: by an engine in another "
        "precision, or before the last update.",
        advanced=True,
    )
    regularizer: Regularizer = knob(
        NoRegularizer(), title="Regularizer", description="What holds the policy back.", advanced=True
    )
    expert: Annotated[NoExpert | ExpertMix, Field(discriminator="kind")] = knob(
        NoExpert(), title="Expert", description="Worked solutions mixed in.", advanced=True
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.ratio == "none" and self.clip == "both":
            raise ValueError("Without a ratio there is nothing to clip. Set clip to none or one_side.")
        if self.clip == "one_side" and self.ratio not in ("token", "none"):
            raise ValueError("clip one_side looks at single tokens. Use ratio token or none.")
        if 0 < self.clip_dual <= 1:
            raise ValueError(f"clip_dual is {self.clip_dual:g}; it must be 0 (off) or more than 1.")
        if (
            self.importance.kind != "none"
            and self.importance.level == "token"
            and self.ratio in ("sequence", "geometric")
        ):
            raise ValueError(
                f"ratio {self.ratio} has one term per answer, which no weight of single tokens belongs to. "
                "Set importance.level sequence."
            )
        return self


class PreferenceObjective(Section):
    """DPO on the best and worst children of every node with two or more (MCTS-DPO): - log sigmoid(beta x),
    x = log (pi / pi_ref)(chosen) - log (pi / pi_ref)(rejected)."""

    kind: Literal["preference"] = "preference"
    loss: Literal["dpo", "ipo"] = knob("dpo", title="Loss", description="ipo: (x - 1 / (2 beta))^2.")
    beta: float = knob(
        0.1, title="Beta", description="How far the policy may go from the reference.", gt=0, le=10
    )
    rejected: Literal["worst", "second"] = knob(
        "worst", title="Rejected", description="The worst child, or the second best."
    )
    min_gap: float = knob(
        0.0, title="Least gap", description="Pairs whose values differ by no more are left out.", ge=0, le=2
    )
    max_pairs: int = knob(
        8, title="Most pairs", unit="per tree", description="Those with the widest gap.", ge=1, le=1000
    )
    smoothing: Literal["visits", "none"] = knob(
        "visits",
        title="Label smoothing",
        description="visits: s = min(1 - 1 / (1 + N_l / max(1, N_w)), 0.5).",
        advanced=True,
    )
    length_power: float = knob(
        0.0,
        title="Length power",
        description="Log-ratios are divided by length to this power.",
        ge=0,
        le=4,
        advanced=True,
    )


class SupervisedObjective(Section):
    """Cross-entropy on verified answers, and regression of the value head on the values of all nodes
    (ReST-MCTS*)."""

    kind: Literal["supervised"] = "supervised"
    policy_weight: float = knob(1.0, title="Policy weight", description="Of the cross-entropy.", ge=0, le=100)
    value_weight: float = knob(
        1.0, title="Value weight", description="Of the squared error of values.", ge=0, le=100
    )
    max_answers: int = knob(
        4,
        title="Most answers",
        unit="per tree",
        description="Correct answers that train, the first found.",
        ge=1,
        le=1000,
    )


Objective = Annotated[
    PolicyObjective | PreferenceObjective | SupervisedObjective, Field(discriminator="kind")
]
