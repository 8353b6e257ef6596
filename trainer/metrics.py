"""Every metric a run logs: its name, label, unit, formula. Pages and docs read this. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; `name` is `area/name`."""

    name: str
    title: str
    unit: str
    formula: str
    better: str = ""  # "higher", "lower" or "" when neither is better
    only_with: str = ""  # the part of the config that logs it; "" for every run


_ALL = (
    Metric(
        "reward/mean",
        "Reward",
        "",
        "mean over trees of the mean reward of a tree's scored leaves, every sampled answer alike",
        "higher",
    ),
    Metric(
        "reward/pass1",
        "pass@1 (training rollouts)",
        "",
        "mean over trees of the share of a tree's scored leaves that are correct, every sampled answer alike",
        "higher",
    ),
    Metric(
        "eval/pass1_sampled",
        "pass@1 sampled",
        "",
        "share of right answers to held-out problems, sampled at T = 1 (avg@k with k samples per problem)",
        "higher",
    ),
    Metric(
        "eval/pass1_sampled_low",
        "pass@1 sampled, low",
        "",
        "lower end of the 95 % Wilson interval, or a bootstrap over problems with several samples",
    ),
    Metric(
        "eval/pass1_sampled_high",
        "pass@1 sampled, high",
        "",
        "upper end of the 95 % Wilson interval, or a bootstrap over problems with several samples",
    ),
    Metric(
        "eval/pass1_greedy",
        "pass@1 greedy",
        "",
        "share of held-out problems answered correctly by the most likely tokens",
        "higher",
    ),
    Metric(
        "eval/pass1_greedy_low",
        "pass@1 greedy, low",
        "",
        "lower end of the 95 % Wilson interval",
    ),
    Metric(
        "eval/pass1_greedy_high",
        "pass@1 greedy, high",
        "",
        "upper end of the 95 % Wilson interval",
    ),
    *(
        metric
        for k in (2, 4, 8, 16, 32, 64, 128, 256)
        for metric in (
            Metric(
                f"eval/pass_at_{k}",
                f"pass@{k}",
                "",
                f"mean over held-out problems of 1 - C(n - c, {k}) / C(n, {k}), c of n independent "
                f"answers right",
                "higher",
                f"evaluation.samples {k} or more",
            ),
            Metric(
                f"eval/pass_at_{k}_low",
                f"pass@{k}, low",
                "",
                "lower end of a 95 % bootstrap interval over problems",
                only_with=f"evaluation.samples {k} or more",
            ),
            Metric(
                f"eval/pass_at_{k}_high",
                f"pass@{k}, high",
                "",
                "upper end of a 95 % bootstrap interval over problems",
                only_with=f"evaluation.samples {k} or more",
            ),
        )
    ),
    Metric(
        "eval/maj_at_k",
        "maj@k",
        "",
        "share of held-out problems whose most frequent answer of k is right",
        "higher",
        "evaluation.samples 2 or more",
    ),
    Metric(
        "eval/maj_at_k_low",
        "maj@k, low",
        "",
        "lower end of a 95 % bootstrap interval over problems",
        only_with="evaluation.samples 2 or more",
    ),
    Metric(
        "eval/maj_at_k_high",
        "maj@k, high",
        "",
        "upper end of a 95 % bootstrap interval over problems",
        only_with="evaluation.samples 2 or more",
    ),
    Metric(
        "sampling/response_tokens",
        "Response length",
        "tokens",
        "mean tokens of a root-to-leaf answer, prompt not counted; every sampled answer of all trees alike",
    ),
    Metric("sampling/truncated_share", "Truncated", "", "share of leaves cut off before their end", "lower"),
    Metric("sampling/unparsed_share", "Unparsed", "", "share of leaves without a readable answer", "lower"),
    Metric(
        "sampling/error_share", "Verifier errors", "", "share of leaves on which the verifier failed", "lower"
    ),
    Metric(
        "sampling/staleness",
        "Staleness",
        "steps",
        "mean over the step's trees of the steps between the policy that sampled and the one that trains",
        only_with="training.max_staleness 1",
    ),
    Metric("tree/unique_tokens", "Unique tokens", "tokens", "tokens of this step's trees, each segment once"),
    Metric(
        "tree/sampled_tokens",
        "Sampled tokens",
        "tokens",
        "tokens drawn from the policy in this step, also those that stand in no tree: merged, removed, "
        "only for scores, or of dropped problems",
    ),
    Metric("tree/flat_tokens", "Flat tokens", "tokens", "the same answers written out path by path"),
    Metric(
        "tree/unique_tokens_total",
        "Sampled tokens, total",
        "tokens",
        "tokens drawn from the policy since step 1, a shared prefix once",
    ),
    Metric("tree/leaves", "Leaves", "leaves", "mean leaves per tree"),
    Metric(
        "credit/zero_variance_share",
        "Zero-variance groups",
        "",
        "share of sibling groups whose values are all equal",
        "lower",
    ),
    Metric(
        "credit/credited_share",
        "Tokens with credit",
        "",
        "share of sampled tokens that carry an advantage other than 0",
        "higher",
    ),
    Metric("credit/advantage_mean_abs", "Mean |advantage|", "", "mean of |A| over credited segments"),
    Metric(
        "policy/entropy", "Entropy", "nats", "mean entropy of the sampling distribution over sampled tokens"
    ),
    Metric("policy/loss", "Loss", "", "clipped surrogate loss of the step's last update"),
    Metric("policy/grad_norm", "Gradient norm", "", "global norm before clipping"),
    Metric(
        "policy/clip_fraction",
        "Clipped ratios",
        "",
        "share of trained tokens whose ratio was clipped",
        "lower",
    ),
    Metric(
        "policy/logprob_gap",
        "Sampler-policy gap",
        "nats",
        "largest |sampling logprob - policy logprob| over trained tokens before the update; not logged in a "
        "step that had nothing to compare",
        "lower",
    ),
    Metric("policy/learning_rate", "Learning rate", "", "AdamW's learning rate at this step"),
    Metric("policy/trained_tokens", "Trained tokens", "tokens", "tokens with loss in this step, each once"),
    Metric(
        "policy/computed_tokens",
        "Computed tokens",
        "tokens",
        "tokens that went through the model in training, context included",
    ),
    Metric(
        "policy/kl",
        "KL to the reference",
        "nats",
        "weighted mean of exp(u) - u - 1 over trained tokens, u = log pi_ref - log pi",
        "lower",
        "objective.regularizer k3",
    ),
    Metric(
        "importance/mean_weight",
        "Importance weight",
        "",
        "mean of the importance weights of the last update's tokens or answers, after cutting; 1 where "
        "sampler and policy agree",
        only_with="objective.importance",
    ),
    Metric(
        "importance/cut_share",
        "Importance weights cut",
        "",
        "share of the importance weights that were truncated or masked",
        "lower",
        "objective.importance",
    ),
    Metric(
        "importance/effective_share",
        "Effective sample size",
        "",
        "(sum w)^2 / (n sum w^2) over the n importance weights w of the last update; 1 where all are equal",
        "higher",
        "objective.importance",
    ),
    Metric("expert/mu", "Expert weight", "", "CHORD's mu at this step", only_with="objective.expert chord"),
    Metric(
        "expert/loss",
        "Expert loss",
        "nats",
        "mean cross-entropy of the worked solutions' tokens",
        "lower",
        "objective.expert chord",
    ),
    Metric(
        "preference/pairs",
        "Pairs",
        "pairs",
        "preference pairs of the last update",
        only_with="objective preference",
    ),
    Metric(
        "preference/margin",
        "Preference margin",
        "",
        "mean of beta (log pi/pi_ref of the chosen - the same of the rejected)",
        "higher",
        "objective preference",
    ),
    Metric(
        "preference/accuracy",
        "Preference accuracy",
        "",
        "share of pairs whose chosen branch has the larger log-ratio",
        "higher",
        "objective preference",
    ),
    Metric(
        "supervised/loss",
        "Supervised loss",
        "nats",
        "mean cross-entropy of the tokens of correct answers",
        "lower",
        "objective supervised",
    ),
    Metric(
        "supervised/value_error",
        "Value error",
        "",
        "mean squared error of the value head at the ends of segments",
        "lower",
        "objective supervised",
    ),
    Metric(
        "sampling/resample_rounds",
        "Resample rounds",
        "rounds",
        "further rounds of sampling until the batch was full",
        "lower",
        "credit.filter zero_variance",
    ),
    Metric(
        "sampling/dropped_problems",
        "Dropped problems",
        "problems",
        "problems of this step whose answers all have the same reward",
        "lower",
        "credit.filter zero_variance",
    ),
    Metric(
        "tree/merged_share",
        "Merged tokens",
        "",
        "1 - unique tokens / flat tokens: what answers have in common",
        only_with="sampler.merge newline",
    ),
    Metric(
        "engine/sequences",
        "Sequences at once",
        "sequences",
        "mean over the engine's steps of the segments that were written at the same time",
    ),
    Metric(
        "engine/logprob_gap",
        "Engine-policy agreement",
        "nats",
        "largest |engine logprob - policy logprob| over small trees that the engine samples after this "
        "step's update; at the start (step 0) and every engine.agreement_every_steps",
        "lower",
    ),
    Metric(
        "engine/kv_use",
        "Key-value memory in use",
        "",
        "largest share of the engine's key-value memory that sequences held at once",
    ),
    Metric(
        "engine/cached_share",
        "Prefix found in the cache",
        "",
        "1 - computed tokens / tokens of the prefixes of all segments of the step",
        "higher",
    ),
    Metric(
        "engine/most_read_again",
        "Prefix read again",
        "tokens",
        "most tokens of its prefix that any continuation of the step computed; more than a block: the "
        "key-value memory is too small",
        "lower",
    ),
    Metric(
        "speed/sync_seconds",
        "Weight sync",
        "s",
        "wall time of handing the new weights to the engine",
        "lower",
    ),
    Metric(
        "policy/skipped_updates",
        "Skipped updates",
        "updates",
        "updates skipped because loss, gradient norm, a reward or a logprob was not finite, since step 1",
        "lower",
    ),
    Metric(
        "speed/tokens_per_second",
        "Tokens per second",
        "tokens/s",
        "sampled tokens of the step over its wall time",
        "higher",
    ),
    Metric("speed/step_seconds", "Step time", "s", "wall time of the step, evaluation not counted", "lower"),
    Metric("speed/sampling_seconds", "Sampling time", "s", "wall time of sampling", "lower"),
    Metric(
        "speed/hidden_share",
        "Sampling hidden",
        "",
        "share of the wall time of sampling the step's trees in which the step before trained",
        "higher",
        "training.max_staleness 1",
    ),
    Metric("speed/training_seconds", "Training time", "s", "wall time of loss, gradient and update", "lower"),
    Metric(
        "speed/cpu_seconds_total",
        "CPU time",
        "s",
        "CPU seconds of all steps, of the trainer, its engine processes and its verifier's processes, "
        "evaluation not counted",
    ),
    Metric(
        "speed/memory_bytes",
        "Memory per process",
        "bytes",
        "mean over the run's processes of the GPU memory that each had allocated at most, on a CPU of its "
        "resident memory",
        "lower",
        "several processes",
    ),
    Metric(
        "speed/memory_bytes_low",
        "Memory per process, least",
        "bytes",
        "of the process with the least",
        only_with="several processes",
    ),
    Metric(
        "speed/memory_bytes_high",
        "Memory per process, most",
        "bytes",
        "of the process with the most",
        only_with="several processes",
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
