"""From leaf rewards to advantages: backup, baseline, scale, spread, filter, leaves, and which go together.
Torch-free."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from trainer.schema.section import Section, knob

Group = Literal["siblings", "tree", "prompt"]


Ddof = Annotated[
    Literal[0, 1],
    Field(
        title="Degrees of freedom",
        description="1 divides by n-1 (verl, TRL), 0 by n.",
        json_schema_extra={"unit": "", "advanced": True},
    ),
]
Eps = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        title="Epsilon",
        description="Added to the standard deviation.",
        json_schema_extra={"unit": "", "advanced": True},
    ),
]


Single = Annotated[
    Literal["none", "reward"],
    Field(
        title="Group of one",
        description="none: no credit, there is nothing to be better than. reward: the baseline is 0, so the "
        "reward itself (verl).",
        json_schema_extra={"unit": "", "advanced": True},
    ),
]


class GroupMeanBaseline(Section):
    """A = V - (mean V of the group + shift). GRPO, TreeRPO; shift -0.1 is AsymRE."""

    kind: Literal["group_mean"] = "group_mean"
    group: Group = knob(
        "siblings",
        title="Group",
        description="What a node is compared with: its siblings, or all leaves of its tree or prompt.",
    )
    single: Single = "none"
    shift: float = knob(
        0.0, title="Shift", description="Added to the mean (AsymRE: -0.1).", ge=-10, le=10, advanced=True
    )


class LeaveOneOutBaseline(Section):
    """A = V - mean V of the *other* members of the group. RLOO, d-TreeRPO."""

    kind: Literal["leave_one_out"] = "leave_one_out"
    group: Group = knob("prompt", title="Group", description="Siblings, or all leaves of the tree or prompt.")
    single: Single = "none"


class LogAvgExpBaseline(Section):
    """A = R - tau log mean exp(R / tau) over the prompt's leaves (OPMD)."""

    kind: Literal["log_avg_exp"] = "log_avg_exp"
    tau: float = knob(
        1.0, title="Tau", description="Towards 0 the maximum, towards infinity the mean.", gt=0, le=1000
    )
    single: Single = "none"


class ParentValueBaseline(Section):
    """A = V - V(parent) (SPO-tree)."""

    kind: Literal["parent_value"] = "parent_value"


class AncestorMeanBaseline(Section):
    """A = mean over ancestors a of V - V(a), V(a) the mean over the leaves below a (TreePO eq. 5)."""

    kind: Literal["ancestor_mean"] = "ancestor_mean"
    weights: Literal["uniform", "size"] = knob(
        "uniform",
        title="Ancestor weights",
        description="Plain average, or weighted by leaves (TreePO eq. 6, an ablation, worse).",
        advanced=True,
    )


class RootAndParentBaseline(Section):
    """A = (V - V(root)) + (V - V(parent)) (TreeRL)."""

    kind: Literal["root_and_parent"] = "root_and_parent"
    form: Literal["paper", "code"] = knob(
        "paper",
        title="Formula",
        description="paper: as published. code: leave-one-out rewards, each node divided by the root of its "
        "selected leaves before the difference.",
    )


class TreeAndPromptBaseline(Section):
    """A = A_tree + A_prompt, each (R - mean) / (std + eps): over the leaf's tree of the forest, and over all
    of the prompt (Tree-GRPO)."""

    kind: Literal["tree_and_prompt"] = "tree_and_prompt"
    parts: Literal["both", "tree", "prompt"] = knob(
        "both", title="Parts", description="The paper's ablations take one alone.", advanced=True
    )
    ddof: Ddof = 1
    eps: Eps = 1e-6


class StateBaseline(Section):
    """A = (V - mu) / (sd + eps) among the children of a state, weighted by answers through them; with the
    global term also + (V - V(root)) / (sd(root) + eps) (step-grpo, step-grpo+)."""

    kind: Literal["state"] = "state"
    global_term: bool = knob(
        True,
        title="Global term",
        description="step-grpo+; the prompt is dropped when its rewards are all equal.",
    )
    eps: Eps = 1e-4


class BudgetBaseline(Section):
    """A = (mean R of the budget group - beta cos(pi b / 2 L)) + (R - mean R) / std R (HBPO)."""

    kind: Literal["budget"] = "budget"
    ddof: Ddof = 1
    eps: Eps = 1e-4


class NoBaseline(Section):
    """No advantages: the objective trains on pairs or on verified answers."""

    kind: Literal["none"] = "none"


Baseline = Annotated[
    GroupMeanBaseline
    | LeaveOneOutBaseline
    | LogAvgExpBaseline
    | ParentValueBaseline
    | AncestorMeanBaseline
    | RootAndParentBaseline
    | TreeAndPromptBaseline
    | StateBaseline
    | BudgetBaseline
    | NoBaseline,
    Field(discriminator="kind"),
]


class NoScale(Section):
    """The centred value itself."""

    kind: Literal["none"] = "none"


class GroupStdScale(Section):
    """Divided by the group's standard deviation + eps (GRPO)."""

    kind: Literal["group_std"] = "group_std"
    ddof: Ddof = 1
    eps: Eps = 1e-4


class BatchStdScale(Section):
    """Divided by the standard deviation over the step's batch + eps (Lite PPO)."""

    kind: Literal["batch_std"] = "batch_std"
    std_of: Literal["raw", "centred"] = knob(
        "raw",
        title="Deviation of",
        description="raw: the leaves' rewards. centred: rewards less their group's mean. Which one the paper "
        "means is not known; TRL takes raw.",
    )
    ddof: Ddof = 1
    eps: Eps = 1e-4


class BernoulliVarianceScale(Section):
    """Divided by mu (1 - mu): the Bernoulli variance, not its root (TreeRPO eq. 4)."""

    kind: Literal["bernoulli_variance"] = "bernoulli_variance"


class InverseSqrtLeavesScale(Section):
    """Divided by the root of the number of leaves below (TreeRL)."""

    kind: Literal["inverse_sqrt_leaves"] = "inverse_sqrt_leaves"


class BatchWhitenScale(Section):
    """Less the mean, divided by the standard deviation, over all trained tokens of the step's batch (TreePO,
    SPO)."""

    kind: Literal["batch_whiten"] = "batch_whiten"
    count: Literal["flat", "once"] = knob(
        "flat",
        title="Count a shared token",
        description="flat: once per answer it stands in (TreePO). once: once (SPO).",
    )
    ddof: Ddof = 1
    eps: Eps = 1e-8


Scale = Annotated[
    NoScale
    | GroupStdScale
    | BatchStdScale
    | BernoulliVarianceScale
    | InverseSqrtLeavesScale
    | BatchWhitenScale,
    Field(discriminator="kind"),
]


class NoFilter(Section):
    """Every group trains; the advantages of an all-equal group are 0, so it pushes nowhere."""

    kind: Literal["none"] = "none"


class RangeFilter(Section):
    """A group trains only if max V - min V > tau (TreeRPO §3.3)."""

    kind: Literal["range"] = "range"
    tau: float = knob(
        0.1,
        title="Range filter (tau)",
        description="Groups whose values differ by no more than this are dropped.",
        ge=0,
        lt=1,
    )


class ZeroVarianceFilter(Section):
    """A prompt trains only if its answers are not all equal (DAPO's dynamic sampling, TreePO)."""

    kind: Literal["zero_variance"] = "zero_variance"
    equal: Literal["reward", "verdict"] = knob(
        "reward",
        title="Equal in",
        description="reward: all rewards are equal, shaping included. verdict: all are right, or none is "
        "(DAPO: 0 < right answers < all).",
        advanced=True,
    )
    resample_rounds: int = knob(
        3,
        title="Resample rounds",
        unit="rounds",
        description="Sample more problems, up to so many times a batch, until the batch is full. 0: never.",
        ge=0,
        le=100,
    )


class NonzeroFilter(Section):
    """A node trains only if its advantage is not 0 (SPO-tree)."""

    kind: Literal["nonzero"] = "nonzero"


CreditFilter = Annotated[
    NoFilter | RangeFilter | ZeroVarianceFilter | NonzeroFilter, Field(discriminator="kind")
]


class AllLeaves(Section):
    """Every leaf trains."""

    kind: Literal["all"] = "all"


class SomeLeaves(Section):
    """So many random leaves train; values still use all."""

    kind: Literal["some"] = "some"
    count: int = knob(
        16, title="Leaves kept", unit="leaves", description="Per prompt, or per tree.", ge=1, le=100_000
    )
    per: Literal["prompt", "tree"] = knob(
        "prompt", title="Per", description="TreeRL: prompt. Tree-GRPO: tree."
    )
    keep_correct: bool = knob(
        True, title="Keep a correct one", description="At least one correct leaf, if there is any (TreeRL)."
    )


class CreditConfig(Section):
    """From leaf rewards to one advantage per segment: value backup, baseline, scale, spread, filter,
    leaves."""

    backup: Literal["child_mean", "leaf_mean", "visit_weighted", "quality"] = knob(
        "child_mean",
        title="Value backup",
        description="Value of a segment: mean over its children (TreeRPO); over all leaves below it; "
        "weighted by visits (MCTS-DPO); or by distance to a correct answer (ReST-MCTS*).",
    )
    baseline: Baseline = knob(
        GroupMeanBaseline(), title="Baseline", description="What a value is compared with."
    )
    scale: Scale = knob(
        BernoulliVarianceScale(), title="Scale", description="What the centred value is divided by."
    )
    spread: Literal["node", "trajectory", "leaf_mean"] = knob(
        "node",
        title="Spread",
        description="Which tokens get an advantage: each segment its own; the whole path that of its leaf; "
        "or each segment the mean of the leaves' advantages below it (TreeAdv).",
    )
    filter: CreditFilter = knob(RangeFilter(), title="Filter", description="What is left out of training.")
    leaves: Annotated[AllLeaves | SomeLeaves, Field(discriminator="kind")] = knob(
        AllLeaves(), title="Leaves", description="Which leaves train.", advanced=True
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        """Refuse what is not defined, with the reason (`docs/estimators.md`, "What goes together")."""
        baseline, scale, spread = self.baseline, self.scale.kind, self.spread
        if scale == "bernoulli_variance" and self.filter.kind != "range":
            raise ValueError(
                "scale bernoulli_variance divides by mu(1 - mu), which is 0 for an all-equal group. Set the "
                "filter to `range`."
            )
        if self.filter.kind == "range" and baseline.kind not in ("group_mean", "leave_one_out"):
            raise ValueError(
                f"filter range drops groups, and baseline {baseline.kind} compares with none. "
                "Use zero_variance, nonzero or none."
            )
        if scale == "bernoulli_variance" and not (baseline.kind == "group_mean" and baseline.shift == 0):
            raise ValueError(
                "scale bernoulli_variance is the variance of a group around its mean. "
                "Use baseline group_mean without shift."
            )
        if scale == "group_std" and baseline.kind not in (
            "group_mean",
            "leave_one_out",
            "log_avg_exp",
            "parent_value",
        ):
            raise ValueError(
                f"scale group_std needs one group, and baseline {baseline.kind} has none. Use none."
            )
        if scale != "none" and baseline.kind in ("tree_and_prompt", "state", "budget", "none"):
            raise ValueError(f"baseline {baseline.kind} has its own scale. Set scale to none.")
        if scale == "inverse_sqrt_leaves" and baseline.kind == "root_and_parent" and baseline.form == "code":
            raise ValueError(
                "TreeRL's code formula divides by the root of the leaves itself. Set scale to none."
            )
        if baseline.kind in _PER_LEAF and spread == "node":
            raise ValueError(
                f"baseline {baseline.kind} compares leaves, so inner segments have no advantage of their "
                "own. Use spread trajectory or leaf_mean."
            )
        compares_leaves = baseline.kind in _PER_LEAF or (
            baseline.kind in ("group_mean", "leave_one_out") and baseline.group != "siblings"
        )
        if baseline.kind in ("group_mean", "leave_one_out"):
            if (spread == "node") != (baseline.group == "siblings"):
                raise ValueError(
                    f"spread {spread} with baseline group {baseline.group} is not defined. "
                    "Use siblings with node, or prompt or tree with trajectory or leaf_mean."
                )
        elif baseline.kind in ("parent_value", "root_and_parent", "state") and spread != "node":
            raise ValueError(
                f"baseline {baseline.kind} gives each segment its own advantage. Use spread node."
            )
        if self.scale.kind == "batch_whiten" and self.scale.count == "once" and spread != "node":
            raise ValueError(
                "scale batch_whiten counts a shared token once only where it has one advantage. Use spread "
                "node, or count flat."
            )
        if spread == "leaf_mean" and not (compares_leaves or baseline.kind == "ancestor_mean"):
            raise ValueError("spread leaf_mean needs advantages of leaves. Use group prompt or tree.")
        return self


_PER_LEAF: Final = ("log_avg_exp", "tree_and_prompt", "budget")
