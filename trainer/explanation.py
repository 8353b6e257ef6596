"""An advantage in words: the formula, the same line with this node's numbers, the group, what filtered it.

The numbers are those of `credit.credit_of`, the function that trained; nothing is computed a second way here.
Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.advantages import Scores, groups_of, has_zero_variance, is_wider, root_and_parent_terms
from trainer.credit import Credit, CreditPlan, credit_of
from trainer.schema.credit import CreditConfig
from trainer.tree import ROOT, CreditState, RolloutTree
from trainer.values import (
    EQUAL_WITHIN,
    Floats,
    child_weights,
    leaf_means,
    steps_to_correct,
    visit_weights,
)

MOST_FIGURES = 16


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One node that an advantage was, or was not, compared with. `weight`: how often it counts."""

    node: int
    name: str
    value: float
    in_group: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """How one node came by its value and advantage, recomputed by the functions that made them.

    `formula` in symbols and `numbers` the same line with this node's figures; `value_formula` and
    `value_numbers` likewise for its value; `group` what it was compared with, of `n_group` in all; `filter` a
    sentence on whether its group was kept, "" where no group exists. `advantage` is NaN without credit;
    `state` then says why and `reason` says it in a sentence.
    """

    node: int
    name: str
    value: float
    value_formula: str
    value_numbers: str
    formula: str
    numbers: str
    group: tuple[GroupRow, ...]
    n_group: int
    filter: str
    reason: str
    state: CreditState
    advantage: float


def explain(
    tree: RolloutTree,
    node: int,
    plan: CreditPlan,
    *,
    credit: Credit | None = None,
    most_rows: int | None = None,
) -> Explanation:
    """Value and advantage of `node` in formulas and figures, computed anew from the leaf rewards.

    credit: `credit_of(tree, plan)`, if it is at hand. most_rows: of the group only so many, around the node.
    Raises IndexError when the tree has no such node, and RewardRangeError.
    """
    if not 0 <= node < tree.n_nodes:
        raise IndexError(f"There is no node {node}; the tree has nodes 0 to {tree.n_nodes - 1}.")
    credit = credit_of(tree, plan) if credit is None else credit
    state = CreditState(int(credit.state[node]))
    value_formula, value_numbers = _value_lines(tree, node, credit, plan.credit)
    numbers = ""
    if state is CreditState.CREDITED:
        if plan.credit.spread == "leaf_mean" and not tree.is_leaf()[node]:
            numbers = _leaf_mean_line(tree, node, credit)
        else:
            numbers = _numbers(tree, node, credit, plan)
    group, n_group = _group(tree, node, credit, most_rows)
    return Explanation(
        node=node,
        name=tree.name(node),
        value=float(credit.scores.value[node]),
        value_formula=value_formula,
        value_numbers=value_numbers,
        formula=formula(plan.credit),
        numbers=numbers,
        group=group,
        n_group=n_group,
        filter=_filter_sentence(tree, node, credit, plan.credit, state),
        reason=_reason(tree, state, plan.credit),
        state=state,
        advantage=float(credit.advantage[node]),
    )


# ------------------------------------------------------------------------------------------------ formulas


def formula(credit: CreditConfig) -> str:
    """The estimator's formula in symbols, as its parts make it."""
    amount, where = _amount_symbols(credit)
    scale = credit.scale
    if scale.kind == "group_std":
        line = f"A = ({amount}) / (σ + ε)" if scale.eps else f"A = ({amount}) / σ"
        where.append("σ its standard deviation")
    elif scale.kind == "bernoulli_variance":
        line = f"A = ({'V' if credit.spread == 'node' else 'R'} − μ) / (μ (1 − μ))"
    elif scale.kind == "inverse_sqrt_leaves":
        line = f"A = [{amount}] / √(leaves below)"
    elif scale.kind == "batch_std":
        line = f"A = ({amount}) / (σ_batch + ε)"
        what = "rewards" if scale.std_of == "raw" else "rewards less their group's mean"
        where.append(f"σ_batch the deviation of all {what} of the step")
    elif scale.kind == "batch_whiten":
        line = f"A = ({amount} − m_batch) / (σ_batch + ε)"
        count = "once per answer" if scale.count == "flat" else "once"
        where.append(f"m, σ over all trained tokens of the step, a shared one {count}")
    else:
        line = f"A = {amount}"
    if credit.spread == "leaf_mean":
        where.append("inner segments: mean A of the leaves below")
    return line + (",  " + ";  ".join(where) if where else "")


def _amount_symbols(credit: CreditConfig) -> tuple[str, list[str]]:
    """The value less its baseline, and what its symbols mean."""
    baseline = credit.baseline
    v = "V" if credit.spread == "node" else "R"
    words = {
        "siblings": "the siblings",
        "prompt": "all answers to the prompt",
        "tree": "the answers of its tree",
    }
    if baseline.kind == "group_mean":
        of = f"mean {v} of {words[baseline.group]}"
        if baseline.shift:
            sign = "−" if baseline.shift > 0 else "+"
            return f"{v} − μ {sign} {abs(baseline.shift):g}", [f"μ = {of}"]
        return f"{v} − μ", [f"μ = {of}"]
    if baseline.kind == "leave_one_out":
        return f"{v} − μ₋", [f"μ₋ = mean {v} of the others among {words[baseline.group]}"]
    if baseline.kind == "log_avg_exp":
        return "R − τ log mean exp(R / τ)", [f"over {words['prompt']}, τ = {baseline.tau:g}"]
    if baseline.kind == "parent_value":
        return "V − V(parent)", []
    if baseline.kind == "ancestor_mean":
        how = "" if baseline.weights == "uniform" else ", weighted by answers"
        return f"mean over ancestors a of ({v} − V(a))", [f"V(a) = mean R below a{how}"]
    if baseline.kind == "root_and_parent":
        if baseline.form == "code":
            return "(v − v(parent)) + v", [
                "v = Σ(R − mean of the others) / (√selected · leaves), below the node"
            ]
        return "(V − V(root)) + (V − V(parent))", []
    if baseline.kind == "tree_and_prompt":
        parts = {"both": "z(tree) + z(prompt)", "tree": "z(tree)", "prompt": "z(prompt)"}[baseline.parts]
        return parts, ["z = (R − mean R) / (std R + ε) over the answers of its tree, of the prompt"]
    if baseline.kind == "state":
        step = "(V − μ) / (σ + ε)"
        where = ["μ, σ of the next segments from the same state, by answers through them"]
        if baseline.global_term:
            return f"{step} + (V − V(root)) / (σ(root) + ε)", where
        return step, where
    if baseline.kind == "budget":
        return "(mean R of its budget − β cos(πb / 2L)) + (R − mean R) / (std R + ε)", []
    return "none", ["the objective trains on values, not on advantages"]


# ------------------------------------------------------------------------------------------------ numbers


def _numbers(tree: RolloutTree, node: int, credit: Credit, plan: CreditPlan) -> str:
    """`A = (0.5 − 0.25) / (0.25 × 0.75) = 1.3333`."""
    scale = plan.credit.scale
    amount = _amount_numbers(tree, node, credit, plan)
    result = figure(credit.own[node])
    divisor = float(credit.divisor[node])
    if scale.kind == "none":
        return f"A = {amount} = {result}"
    if scale.kind == "inverse_sqrt_leaves":
        return f"A = [{amount}] / √{figure(divisor**2)} = {result}"
    if scale.kind == "bernoulli_variance":
        mean = float(credit.comparison.baseline[node])
        return f"A = ({amount}) / ({figure(mean)} × {figure(1 - mean)}) = {result}"
    top = f"({amount})"
    if scale.kind == "batch_whiten":
        top = f"({amount} {_signed_figure(-credit.offset)})"
    return f"A = {top} / ({figure(divisor - scale.eps)} + {scale.eps:g}) = {result}"


def _amount_numbers(tree: RolloutTree, node: int, credit: Credit, plan: CreditPlan) -> str:
    baseline, comparison, scores = plan.credit.baseline, credit.comparison, credit.scores
    v, off = float(comparison.compared[node]), float(comparison.baseline[node])
    parent = int(tree.parent[node])
    if baseline.kind == "group_mean" and baseline.shift:
        if off == 0:  # a group of one
            return f"{figure(v)} − 0"
        return f"{figure(v)} − ({figure(off - baseline.shift)} {_signed(baseline.shift)})"
    if baseline.kind in ("group_mean", "leave_one_out", "log_avg_exp", "parent_value"):
        return f"{figure(v)} − {figure(off)}"
    if baseline.kind == "ancestor_mean":
        is_node = plan.credit.spread == "node"
        means = scores.value if is_node else leaf_means(tree, scores.reward)
        sizes = scores.answers
        used = [a for a in tree.path(node)[:-1] if a == ROOT or is_node or sizes[a] > 1]
        if baseline.weights == "size":
            terms = " + ".join(f"{sizes[a]:g} · ({figure(v)} − {figure(means[a])})" for a in used)
            return f"[{terms}] / {sum(float(sizes[a]) for a in used):g}"
        return f"mean({', '.join(f'{figure(v)} − {figure(means[a])}' for a in used)})"
    if baseline.kind == "root_and_parent":
        if baseline.form == "code":
            above, step, own = root_and_parent_terms(scores, credit.selected)
            is_same = abs(own[node] - above[node]) < 1e-8 and step[node] != own[node] - above[node]
            first = figure(step[node]) if is_same else f"({figure(own[node])} − {figure(above[node])})"
            return f"{first} {_signed_figure(own[node])}"
        values = scores.value
        return f"({figure(v)} − {figure(values[ROOT])}) + ({figure(v)} − {figure(values[parent])})"
    if baseline.kind == "tree_and_prompt":
        kinds = ("tree", "prompt") if baseline.parts == "both" else (baseline.parts,)
        return " + ".join(_among_answers(scores, kind, node, baseline.ddof, baseline.eps) for kind in kinds)
    if baseline.kind == "state":
        parts = []
        peers = np.flatnonzero((comparison.group == parent) & (comparison.weight > 0))
        if np.ptp(comparison.compared[peers]) > EQUAL_WITHIN:
            parts.append(
                _standard_line(
                    comparison.compared, comparison.group, comparison.weight, node, 0, baseline.eps
                )
            )
        if baseline.global_term:
            root = float(leaf_means(tree, scores.reward)[ROOT])
            everyone, weight = groups_of(scores, "prompt", scores.reward)
            std = _weighted_std(scores.reward, everyone, weight, 0, 0)
            parts.append(f"({figure(v)} − {figure(root)}) / ({figure(std)} + {baseline.eps:g})")
        return " + ".join(parts)
    if baseline.kind == "budget" and plan.budget is not None:
        group, weight = groups_of(scores, "tree", scores.reward)
        peers = np.flatnonzero((group == group[node]) & np.isfinite(scores.reward))
        mine = np.average(scores.reward[peers], weights=weight[peers])
        budget = plan.budgets[int(group[node])]
        cosine = f"{plan.budget.beta:g} · cos(π · {budget} / (2 · {plan.budget.max_tokens}))"
        line = _among_answers(scores, "prompt", node, baseline.ddof, baseline.eps)
        return f"({figure(mine)} − {cosine}) + {line}"
    raise AssertionError(baseline.kind)  # no other baseline has an amount


def _among_answers(scores: Scores, kind: str, node: int, ddof: int, eps: float) -> str:
    group, weight = groups_of(scores, kind, scores.reward)
    return _standard_line(scores.reward, group, weight, node, ddof, eps)


def _standard_line(
    values: Floats, group: NDArray[np.int64], weight: Floats, node: int, ddof: int, eps: float
) -> str:
    """`(1 − 0.5) / (0.5774 + 1e-06)`, and what stands for it in an all-equal group or a group of one."""
    peers = np.flatnonzero((group == group[node]) & np.isfinite(values))
    if float(weight[peers].sum()) < 1.5:
        return f"{figure(values[node])} / (1 + {eps:g})"
    mean = float(np.average(values[peers], weights=weight[peers]))
    if np.ptp(values[peers]) <= EQUAL_WITHIN:
        return "0"
    std = _weighted_std(values, group, weight, int(group[node]), ddof)
    return f"({figure(values[node])} − {figure(mean)}) / ({figure(std)} + {eps:g})"


def _weighted_std(values: Floats, group: NDArray[np.int64], weight: Floats, number: int, ddof: int) -> float:
    peers = np.flatnonzero((group == number) & np.isfinite(values))
    v, w = values[peers], weight[peers]
    mean = np.average(v, weights=w)
    return float(np.sqrt((w * (v - mean) ** 2).sum() / max(w.sum() - ddof, 1e-300)))


def _leaf_mean_line(tree: RolloutTree, node: int, credit: Credit) -> str:
    below = _leaves_below(tree, node)
    below = below[np.isfinite(credit.own[below])]
    return f"A = {_mean_of(credit.own[below], tree.copies[below])} = {figure(credit.advantage[node])}"


def _value_lines(tree: RolloutTree, node: int, credit: Credit, config: CreditConfig) -> tuple[str, str]:
    value = credit.scores.value
    if config.backup == "quality":
        return _quality_lines(tree, node, credit.scores)
    if credit.scores.leaf[node]:
        return "V = reward of the answer", "" if np.isnan(value[node]) else f"V = {figure(value[node])}"
    if config.backup == "leaf_mean":
        below = _leaves_below(tree, node)
        figures, weights = credit.scores.reward[below], tree.copies[below].astype(np.float64)
        text = "V = mean reward of the answers below"
    else:
        below = np.flatnonzero(tree.parent == node)
        figures, weights = value[below], child_weights(tree)[below]
        text = "V = mean V of the children"
        if config.backup == "visit_weighted":
            weights = visit_weights(tree)[below]
            text = "V = Σ max(1, N) V / Σ max(1, N) of the children"
    here = np.isfinite(figures)
    if not here.any():
        return text, ""
    return text, f"V = {_mean_of(figures[here], weights[here])} = {figure(value[node])}"


def _quality_lines(tree: RolloutTree, node: int, scores: Scores) -> tuple[str, str]:
    text = (
        "V = max(0, V(parent) + (1 − V(parent)) · r / m),  r = ±1: reaches a correct answer or not; m steps"
    )
    if np.isnan(scores.value[node]):
        return text, ""
    steps, reaches = steps_to_correct(tree, scores.reward)
    if node == ROOT or np.isinf(steps[node]):
        return text, f"V = {figure(scores.value[node])}"
    above = float(scores.value[tree.parent[node]])
    sign = "1" if reaches[node] else "(−1)"
    work = f"{figure(above)} + (1 − {figure(above)}) · {sign} / {steps[node]:g}"
    return text, f"V = max(0, {work}) = {figure(scores.value[node])}"


def _mean_of(values: Floats, weights: NDArray[Any]) -> str:
    """`mean(1, 0)`, with `3 × 1` for what counts several times."""
    terms = [
        figure(value) if weight == 1 else f"{weight:g} × {figure(value)}"
        for value, weight in zip(values[:MOST_FIGURES], weights[:MOST_FIGURES], strict=True)
    ]
    more = f", … {len(values)} in all" if len(values) > MOST_FIGURES else ""
    return f"mean({', '.join(terms)}{more})"


def _leaves_below(tree: RolloutTree, node: int) -> NDArray[np.int64]:
    """Leaves at or below a node. Breadth-first, so each level below is one range of nodes."""
    counts, first, leaf = tree.child_counts(), tree.first_children(), tree.is_leaf()
    found: list[NDArray[np.int64]] = []
    level = np.array([node])
    while len(level):
        found.append(level[leaf[level]])
        inner = level[counts[level] > 0]
        if not len(inner):
            break
        level = np.arange(first[inner[0]], first[inner[-1]] + counts[inner[-1]])
    return np.concatenate(found)


# ------------------------------------------------------------------------------------------------ the rest


def _group(
    tree: RolloutTree, node: int, credit: Credit, most_rows: int | None
) -> tuple[tuple[GroupRow, ...], int]:
    comparison = credit.comparison
    number = int(comparison.group[node])
    if number < 0 or node == ROOT:
        return (), 0
    peers = np.flatnonzero(comparison.group == number)
    n_group = len(peers)
    if most_rows is not None:
        start = max(min(int(np.searchsorted(peers, node)) - most_rows // 2, n_group - most_rows), 0)
        peers = peers[start : start + most_rows]
    rows = tuple(
        GroupRow(
            int(peer),
            tree.name(int(peer)),
            float(comparison.compared[peer]),
            bool(np.isfinite(comparison.compared[peer]) and comparison.weight[peer] > 0),
            float(comparison.weight[peer]),
        )
        for peer in peers
    )
    return rows, n_group


def _filter_sentence(
    tree: RolloutTree, node: int, credit: Credit, config: CreditConfig, state: CreditState
) -> str:
    if node == ROOT or credit.scores.given[node] or config.baseline.kind == "none":
        return ""
    rule, comparison = config.filter, credit.comparison
    if rule.kind == "zero_variance":
        what = "verdicts" if rule.equal == "verdict" else "rewards"
        if has_zero_variance(tree, rule):
            return f"Dropped: all {what} of the prompt are equal."
        if state is CreditState.DROPPED_BY_FILTER:  # by a baseline of its own scale
            return "Dropped: all values of its group are equal."
        return f"Kept: the {what} of the prompt differ."
    amount = float(comparison.amount[node])
    if rule.kind == "nonzero":
        if np.isnan(amount):
            return ""
        if abs(amount) <= EQUAL_WITHIN:
            return "Dropped: its amount is 0."
        return "Kept: its amount is not 0."
    if rule.kind == "none":
        if comparison.state[node] == CreditState.DROPPED_BY_FILTER:  # by a baseline of its own scale
            return "Dropped: all values of its group are equal."
        return ""
    if comparison.group[node] < 0 or np.isnan(amount):
        return ""
    members = comparison.compared[(comparison.group == comparison.group[node]) & (comparison.weight > 0)]
    spread = float(members.max() - members.min())
    if is_wider(np.array(spread), rule.tau):
        return f"Kept: max V − min V = {figure(spread)} > τ = {rule.tau:g}."
    return f"Dropped: max V − min V = {figure(spread)} ≤ τ = {rule.tau:g}."


def _reason(tree: RolloutTree, state: CreditState, config: CreditConfig) -> str:
    if state is CreditState.DROPPED_BY_FILTER:
        rule = config.filter
        if rule.kind == "zero_variance" and has_zero_variance(tree, rule):
            return "No credit: all answers to the prompt are equal."
        if rule.kind == "nonzero":
            return "No credit: it is no better or worse than what it is compared with."
        return "No credit: the values of its group differ too little."
    return {
        CreditState.NONE: "The prompt was not sampled, so it gets no credit.",
        CreditState.CREDITED: "",
        CreditState.ONLY_CHILD: "No credit: there is nothing to compare it with.",
        CreditState.NO_REWARD: "No credit: no leaf at or below it has a reward.",
        CreditState.PER_PATH: "Credit is given per answer: its tokens take the advantage of each leaf below.",
        CreditState.NOT_SELECTED: "No credit: no leaf at or below it was chosen to train.",
        CreditState.GIVEN: "It was given to the policy, not sampled, so it gets no credit.",
        CreditState.NO_ADVANTAGE: "The objective trains on pairs or verified answers, not on advantages.",
    }[state]


def _signed(number: float) -> str:
    return f"+ {number:g}" if number >= 0 else f"− {-number:g}"


def _signed_figure(number: float) -> str:
    return f"+ {figure(number)}" if number >= 0 else f"− {figure(-number)}"


def figure(number: Any) -> str:
    """A number for people: four decimals, without trailing zeros, with a true minus. `Any`: numpy scalars."""
    text = f"{float(number):.4f}".rstrip("0").rstrip(".")
    return (text if text not in ("-0", "") else "0").replace("-", "−")
