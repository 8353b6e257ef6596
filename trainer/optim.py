"""One optimiser update: AdamW down the gradient of an objective, accumulated over micro-batches.

An update whose loss or gradient is not finite is not applied and says what was not; what follows from that is
decided in `loop`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from trainer.guards import NotFinite
from trainer.importance import Weighed, corrected
from trainer.loss_weights import (
    Floats,
    Ints,
    TreeWeights,
    every_answer,
    expert_share,
    expert_weights,
    weigh,
)
from trainer.losses import (
    LossPart,
    LossTensors,
    entropy_bonus,
    policy_loss,
    preference_loss,
    supervised_loss,
    value_loss,
)
from trainer.packing import (
    FlatBatch,
    LossTokens,
    PackedBatch,
    flatten,
    idle_batch,
    pack,
    trained_nodes,
    without_idle_items,
)
from trainer.policy import Policy
from trainer.ranks import Ranks
from trainer.schema.objective import Objective, PolicyObjective, PreferenceObjective, SupervisedObjective
from trainer.schema.training import TrainingConfig
from trainer.sharding import whole
from trainer.tree import RolloutTree

Batch = PackedBatch | FlatBatch


class UpdateStopped(Exception):  # noqa: N818  # an orderly end, not an error
    """`should_stop` said so before the weights were touched."""


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """`grad_norm` before clipping; `clip_fraction` over what could be clipped; `logprob_gap`: largest
    |policy - sampling logprob| before the update, nats, NaN if one is, None if there was nothing to compare;
    `trained_tokens`: with a loss, each once; `computed_tokens`: that went through the model, context
    included. `is_applied` False: nothing to train on, or something is `not_finite`. `figures`: of the
    objective, by metric name. `logprobs`: by the policy before the update, [T] per tree; NaN where a token
    did not train. `log_ratios`: log(policy at the update / policy before the step), likewise; empty where
    both are the same.
    """

    loss: float
    grad_norm: float
    clip_fraction: float
    logprob_gap: float | None
    trained_tokens: int
    computed_tokens: int
    learning_rate: float
    is_applied: bool
    not_finite: NotFinite | None = None
    figures: dict[str, float] = field(default_factory=dict)
    logprobs: list[Floats] = field(default_factory=list)
    log_ratios: list[Floats] = field(default_factory=list)


@dataclass(slots=True)
class _Tally:
    """What micro-batches add up to. `sums` as in `LossPart.figures`."""

    loss: float = 0.0
    gap: float | None = None
    trained_tokens: int = 0
    computed_tokens: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    not_finite: NotFinite | None = None

    def over(self, ranks: Ranks) -> _Tally:
        """Of all ranks together, which trained on different trees."""
        if ranks.size == 1:
            return self
        total = _Tally()
        for rank in ranks.exchange(asdict(self)):
            total.loss += rank["loss"]
            total.gap = _larger(total.gap, rank["gap"])
            total.trained_tokens += rank["trained_tokens"]
            total.computed_tokens += rank["computed_tokens"]
            for name, value in rank["sums"].items():
                total.sums[name] = total.sums.get(name, 0.0) + value
            if total.not_finite is None and rank["not_finite"] is not None:
                total.not_finite = NotFinite(**rank["not_finite"])
        return total


@dataclass(frozen=True, slots=True, eq=False)
class UpdateData:
    """What one update trains on: trees with their part of the objective, and expert trees with theirs. old,
    reference: per tree [T] logprobs, None where the loss needs none (old: exactly on-policy). figures: of the
    importance correction, by metric name.
    """

    weights: list[TreeWeights]
    experts: list[TreeWeights] = field(default_factory=list)
    old: list[Floats] | None = None
    reference: list[Floats] | None = None
    mu: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def everything(self) -> list[TreeWeights]:
        return [*self.weights, *self.experts]


class Optimiser:
    """AdamW (Loshchilov & Hutter 2019) with linear warm-up and global norm clipping, for one objective."""

    def __init__(
        self,
        policy: Policy,
        config: TrainingConfig,
        objective: Objective | None = None,
        spread: str = "node",
        *,
        reference: Policy | None = None,
        temperature: float = 1.0,
    ) -> None:
        """`reference`: the frozen model of a KL term or of preference pairs, where the objective has one."""
        self._policy, self._config = policy, config
        self._ranks = policy.ranks
        self.objective: Objective = objective or PolicyObjective()
        self._spread, self._reference, self._temperature = spread, reference, temperature
        self.microbatch_tokens = config.microbatch_tokens  # lowered where they do not fit
        self._largest = 0  # tokens of a micro-batch so far
        self.adamw = torch.optim.AdamW(
            list(policy.named_parameters().values()),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )

    def halve_microbatches(self) -> tuple[int, int]:
        """From now on so many tokens at a time: (before, now). What is learnt changes only by rounding."""
        # The config may allow more than there ever was; half of that would be as much again.
        before = min(self.microbatch_tokens, self._largest or self.microbatch_tokens)
        self.microbatch_tokens = max(1, before // 2)
        return before, self.microbatch_tokens

    def learning_rate(self, step: int) -> float:
        """Of step 1, 2, ...: rises linearly over the warm-up steps, then stays."""
        return self._config.learning_rate * min(1.0, step / max(self._config.warmup_steps, 1))

    # ---- what is trained on

    def data(
        self, parts: Sequence[Sequence[RolloutTree]], experts: Sequence[RolloutTree], step: int
    ) -> list[UpdateData]:
        """The step's updates. Old logprobs are computed if there are several, all before the first, or for an
        importance correction: with one update the old logprobs are the new ones.
        """
        mu = 0.0
        if isinstance(self.objective, PolicyObjective) and self.objective.expert.kind == "chord" and experts:
            mix = self.objective.expert
            mu = expert_share(step, mix.peak, mix.valley, mix.warmup_steps, mix.decay_steps)
        updates = []
        for number, part in enumerate(parts):
            own = list(experts[number :: len(parts)])
            weights = weigh(part, self.objective, self._spread)
            if mu:
                weights = [replace(w, token=w.token * (1 - mu), whole=w.whole * (1 - mu)) for w in weights]
            needs_old = self._needs_old(len(parts))
            old = self.logprobs(self._policy, weights) if needs_old or self._corrects() else None
            weighed = self._corrected(weights, old)
            updates.append(
                UpdateData(
                    weights=weighed.weights,
                    experts=expert_weights(own, mu) if mu else [],
                    old=old if needs_old else None,
                    reference=self._reference_logprobs(weights),
                    mu=mu,
                    figures=weighed.figures,
                )
            )
        return updates

    def _needs_old(self, updates: int) -> bool:
        return updates > 1 and isinstance(self.objective, PolicyObjective)

    def _corrects(self) -> bool:
        """Whether samples are weighed by what the sampler's logprobs lie off the policy's."""
        return isinstance(self.objective, PolicyObjective) and self.objective.importance.kind != "none"

    def _corrected(self, weights: list[TreeWeights], old: list[Floats] | None) -> Weighed:
        if old is None or not isinstance(self.objective, PolicyObjective):
            return Weighed(weights, {})
        return corrected(weights, old, self.objective.importance)

    def _reference_logprobs(self, weights: Sequence[TreeWeights]) -> list[Floats] | None:
        objective = self.objective
        needed = isinstance(objective, PreferenceObjective) or (
            isinstance(objective, PolicyObjective) and objective.regularizer.kind == "k3"
        )
        if not needed:
            return None
        if self._reference is None:
            raise ValueError("This objective compares with a reference model, and there is none.")
        return self.logprobs(self._reference, weights)

    def leaf_log_ratios(self, trees: Sequence[RolloutTree]) -> list[Floats]:
        """Per tree [N], of leaves: log(policy / reference) summed over the answer; the sampler's logprobs
        stand for the policy, which wrote the tokens. NaN where the reference gives no number.
        """
        if self._reference is None:
            raise ValueError("reward.kl_coefficient compares with a reference model, and there is none.")
        weights = [every_answer(tree) for tree in trees]
        ratios = []
        for own, known in zip(weights, self.logprobs(self._reference, weights), strict=True):
            tree = own.tree
            away = np.where(own.trains, tree.logprobs - known, 0.0)
            node_of = np.repeat(np.arange(tree.n_nodes), tree.token_counts())
            per_node = np.bincount(node_of, away, minlength=tree.n_nodes)
            for node in range(1, tree.n_nodes):
                per_node[node] += per_node[tree.parent[node]]
            ratios.append(np.where(tree.is_leaf(), per_node, 0.0))
        return ratios

    @torch.no_grad()
    def logprobs(self, policy: Policy, weights: Sequence[TreeWeights]) -> list[Floats]:
        """Per tree [T] logprobs of the tokens that train; NaN elsewhere. By the same packing as the
        update."""
        found = [_unknown(own) for own in weights]
        owners = self._owners(weights)
        for batch in self._batches(weights, None, None, owners):
            _collect(found, batch.loss, policy.outputs(batch, self._temperature).logprobs)
        return _everyones(found, owners, self._ranks)

    def _owners(self, weights: Sequence[TreeWeights]) -> list[int]:
        """Which rank computes each tree: about equally many unique tokens for all."""
        if self._ranks.size == 1:
            return [0] * len(weights)
        return self._ranks.share([_tokens_that_train(own) for own in weights])

    def _batches(
        self,
        weights: Sequence[TreeWeights],
        old: Sequence[Floats] | None,
        reference: Sequence[Floats] | None,
        owners: Sequence[int],
        layout: str = "",
    ) -> Iterable[Batch]:
        """This rank's micro-batches, as many as every other one has."""
        lean = [
            without_idle_items(own, keeps_regularized=self._keeps_all())
            if owner == self._ranks.rank
            else own.left_out()
            for own, owner in zip(weights, owners, strict=True)
        ]
        most = self.microbatch_tokens
        batches: Iterable[Batch]
        if (layout or self._config.layout) == "flat":
            batches = flatten(lean, most, old=old, reference=reference)
        else:
            batches = pack(lean, most, with_items=self._with_items(), old=old, reference=reference)
        return self._ranks.in_step(self._measured(batches), idle_batch)

    def _measured(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._largest = max(self._largest, batch.tokens.size)
            yield batch

    def _keeps_all(self) -> bool:
        """Whether items without advantage train all the same."""
        objective = self.objective
        return isinstance(objective, PolicyObjective) and (
            objective.regularizer.kind != "none" or objective.entropy_bonus > 0
        )

    def _with_items(self) -> bool:
        objective = self.objective
        return isinstance(objective, PolicyObjective) and (
            objective.ratio in ("sequence", "geometric")
            or objective.regularizer.kind in ("squared_log_ratio", "forward_kl")
        )

    # ---- the update

    def update(self, data: UpdateData, *, step: int, should_stop: Callable[[], bool]) -> UpdateResult:
        """One step down the gradient. Raises UpdateStopped with the weights unchanged."""
        result, norm = self.gradient(data, should_stop)
        return self.apply(result, norm, step=step)

    def apply(self, result: UpdateResult, norm: float, *, step: int) -> UpdateResult:
        """Move the weights down the gradient that `gradient` left, unless something of it is not finite."""
        rate = self.learning_rate(step)
        result = replace(result, learning_rate=rate, grad_norm=norm)
        if result.is_applied:
            parameters = [p for group in self.adamw.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm)
            for group in self.adamw.param_groups:
                group["lr"] = rate
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return result

    def gradient(
        self, data: UpdateData, should_stop: Callable[[], bool], *, layout: str = ""
    ) -> tuple[UpdateResult, float]:
        """Leave the gradient in the parameters' `grad`; the result (not applied) and the gradient's norm.
        `layout`: "packed" or "flat", else the config's.
        """
        self.adamw.zero_grad(set_to_none=True)
        tally = _Tally()
        trained: list[Ints] = []  # [2, M] of each micro-batch: tree and place of its loss tokens
        found = [_unknown(own) for own in data.weights]
        owners = self._owners(data.everything)
        experts = len(data.experts)
        old = None if data.old is None else [*data.old, *[_unknown(w) for w in data.experts]]
        reference = (
            None if data.reference is None else [*data.reference, *[_unknown(w) for w in data.experts]]
        )
        for batch in self._batches(data.everything, old, reference, owners, layout):
            if self._ranks.any(should_stop()):
                self.adamw.zero_grad(set_to_none=True)
                raise UpdateStopped
            part, here, logprobs = self._loss(batch, with_experts=experts > 0)
            part.loss.backward()  # type: ignore[no-untyped-call]  # torch leaves `Tensor.backward` untyped
            here_loss = part.loss.item()
            tally.loss += here_loss
            if tally.not_finite is None and not math.isfinite(here_loss):
                tally.not_finite = _first_in(batch.loss, logprobs, here_loss, data.everything)
            tally.gap = _larger(tally.gap, here)
            for name, value in part.figures.items():
                tally.sums[name] = tally.sums.get(name, 0.0) + float(value)
            if batch is not idle_batch():
                tally.computed_tokens += batch.tokens.size
            trained.append(np.stack([batch.loss.tree, batch.loss.place]))
            _collect(found, batch.loss, logprobs)
        # A token that stands in several micro-batches, as context or written out again, is one token.
        tally.trained_tokens = np.unique(np.concatenate(trained, axis=1), axis=1).shape[1] if trained else 0
        tally = tally.over(self._ranks)
        sums, not_finite, gap = tally.sums, tally.not_finite, tally.gap
        if not tally.trained_tokens and not sums.get("value_error"):
            return UpdateResult(0.0, 0.0, 0.0, None, 0, 0, 0.0, is_applied=False), 0.0
        found = _everyones(found, owners, self._ranks)
        gradients = {n: p.grad for n, p in self._policy.named_parameters().items() if p.grad is not None}
        norm = float(whole(torch.nn.utils.get_total_norm(list(gradients.values()))))
        if not_finite is None and not math.isfinite(norm):
            # All its numbers may be finite, and only their squares not.
            first = next(
                (n for n, g in gradients.items() if not bool(torch.isfinite(whole(g)).all())), "its sum"
            )
            not_finite = NotFinite("gradient norm", norm, first)
        if not_finite is None and gap is not None and math.isnan(gap):
            not_finite = NotFinite("logprob", gap, "the sampler's")
        if not_finite is None and not math.isfinite(tally.loss):
            not_finite = NotFinite("loss", tally.loss, "the sum of the micro-batches")
        return (
            UpdateResult(
                loss=tally.loss,
                grad_norm=norm,
                clip_fraction=sums.get("clipped", 0.0) / max(sums.get("terms", 0.0), 1.0),
                logprob_gap=gap,
                trained_tokens=tally.trained_tokens,
                computed_tokens=tally.computed_tokens,
                learning_rate=0.0,
                is_applied=not_finite is None,
                not_finite=not_finite,
                figures=data.figures | _figures(sums, self.objective, data.mu),
                logprobs=found if data.old is None else data.old,
                log_ratios=[now - then for now, then in zip(found, data.old or [], strict=False)],
            ),
            norm,
        )

    def _loss(self, batch: Batch, *, with_experts: bool) -> tuple[LossPart, float | None, Tensor]:
        """The micro-batch's part of the loss, the largest gap between sampler and policy in it (None: nothing
        to compare), and the logprobs of its tokens [M].
        """
        objective = self.objective
        bonus = objective.entropy_bonus if isinstance(objective, PolicyObjective) else 0.0
        outputs = self._policy.outputs(batch, self._temperature, entropy=bonus > 0)
        logprobs = outputs.logprobs
        tokens = LossTensors.of(batch.loss, logprobs.device, logprobs.dtype)
        unknown = torch.isnan(tokens.old)
        tokens = replace(tokens, old=torch.where(unknown, logprobs.detach(), tokens.old))
        parts: list[LossPart] = []
        if isinstance(objective, PolicyObjective):
            if objective.regularizer.kind == "k3":  # expert tokens have no reference, and no weight on it
                missing = torch.isnan(tokens.reference) & (tokens.held == 0)
                tokens = replace(tokens, reference=torch.where(missing, logprobs.detach(), tokens.reference))
            parts.append(policy_loss(logprobs, tokens, objective))
            if bonus and outputs.entropies is not None:
                parts.append(entropy_bonus(outputs.entropies, tokens, bonus))
            if with_experts and objective.expert.kind == "chord":
                parts.append(supervised_loss(logprobs, tokens, token_weights=objective.expert.token_weights))
        elif isinstance(objective, PreferenceObjective):
            parts.append(preference_loss(logprobs, tokens, objective))
        else:
            parts.append(supervised_loss(logprobs, tokens))
            if outputs.values is not None:
                target, weight = (
                    torch.from_numpy(x).to(outputs.values) for x in (batch.value_target, batch.value_weight)
                )
                parts.append(value_loss(outputs.values, target, weight))
        loss = torch.stack([part.loss for part in parts]).sum()
        figures = {name: value for part in parts for name, value in part.figures.items()}
        return LossPart(loss, figures), _gap(logprobs, batch.loss), logprobs.detach()


def _collect(found: Sequence[Floats], tokens: LossTokens, logprobs: Tensor) -> None:
    """Put logprobs [M] into their trees' places. Trees behind the last of `found` (experts) are left out."""
    known = logprobs.double().cpu().numpy()
    for number in np.unique(tokens.tree).tolist():
        if number < len(found):
            here = tokens.tree == number
            found[number][tokens.place[here]] = known[here]


def _everyones(found: list[Floats], owners: Sequence[int], ranks: Ranks) -> list[Floats]:
    """What each tree's owner found of it; every rank holds an array of the right length for every tree."""
    if ranks.size == 1:
        return found
    own = [known for known, owner in zip(found, owners, strict=False) if owner == ranks.rank]
    sent = [np.frombuffer(part) for part in ranks.gather(b"".join(known.tobytes() for known in own))]
    taken = [0] * ranks.size
    everyones = []
    for known, owner in zip(found, owners, strict=False):
        begin, taken[owner] = taken[owner], taken[owner] + len(known)
        everyones.append(sent[owner][begin : taken[owner]].copy())
    return everyones


def _tokens_that_train(weights: TreeWeights) -> int:
    """Unique tokens that a tree's packed rows have, about: those of its segments with a loss."""
    return int(weights.tree.token_counts()[trained_nodes(weights)].sum())


def _unknown(weights: TreeWeights) -> Floats:
    return np.full(len(weights.tree.tokens), np.nan)


def _first_in(tokens: LossTokens, logprobs: Tensor, loss: float, weights: Sequence[TreeWeights]) -> NotFinite:
    """What made a micro-batch's loss not finite: the first token whose logprob is not, else the loss."""
    known = logprobs.double().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(known))
    if len(bad):
        first = int(bad[0])
        tree = weights[int(tokens.tree[first])].tree
        node = int(np.searchsorted(tree.token_offsets, tokens.place[first], side="right")) - 1
        return NotFinite(
            "logprob", float(known[first]), f"problem {tree.problem_id}, segment {tree.name(node)}"
        )
    problems = [weights[number].tree.problem_id for number in np.unique(tokens.tree).tolist()]
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return NotFinite(
        "loss", loss, f"problems {', '.join(problems[:3])}{more}" if problems else "the value head"
    )


def _gap(logprobs: Tensor, tokens: LossTokens) -> float | None:
    """Largest |policy - sampling logprob| over tokens that the engine sampled (an expert's have 0 there);
    None without any.
    """
    sampled = torch.from_numpy(tokens.sampled).to(logprobs)
    told = torch.from_numpy((tokens.held != 0) | (tokens.sampled != 0)).to(logprobs.device)
    away = (logprobs.detach() - sampled).abs()[told]
    return float(away.max()) if len(away) else None


def _larger(left: float | None, right: float | None) -> float | None:
    """The larger one of those there are; NaN if one is."""
    if left is None or right is None:
        return right if left is None else left
    return math.nan if math.isnan(left) or math.isnan(right) else max(left, right)


def _figures(sums: dict[str, float], objective: Objective, mu: float) -> dict[str, float]:
    """Metrics of the objective from the sums over micro-batches, whose weights hold the normalisers."""
    found = {}
    if "kl" in sums:
        found["policy/kl"] = sums["kl"]
    if isinstance(objective, PolicyObjective) and objective.expert.kind == "chord":
        found["expert/mu"] = mu
        if mu:
            found["expert/loss"] = sums.get("supervised", 0.0) / mu
    if isinstance(objective, PreferenceObjective):
        found["preference/pairs"] = sums.get("pairs", 0.0)
        if sums.get("pairs"):
            found["preference/margin"] = sums["margin"]
            found["preference/accuracy"] = sums["preferred"]
    if isinstance(objective, SupervisedObjective):
        if objective.policy_weight:
            found["supervised/loss"] = sums.get("supervised", 0.0) / objective.policy_weight
        if objective.value_weight:
            found["supervised/value_error"] = sums.get("value_error", 0.0) / objective.value_weight
    return found
