"""What a run's config does, for people: its algorithm's formula, its parts in words, what differs from its
preset."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from trainer.config import RunConfig
from trainer.explanation import formula
from trainer.presets import PRESETS, Preset
from trainer.schema.objective import Objective, PolicyObjective
from trainer.schema.sampler import Sampler
from webapp.runs.config_form import HIDDEN, to_text

NOT_METHOD = (*HIDDEN, "seed")  # the header of a run shows its seed
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@dataclass(frozen=True, slots=True)
class Change:
    """One knob that is not as in the preset. `before` "": the preset's kind has no such knob."""

    path: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Method:
    """A run's algorithm in words.

    `is_preset`: credit and objective are the preset's, so `formula` is the one that the preset gives; else it
    is composed from the parts. `changes`: every knob that differs from the preset, seed left out.
    """

    title: str
    formula: str
    source: str
    source_url: str
    is_preset: bool
    sampling: str
    learning: str
    changes: tuple[Change, ...]


def method_of(config: RunConfig) -> Method:
    preset = PRESETS.get(config.preset)
    is_preset = (
        preset is not None
        and preset.config.credit == config.credit
        and preset.config.objective == config.objective
    )
    own = preset.formula if preset is not None and is_preset else composed_formula(config)
    name = algorithm_name(preset) if preset is not None else config.preset
    return Method(
        title=name if is_preset else f"{name}, changed",
        formula=own,
        source=preset.source if preset is not None else "",
        source_url=source_url(preset.source) if preset is not None else "",
        is_preset=is_preset,
        sampling=sampler_words(config.sampler)
        + (", one step ahead of training" if config.training.max_staleness else ""),
        learning=objective_words(config.objective),
        changes=tuple(changes_from(preset.config, config)) if preset is not None else (),
    )


def algorithm_name(preset: Preset) -> str:
    """`TreeRPO · tiny` → `TreeRPO`."""
    return preset.title.partition(" · ")[0]


def source_url(source: str) -> str:
    """Where a paper can be read, or "" when the source is no paper that we know an address of."""
    found = _ARXIV.search(source)
    return f"https://arxiv.org/abs/{found[1]}" if found else ""


def composed_formula(config: RunConfig) -> str:
    """The formula that a config's parts make: of its advantages, or of its loss where it has none."""
    objective = config.objective
    if objective.kind == "preference":
        term = "x = log π/π_ref (best child) − log π/π_ref (worst child)"
        if objective.loss == "ipo":
            return f"(x − 1 / (2β))²,  {term};  β = {objective.beta:g}"
        return f"−log σ(βx),  {term};  β = {objective.beta:g}"
    if objective.kind == "supervised":
        terms = (
            (objective.policy_weight, "cross-entropy on correct answers"),
            (objective.value_weight, "(v − V)²"),
        )
        return " + ".join(
            f"{'' if weight == 1 else f'{weight:g} · '}{term}" for weight, term in terms if weight
        )
    return formula(config.credit)


# ------------------------------------------------------------------------------------------------ words


def sampler_words(sampler: Sampler) -> str:
    """`tree 4 · 2 · 2, segments of at most 16, 16, 64 tokens, split at line breaks`."""
    if sampler.kind == "flat":
        words = [f"{sampler.group_size} answers of at most {sampler.max_tokens:,} tokens"]
        if sampler.budgets:
            words.append(f"under budgets of {to_text(sampler.budgets)} tokens")
        if sampler.merge != "none":
            words.append("equal beginnings merged at line breaks")
    elif sampler.kind == "segment_tree":
        lengths = list(dict.fromkeys(sampler.segment_tokens))
        tokens = f"{lengths[0]:,}" if len(lengths) == 1 else to_text(sampler.segment_tokens)
        same = len(set(sampler.branching)) == 1
        shape = (
            f"{sampler.branching[0]}-ary, {sampler.depth} levels deep"
            if same
            else " · ".join(map(str, sampler.branching))
        )
        words = [f"tree {shape}", f"segments of at most {tokens} tokens"]
        if sampler.split == "newline":
            words.append("split at line breaks")
        if sampler.max_width:
            words.append(f"at most {sampler.max_width} answers")
        if sampler.fallback != "none":
            words.append("ended paths are taken up again")
    elif sampler.kind == "fork_tree":
        where = {
            "surprisal": "before the most surprising tokens",
            "entropy": "where the entropy is high",
            "uniform": "at random line breaks",
        }[sampler.score.kind]
        rounds = "" if sampler.rounds == 1 else f" in each of {sampler.rounds} rounds"
        words = [
            f"{_count(sampler.trees, 'answer')} of at most {sampler.max_tokens:,} tokens",
            f"{_count(sampler.forks, 'fork')} each{rounds}, {where}",
            f"{_count(sampler.continuations, 'continuation')} per fork",
        ]
    elif sampler.kind == "lookahead":
        words = [
            f"{sampler.group_size} answers of at most {sampler.max_tokens:,} tokens",
            "forks where the runner-up is nearly as likely",
            f"look-alikes pruned after {to_text(sampler.windows)} tokens",
        ]
    else:
        per = "per decision" if sampler.select.kind == "puct" else "in all"
        words = [
            f"{sampler.select.kind.upper()} search of {sampler.iterations} iterations {per}",
            f"{sampler.expand} children, {sampler.depth} levels",
            "scored by a value head" if sampler.evaluator == "value_head" else "scored by rollouts",
        ]
    if sampler.temperature != 1:
        words.append(f"temperature {sampler.temperature:g}")
    if sampler.top_k:
        words.append(f"top-k {sampler.top_k}" + (f", top-p {sampler.top_p:g}" if sampler.top_p < 1 else ""))
    return ", ".join(words)


def objective_words(objective: Objective) -> str:
    """`policy gradient, token ratios clipped to 0.8 … 1.28, mean over tokens, KL 0.001`."""
    if objective.kind == "preference":
        words = [f"{objective.loss.upper()} on the best and the {objective.rejected} child of a node"]
        words.append(f"at most {objective.max_pairs} pairs per tree")
        return ", ".join(words)
    if objective.kind == "supervised":
        words = [f"supervised on at most {objective.max_answers} correct answers per tree"]
        if objective.value_weight:
            words.append("and a value head on all nodes")
        return " ".join(words)
    return ", ".join(_policy_words(objective))


def _policy_words(objective: PolicyObjective) -> Iterator[str]:
    yield "policy gradient"
    ratio = {
        "token": "token ratios",
        "sequence": "ratios of whole answers",
        "geometric": "geometric-mean ratios",
        "none": "",
    }[objective.ratio]
    low, high = f"{1 - objective.clip_low:g}", f"{1 + objective.clip_high:g}"
    if ratio and objective.clip == "both":
        yield f"{ratio} clipped to {low} … {high}"
    elif objective.clip == "one_side":
        yield f"tokens outside {low} … {high} dropped"
    else:
        yield ratio or "no ratio"
    if objective.clip_dual:
        yield f"dual clip {objective.clip_dual:g}"
    yield {
        "token_mean": "mean over tokens",
        "sequence_mean": "mean over answers",
        "fixed_length": f"sum over answers × {objective.fixed_length:,}",
    }[objective.aggregate]
    importance = objective.importance
    if importance.kind != "none":
        of = "tokens" if importance.level == "token" else "answers"
        cut = (
            f"cut at {importance.cap:g}"
            if importance.kind == "truncated"
            else f"masked outside {importance.low:g} … {importance.high:g}"
        )
        yield f"importance weights of {of} {cut}"
    if objective.max_token_probability < 1:
        yield f"only tokens below probability {objective.max_token_probability:g}"
    if objective.mask_truncated:
        yield "cut-off answers masked"
    if objective.entropy_bonus:
        yield f"entropy bonus {objective.entropy_bonus:g}"
    if objective.regularizer.kind != "none":
        names = {
            "k3": "KL to the reference",
            "squared_log_ratio": "squared log-ratio",
            "forward_kl": "forward KL",
        }
        yield f"{names[objective.regularizer.kind]} {objective.regularizer.beta:g}"
    if objective.expert.kind != "none":
        yield f"expert answers mixed in, μ {objective.expert.peak:g} → {objective.expert.valley:g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# ------------------------------------------------------------------------------------------------ changes


def changes_from(preset: RunConfig, config: RunConfig) -> Iterator[Change]:
    """Every knob of `config` that is not as in `preset`, in the schema's order."""
    for name in type(config).model_fields:
        if name not in NOT_METHOD:
            yield from _changes(name, getattr(preset, name), getattr(config, name))


def _changes(path: str, before: Any, after: Any) -> Iterator[Change]:
    """`Any`: a section, or a knob's value. Of another kind only what is not that kind's default is told."""
    if before == after:
        return
    if not isinstance(after, BaseModel):
        yield Change(path, to_text(before), to_text(after))
    elif type(before) is type(after):
        for name in type(after).model_fields:
            yield from _changes(f"{path}.{name}", getattr(before, name), getattr(after, name))
    else:
        yield Change(f"{path}.kind", _kind(before), _kind(after))
        for name, field in type(after).model_fields.items():
            if name != "kind" and getattr(after, name) != field.get_default():
                yield Change(f"{path}.{name}", "", _as_text(getattr(after, name)))


def _kind(section: BaseModel) -> str:
    return str(section.model_dump()["kind"])


def _as_text(value: Any) -> str:
    """A knob's value, or the name of a whole part. `Any`: as in `_changes`."""
    return _kind(value) if isinstance(value, BaseModel) else to_text(value)
