"""Named algorithms: each one choice per part, plus numbers. Nothing here runs; a preset is data. Torch-free.

Two scales. `X-tiny` fits the tiny reasoner and one CPU thread; `X` has the numbers of the paper, for a model
of your own. What a paper and its released code do differently, and which is the default here, stands
in `differences`; a number that no source gives is named in `unverified`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.config import RunConfig
from trainer.schema.credit import (
    AncestorMeanBaseline,
    BatchStdScale,
    BatchWhitenScale,
    BernoulliVarianceScale,
    BudgetBaseline,
    CreditConfig,
    GroupMeanBaseline,
    GroupStdScale,
    InverseSqrtLeavesScale,
    LeaveOneOutBaseline,
    NoBaseline,
    NoFilter,
    NonzeroFilter,
    NoScale,
    ParentValueBaseline,
    RangeFilter,
    RootAndParentBaseline,
    SomeLeaves,
    StateBaseline,
    TreeAndPromptBaseline,
    ZeroVarianceFilter,
)
from trainer.schema.data import ChainData
from trainer.schema.objective import (
    ExpertMix,
    K3Regularizer,
    Objective,
    PolicyObjective,
    PreferenceObjective,
    SquaredLogRatioRegularizer,
    SupervisedObjective,
)
from trainer.schema.reward import BudgetShaping, OverlongShaping, RewardConfig
from trainer.schema.sampler import (
    EntropyForks,
    FlatSampler,
    ForkTreeSampler,
    LookaheadSampler,
    PuctSelect,
    Sampler,
    SearchTreeSampler,
    SegmentTreeSampler,
    SurprisalForks,
    UctSelect,
    UniformForks,
)
from trainer.schema.training import TrainingConfig


@dataclass(frozen=True, slots=True)
class Preset:
    """A starting point for a run: `slug` names it in URLs and YAML, `formula` is what its run page shows.

    family: "flat", "tree" or "search"; scale: "tiny" or "paper". differences: paper against released code,
    and which is the default here; unverified: config paths whose value no source that we could read gives.
    """

    slug: str
    title: str
    summary: str
    formula: str
    source: str
    config: RunConfig
    family: str = "flat"
    scale: str = "tiny"
    differences: str = ""
    unverified: tuple[str, ...] = ()

    @property
    def algorithm(self) -> str:
        """The slug without its scale."""
        return self.slug.removesuffix("-tiny")


_UNIT = RewardConfig()


@dataclass(frozen=True, slots=True)
class _Algorithm:
    """Both scales of one algorithm. `paper` is None where no source gives its setting."""

    slug: str
    title: str
    family: str
    summary: str
    formula: str
    source: str
    credit: CreditConfig
    objective: Objective
    tiny: Sampler
    tiny_problems: int = 48
    tiny_rate: float = 3e-4
    tiny_objective: Objective | None = None
    tiny_reward: RewardConfig | None = None
    paper: Sampler | None = None
    paper_problems: int = 128
    paper_training: dict[str, Any] | None = None  # of TrainingConfig
    reward: RewardConfig = _UNIT
    differences: str = ""
    unverified: tuple[str, ...] = ()

    def presets(self) -> list[Preset]:
        return [
            self._preset(
                f"{self.slug}-tiny",
                "tiny",
                RunConfig(
                    preset=f"{self.slug}-tiny",
                    data=ChainData(operations=5),
                    reward=self.tiny_reward or self.reward,
                    sampler=self.tiny,
                    credit=self.credit,
                    objective=self.tiny_objective or self.objective,
                    training=TrainingConfig(
                        problems_per_step=self.tiny_problems,
                        learning_rate=self.tiny_rate,
                        warmup_steps=10,
                        microbatch_tokens=4096,
                    ),
                ),
            ),
            *([] if self.paper is None else [self._paper_preset(self.paper)]),
        ]

    def _paper_preset(self, sampler: Sampler) -> Preset:
        numbers = {
            "problems_per_step": self.paper_problems,
            "learning_rate": 1e-6,
            "steps": 300,
            **(self.paper_training or {}),
        }
        return self._preset(
            self.slug,
            "paper",
            RunConfig(
                preset=self.slug,
                data=ChainData(operations=5),
                reward=self.reward,
                sampler=sampler,
                credit=self.credit,
                objective=self.objective,
                training=TrainingConfig(**numbers),
            ),
        )

    def _preset(self, slug: str, scale: str, config: RunConfig) -> Preset:
        values = config.model_dump(mode="json")
        return Preset(
            slug=slug,
            title=f"{self.title} · tiny" if scale == "tiny" else self.title,
            summary=self.summary,
            formula=self.formula,
            source=self.source,
            config=config,
            family=self.family,
            scale=scale,
            differences=self.differences,
            # What is off at this scale has no value to doubt.
            unverified=tuple(path for path in self.unverified if _has(values, path)),
        )


def _has(values: dict[str, Any], path: str) -> bool:
    """Whether nested mappings hold a dotted path."""
    here: Any = values
    for part in path.split("."):
        if not isinstance(here, dict) or part not in here:
            return False
        here = here[part]
    return True


def _prompt(**values: Any) -> CreditConfig:
    """Answers compared with all answers to the prompt; the whole path takes the advantage of its leaf."""
    given: dict[str, Any] = {
        "backup": "leaf_mean",
        "baseline": GroupMeanBaseline(group="prompt"),
        "scale": GroupStdScale(),
        "spread": "trajectory",
        "filter": NoFilter(),
    }
    return CreditConfig(**(given | values))


_SIGNED = RewardConfig(correct=1.0, incorrect=-1.0)
_TINY_FLAT = FlatSampler(group_size=8, max_tokens=96)
_TREE_422 = SegmentTreeSampler()

_ALGORITHMS = (
    _Algorithm(
        slug="treerpo",
        title="TreeRPO",
        family="tree",
        summary="Trees of reasoning lines; each line is compared with its siblings. Learns in a minute on "
        "one CPU core.",
        formula="A = (V − μ) / (μ(1 − μ)), μ = mean V of the siblings; groups with max V − min V ≤ τ "
        "are dropped",
        source="arXiv:2506.05183 eq. 4",
        credit=CreditConfig(
            backup="child_mean",
            baseline=GroupMeanBaseline(group="siblings"),
            scale=BernoulliVarianceScale(),
            spread="node",
            filter=RangeFilter(tau=0.1),
        ),
        objective=PolicyObjective(regularizer=K3Regularizer(beta=0.001), entropy_bonus=0.001),
        tiny_objective=PolicyObjective(),
        tiny=_TREE_422,
        paper=SegmentTreeSampler(
            depth=3,
            branching_per_depth=(8,),
            segment_tokens_per_depth=(384,),
            split="none",
            temperature=0.6,
        ),
        paper_training={"updates_per_step": 2},
        differences="Loss mean: the paper averages within each sequence first (eq. 5; objective.aggregate "
        "sequence_mean), the derived code over all tokens, which is the default here. The paper keeps "
        "max V − min V > τ, the code ≥ τ: with 8 children no range is 0.1, so it is the same. The code adds "
        "1e-6 to μ(1 − μ), which changes nothing once equal groups are dropped. KL 0.001 (k3) and the "
        "entropy bonus of 0.001 are off in the tiny preset.",
        unverified=("objective.clip_low", "objective.clip_high"),
    ),
    _Algorithm(
        slug="grpo",
        title="GRPO",
        family="flat",
        summary="Eight independent answers per problem; each answer is compared with the group.",
        formula="A = (R − mean R) / (std R + ε) over the answers to one prompt",
        source="arXiv:2402.03300 §4.1.2",
        credit=_prompt(),
        objective=PolicyObjective(aggregate="sequence_mean", regularizer=K3Regularizer(beta=0.04)),
        tiny_objective=PolicyObjective(),
        tiny=_TINY_FLAT,
        tiny_problems=56,
        paper=FlatSampler(group_size=64, max_tokens=1024),
        paper_problems=16,
        differences="The paper divides by the standard deviation without saying n or n − 1; verl and "
        "TRL take n − 1, the default here. The paper averages within each answer first and has a KL term of "
        "0.04 (k3); the tiny preset averages over all tokens and has none.",
        unverified=("sampler.group_size", "objective.regularizer.beta", "training.problems_per_step"),
    ),
    _Algorithm(
        slug="dr-grpo",
        title="Dr. GRPO",
        family="flat",
        summary="GRPO without its two biases: no division by the deviation, none by the answer's length.",
        formula="A = R − mean R; loss summed over tokens, divided by answers × a fixed length",
        source="arXiv:2503.20783",
        credit=_prompt(scale=NoScale()),
        objective=PolicyObjective(aggregate="fixed_length", fixed_length=3000),
        tiny_objective=PolicyObjective(aggregate="fixed_length", fixed_length=96),
        tiny=_TINY_FLAT,
        tiny_problems=56,
        paper=FlatSampler(group_size=8, max_tokens=3000),
        differences="verl divides by the padded width of the batch, which is only constant if it is made so; "
        "here the length is objective.fixed_length.",
        unverified=("training.problems_per_step",),
    ),
    _Algorithm(
        slug="dapo",
        title="DAPO",
        family="flat",
        summary="Clip-higher, dynamic sampling, token-level loss, soft overlong penalty.",
        formula="A = (R − mean R) / (std R + ε); prompts whose answers are all right or all wrong are "
        "sampled anew",
        source="arXiv:2503.14476",
        credit=_prompt(filter=ZeroVarianceFilter(equal="verdict", resample_rounds=10)),
        objective=PolicyObjective(clip_high=0.28),
        reward=RewardConfig(
            correct=1.0, incorrect=-1.0, shaping=OverlongShaping(max_tokens=20480, buffer_tokens=4096)
        ),
        tiny_reward=RewardConfig(
            correct=1.0, incorrect=-1.0, shaping=OverlongShaping(max_tokens=96, buffer_tokens=24)
        ),
        tiny=_TINY_FLAT,
        paper=FlatSampler(group_size=16, max_tokens=20480),
        paper_problems=512,
        paper_training={"updates_per_step": 16, "steps": 200},
        differences="Overlong filtering (objective.mask_truncated) is in the paper; the verl authors' best "
        "runs did not use it, so it is off. The code samples three times as many problems as it needs and "
        "throws the surplus away; here a further round samples as many as are missing.",
    ),
    _Algorithm(
        slug="lite-ppo",
        title="Lite PPO",
        family="flat",
        summary="Group mean, deviation of the whole batch, token mean; nothing else.",
        formula="A = (R − mean R of the prompt) / (std R of the batch + ε)",
        source="arXiv:2508.08221",
        credit=_prompt(scale=BatchStdScale(std_of="raw", ddof=1, eps=1e-4)),
        objective=PolicyObjective(),
        tiny=_TINY_FLAT,
        tiny_problems=56,
        paper=FlatSampler(group_size=8, max_tokens=8192, temperature=0.99, top_k=100, top_p=0.99),
        differences="The batch's deviation is that of raw rewards, as in TRL. With the paper's "
        "top-k 100 and top-p 0.99 every token is trained as drawn from what was left (sampling mask).",
        unverified=("credit.scale.std_of",),
    ),
    _Algorithm(
        slug="rloo",
        title="RLOO",
        family="flat",
        summary="Each answer is compared with the mean of the others.",
        formula="A = R − mean R of the other answers = G / (G − 1) · (R − mean R)",
        source="arXiv:2402.14740",
        credit=_prompt(baseline=LeaveOneOutBaseline(group="prompt", single="reward"), scale=NoScale()),
        objective=PolicyObjective(ratio="sequence", aggregate="sequence_mean"),
        tiny=_TINY_FLAT,
        tiny_problems=56,
        tiny_rate=1e-4,
        paper=FlatSampler(group_size=4, max_tokens=1024),
        reward=RewardConfig(kl_coefficient=0.03),
        tiny_reward=RewardConfig(),
        differences="The paper's loss is plain REINFORCE (objective.ratio none, clip none); TRL takes "
        "the whole answer's ratio with PPO's clip, the default here. The KL term is off in the tiny preset.",
        unverified=("objective.ratio", "sampler.max_tokens"),
    ),
    _Algorithm(
        slug="gspo",
        title="GSPO",
        family="flat",
        summary="The ratio of a whole answer, per token, with a very narrow clip.",
        formula="A = (R − mean R) / (std R + ε); s = (π / π_old)^(1/|o|), clipped to [1 − 3e-4, 1 + 4e-4]",
        source="arXiv:2507.18071",
        credit=_prompt(),
        objective=PolicyObjective(
            ratio="geometric", clip_low=3e-4, clip_high=4e-4, aggregate="sequence_mean"
        ),
        tiny=_TINY_FLAT,
        tiny_problems=56,
        paper=FlatSampler(group_size=8, max_tokens=8192),
        paper_training={"updates_per_step": 4},
        differences="On segments (spread node) the ratio is that of the segment: our choice.",
        unverified=("sampler.group_size", "sampler.max_tokens", "training.problems_per_step"),
    ),
    _Algorithm(
        slug="opmd",
        title="OPMD",
        family="flat",
        summary="REINFORCE against the group's mean, held to the old policy by a squared log-ratio; no "
        "ratio.",
        formula="A = R − mean R; loss −A log π + (β/2)(log π − log π_old)²",
        source="arXiv:2509.24203",
        credit=_prompt(baseline=GroupMeanBaseline(group="prompt", single="reward"), scale=NoScale()),
        objective=PolicyObjective(
            ratio="none",
            clip="none",
            aggregate="fixed_length",
            fixed_length=1,
            regularizer=SquaredLogRatioRegularizer(beta=0.1),
        ),
        tiny=_TINY_FLAT,
        tiny_problems=56,
        differences="Trinity's stand-alone form has the baseline τ log mean exp(R / τ) instead: "
        "credit.baseline "
        "log_avg_exp. It also divides the loss by 1 + τ, which only scales the learning rate and is "
        "left out. No source gives a setting of its own, so there is only a tiny one.",
        unverified=("training.learning_rate",),
    ),
    _Algorithm(
        slug="asymre",
        title="AsymRE",
        family="flat",
        summary="REINFORCE against a baseline that lies a little below the mean, so all answers are pushed "
        "up somewhat.",
        formula="A = R − (mean R − 0.1)",
        source="arXiv:2509.24203",
        credit=_prompt(
            baseline=GroupMeanBaseline(group="prompt", shift=-0.1, single="reward"), scale=NoScale()
        ),
        objective=PolicyObjective(ratio="none", clip="none", aggregate="fixed_length", fixed_length=1),
        tiny=_TINY_FLAT,
        tiny_problems=56,
        differences="Equivalent: no shift, objective.regularizer forward_kl with β 0.1. No source gives a "
        "setting of its own, so there is only a tiny one.",
        unverified=("training.learning_rate",),
    ),
    _Algorithm(
        slug="treepo",
        title="TreePO",
        family="tree",
        summary="A tree of fixed width: places of paths that ended go to the live ones. Answers are "
        "compared with all subgroups they belong to.",
        formula="A = mean over ancestors a of (R − mean R below a), whitened over the batch's tokens",
        source="arXiv:2508.17445 eq. 5",
        credit=_prompt(
            baseline=AncestorMeanBaseline(),
            scale=BatchWhitenScale(),
            filter=ZeroVarianceFilter(resample_rounds=2),
        ),
        objective=PolicyObjective(clip_high=0.28, clip_dual=10.0),
        reward=RewardConfig(
            correct=1.0, incorrect=-1.0, shaping=OverlongShaping(max_tokens=7168, buffer_tokens=512)
        ),
        tiny_reward=_SIGNED,
        tiny=SegmentTreeSampler(
            depth=6,
            branching_per_depth=(2,),
            segment_tokens_per_depth=(16, 16, 16, 16, 16, 32),
            max_width=8,
            fallback="random",
        ),
        paper=SegmentTreeSampler(
            depth=14,
            branching_per_depth=(2,),
            segment_tokens_per_depth=(512,),
            split="none",
            max_width=16,
            fallback="random",
            repetition_window=32,
        ),
        paper_problems=512,
        paper_training={"updates_per_step": 16, "weight_decay": 0.1, "warmup_steps": 10},
        differences="Eq. 5's divisor is written per answer; the code whitens over all tokens of the "
        "batch, the "
        "default here. Resampling: at most 2 further rounds in the paper, 10 in the script. The "
        "released code "
        "always diverges by 2 at the root (root_branching_max 0); the paper also tries 2 to 8. A prompt with "
        "a single answer is dropped here; in the code its baseline is 0.",
    ),
    _Algorithm(
        slug="latr",
        title="LATR",
        family="tree",
        summary="Branches open where the policy is undecided, and are dropped if they come to the same "
        "thing.",
        formula="A = (R − mean R) / (std R + ε) over the answers of the lookahead tree",
        source="arXiv:2510.24302",
        credit=_prompt(),
        objective=PolicyObjective(regularizer=K3Regularizer(beta=0.01), aggregate="sequence_mean"),
        tiny=LookaheadSampler(),
        tiny_problems=48,
        paper=LookaheadSampler(
            max_tokens=1024,
            min_probability=0.25,
            max_gap=0.15,
            windows=(20, 30, 50),
            tree_tokens=512,
            tree_share_decay=0.99,
        ),
        paper_problems=256,
        paper_training={"steps": 500},
        differences="Annealing: eta gamma^i (paper, the default here) or a table of steps (code: "
        "`sampler.tree_share_steps`). Free places go to the most likely forks (paper), not by candidate rank "
        "(code: `sampler.overflow`). The trunk is greedy, and the loss treats it as sampled.",
        unverified=("sampler.tree_share_decay", "sampler.threshold"),
    ),
    _Algorithm(
        slug="treerl",
        title="TreeRL",
        family="tree",
        summary="Full answers, then new ones from their most surprising tokens; each piece against root "
        "and parent.",
        formula="A = [(V − V(root)) + (V − V(parent))] / √(leaves below)",
        source="arXiv:2506.11902",
        credit=CreditConfig(
            backup="leaf_mean",
            baseline=RootAndParentBaseline(form="paper"),
            scale=InverseSqrtLeavesScale(),
            spread="node",
            filter=NoFilter(),
            leaves=SomeLeaves(count=16, per="prompt", keep_correct=True),
        ),
        objective=PolicyObjective(
            ratio="none", clip="none", segment_weight="answers", regularizer=K3Regularizer(beta=1e-4)
        ),
        tiny_objective=PolicyObjective(ratio="none", clip="none", segment_weight="answers"),
        tiny=ForkTreeSampler(score=SurprisalForks(), trees=3, rounds=1, forks=2, continuations=1),
        paper=ForkTreeSampler(
            score=SurprisalForks(),
            trees=6,
            rounds=1,
            forks=2,
            continuations=2,
            max_tokens=8192,
            never_after="conclusion, answer",
            temperature=1.2,
        ),
        paper_problems=16,
        paper_training={"learning_rate": 1.5e-6},
        differences="The code starts from leave-one-out rewards and takes the root of the leaves before the "
        "difference: credit.baseline.form code with scale none. The paper's formula is the default. KL "
        "1e-4 in the "
        "paper, 0 in the script. What the paper calls entropy is the surprisal of the sampled token. It "
        "samples with top-p 0.95; here sampling is from all of the policy (sampler.top_p would need top_k).",
        unverified=("objective.clip", "objective.ratio"),
    ),
    _Algorithm(
        slug="spo-tree",
        title="SPO-tree",
        family="tree",
        summary="Each segment against its parent's value; only tokens that the policy was unsure of train.",
        formula="A = V − V(parent), whitened over the batch's trained tokens; edges with A = 0 are dropped",
        source="arXiv:2505.23564",
        credit=CreditConfig(
            backup="child_mean",
            baseline=ParentValueBaseline(),
            scale=BatchWhitenScale(count="once", ddof=0),
            spread="node",
            filter=NonzeroFilter(),
        ),
        objective=PolicyObjective(max_token_probability=0.9, regularizer=K3Regularizer(beta=1e-4)),
        tiny_objective=PolicyObjective(max_token_probability=0.9),
        tiny=_TREE_422,
        tiny_rate=1e-4,
        paper=SegmentTreeSampler(
            depth=3,
            branching_per_depth=(6,),
            segment_tokens_per_depth=(600, 600, 648),
            split="none",
            temperature=0.6,
        ),
        differences="The code's `rloo` setting is V − V(parent), the default here; its `grpo` setting "
        "divides by the "
        "siblings' deviation: credit.scale group_std with ddof 0. Its KL is a control variate; ours is k3. "
        "The code pools the edges of many steps and draws batches from them; here a step trains on its own.",
        unverified=("training.problems_per_step",),
    ),
    _Algorithm(
        slug="tree-grpo",
        title="Tree-GRPO",
        family="tree",
        summary="Two trees per prompt, grown from full answers; each answer against its tree and "
        "against the prompt.",
        formula="A = (R − mean R) / (std R + ε) in its tree + the same over all trees of the prompt",
        source="arXiv:2509.21240",
        credit=_prompt(
            baseline=TreeAndPromptBaseline(),
            scale=NoScale(),
            leaves=SomeLeaves(count=3, per="tree", keep_correct=False),
        ),
        objective=PolicyObjective(clip_dual=3.0, regularizer=K3Regularizer(beta=0.001), entropy_bonus=0.001),
        tiny_objective=PolicyObjective(clip_dual=3.0),
        tiny=ForkTreeSampler(score=UniformForks(), trees=3, rounds=1, forks=2, continuations=1),
        paper=ForkTreeSampler(
            score=UniformForks(), trees=2, rounds=1, forks=2, continuations=1, max_tokens=4096, never_after=""
        ),
        paper_problems=512,
        paper_training={"steps": 180},
        differences="The paper averages within each answer first, the config over all tokens, the "
        "default here. A "
        "group of one has mean 0 and deviation 1 (verl). Means are over all leaves, also those that do not "
        "train; with the paper's numbers all three leaves of a tree do.",
        unverified=("sampler.max_tokens",),
    ),
    _Algorithm(
        slug="treeadv",
        title="TreeAdv",
        family="tree",
        summary="Forks where the entropy is high; an inner segment takes the mean advantage of the "
        "answers below.",
        formula="A(leaf) = (R − mean R) / (std R + ε); A(segment) = mean A of the leaves below",
        source="arXiv:2601.03703",
        credit=_prompt(spread="leaf_mean"),
        objective=PolicyObjective(),
        tiny=ForkTreeSampler(score=EntropyForks(threshold=0.5), trees=3, rounds=1, forks=2, continuations=1),
        differences="Only an abstract was to be had: the mean as aggregate, and counting each segment "
        "once, are ours.",
        unverified=("credit.spread", "sampler.score.threshold", "training.learning_rate"),
    ),
    _Algorithm(
        slug="d-treerpo",
        title="d-TreeRPO",
        family="tree",
        summary="Each segment against the mean of its other siblings.",
        formula="A = V − mean V of the other siblings",
        source="arXiv:2512.09675",
        credit=CreditConfig(
            backup="child_mean",
            baseline=LeaveOneOutBaseline(group="siblings"),
            scale=NoScale(),
            spread="node",
            filter=NoFilter(),
        ),
        objective=PolicyObjective(clip_low=0.4, clip_high=0.4, regularizer=K3Regularizer(beta=0.01)),
        tiny_objective=PolicyObjective(clip_low=0.4, clip_high=0.4),
        tiny=_TREE_422,
        paper=SegmentTreeSampler(
            depth=2, branching_per_depth=(4,), segment_tokens_per_depth=(256,), split="none"
        ),
        differences="Made for diffusion models, with 4 × 4 trees; here on tokens. KL off in the tiny preset.",
        unverified=("training.learning_rate", "sampler.segment_tokens_per_depth"),
    ),
    _Algorithm(
        slug="chord",
        title="CHORD",
        family="flat",
        summary="GRPO with worked solutions mixed in, at a weight that fades.",
        formula="loss = (1 − μ) L_GRPO + μ L_SFT, μ from peak to valley by a cosine; φ weighs tokens by "
        "p(1 − p)",
        source="arXiv:2508.11408",
        credit=_prompt(),
        objective=PolicyObjective(expert=ExpertMix(peak=0.9, valley=0.05, warmup_steps=0, decay_steps=200)),
        tiny_objective=PolicyObjective(expert=ExpertMix(peak=0.5, valley=0.05, decay_steps=60)),
        tiny=_TINY_FLAT,
        tiny_problems=48,
        paper=FlatSampler(group_size=8, max_tokens=8192),
        paper_problems=32,
        differences="CHORD-μ: peak 0.9, valley 0.05, no token weights (default). CHORD-φ: "
        "token_weights, peak = valley "
        "= 0.1. The released yaml has a third mix (0.5, 0.02, 200, 400 with token weights).",
        unverified=("sampler.max_tokens",),
    ),
    _Algorithm(
        slug="hbpo",
        title="HBPO",
        family="flat",
        summary="Answers under announced token budgets: short where that is enough, long where it is needed.",
        formula="A = (mean R of its budget − β cos(πb / 2L)) + (R − mean R) / (std R + ε)",
        source="arXiv:2507.15844 §3",
        credit=_prompt(baseline=BudgetBaseline(), scale=NoScale()),
        objective=PolicyObjective(clip_high=0.28),
        reward=RewardConfig(shaping=BudgetShaping(max_tokens=4096, beta=1.0, alpha=0.0001)),
        tiny_reward=RewardConfig(shaping=BudgetShaping(max_tokens=96, beta=1.0, alpha=0.002)),
        tiny=FlatSampler(group_size=8, max_tokens=96, budgets=(40, 50, 60, 70), budget_sentence="{budget}\n"),
        paper=FlatSampler(group_size=16, max_tokens=4096, budgets=(512, 1024, 2048, 2560)),
        differences="The README's sketch takes min(f(length), f(b)) inside the budget; the paper f(b), "
        "which is the same there. The tiny reasoner reads no English: its budget is a bare number.",
        unverified=(
            "reward.shaping.alpha",
            "reward.shaping.beta",
            "reward.shaping.max_tokens",
            "sampler.group_size",
            "credit.baseline.ddof",
        ),
    ),
    _Algorithm(
        slug="mcts-dpo",
        title="MCTS-DPO",
        family="search",
        summary="A search per problem; the best and worst child of every node are a preference pair.",
        formula="−log σ(β [log π/π_ref (best) − log π/π_ref (worst)]), labels smoothed by visits",
        source="arXiv:2405.00451",
        credit=CreditConfig(
            backup="visit_weighted",
            baseline=NoBaseline(),
            scale=NoScale(),
            spread="node",
            filter=NoFilter(),
        ),
        objective=PreferenceObjective(),
        reward=_SIGNED,
        tiny=SearchTreeSampler(
            select=PuctSelect(), iterations=4, expand=3, depth=3, segment_tokens=16, last_tokens=64
        ),
        tiny_problems=24,
        tiny_rate=1e-4,
        paper=SearchTreeSampler(
            select=PuctSelect(), iterations=64, expand=2, depth=3, segment_tokens=128, last_tokens=256
        ),
        paper_problems=64,
        differences="The paper scores inner nodes by the model's own confidence; a model that cannot "
        "judge itself gets a rollout instead (sampler.evaluator). Pairs go by verified answers, weighted by "
        "visits; a node that the search left unfinished has no value and is in no pair, while the code ranks "
        "it by its score. IPO is objective.loss ipo.",
        unverified=("objective.min_gap",),
    ),
    _Algorithm(
        slug="rest-mcts",
        title="ReST-MCTS*",
        family="search",
        summary="Value-guided search; the policy learns from verified answers, the value head from all "
        "nodes.",
        formula="V(n) = max(0, V(p) + (1 − V(p)) r / m); loss = cross-entropy on correct answers + (v − V)²",
        source="arXiv:2406.03816",
        credit=CreditConfig(
            backup="quality", baseline=NoBaseline(), scale=NoScale(), spread="node", filter=NoFilter()
        ),
        objective=SupervisedObjective(),
        tiny=SearchTreeSampler(
            select=UctSelect(),
            iterations=8,
            expand=3,
            depth=3,
            segment_tokens=16,
            last_tokens=64,
            evaluator="value_head",
        ),
        tiny_problems=24,
        tiny_rate=1e-4,
        paper=SearchTreeSampler(
            select=UctSelect(),
            iterations=50,
            expand=3,
            depth=8,
            segment_tokens=128,
            last_tokens=512,
            evaluator="value_head",
        ),
        paper_problems=64,
        paper_training={"learning_rate": 3e-6},
        differences="The value model is a head on the policy here, a model of its own there. The published "
        "w = (1 − v)/(m + 1)(1 − 2 r_s) is the same thing as the code's rule.",
        unverified=("training.learning_rate",),
    ),
    _Algorithm(
        slug="step-grpo",
        title="step-GRPO",
        family="flat",
        summary="Flat answers merged where they agree; each step is compared with the other steps from "
        "its state.",
        formula="A = (V − μ) / (σ + ε) over the next segments from a state, weighted by answers through them",
        source="ours (docs/estimators.md)",
        credit=CreditConfig(
            backup="leaf_mean",
            baseline=StateBaseline(global_term=False),
            scale=NoScale(),
            spread="node",
            filter=NonzeroFilter(),
        ),
        objective=PolicyObjective(segment_weight="answers"),
        tiny=FlatSampler(group_size=16, max_tokens=96, merge="newline"),
        tiny_problems=28,
        differences="Needs beginnings that repeat exactly; on free text hardly anything merges and it is "
        "plain answers without credit (watch tree/merged_share).",
    ),
    _Algorithm(
        slug="step-grpo+",
        title="step-GRPO+",
        family="flat",
        summary="step-GRPO plus how each step stands against the whole prompt.",
        formula="A = (V − μ) / (σ + ε) + (V − V(root)) / (σ(root) + ε)",
        source="ours (docs/estimators.md)",
        credit=CreditConfig(
            backup="leaf_mean",
            baseline=StateBaseline(global_term=True),
            scale=NoScale(),
            spread="node",
            filter=NonzeroFilter(),
        ),
        objective=PolicyObjective(segment_weight="answers"),
        tiny=FlatSampler(group_size=16, max_tokens=96, merge="newline"),
        tiny_problems=28,
        differences="On free text hardly anything merges, and it is plain GRPO (watch tree/merged_share).",
    ),
)

PRESETS: dict[str, Preset] = {
    preset.slug: preset for algorithm in _ALGORITHMS for preset in algorithm.presets()
}


def find_preset(name: str) -> Preset:
    """By slug, or by an algorithm's name alone; capitals, blanks, underscores and an asterisk do not matter.

    Raises KeyError with the names there are.
    """
    slug = name.strip().lower().replace("_", "-").replace(" ", "-").replace(".", "").replace("*", "")
    for candidate in (slug, f"{slug}-tiny"):
        if candidate in PRESETS:
            return PRESETS[candidate]
    known = ", ".join(algorithm.slug for algorithm in _ALGORITHMS)
    raise KeyError(f"there is no preset {name!r}; there are {known}, each also with -tiny")
