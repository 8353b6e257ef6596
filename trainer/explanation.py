"""An advantage in words: the formula, the same line with this node's numbers, the group, what filtered it.

The numbers are those of `credit.credit_of`, the function that trained; nothing is computed a second way here.
Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.advantages import groups_of, has_zero_variance
from trainer.credit import Credit, CreditPlan, credit_of
from trainer.schema.credit import CreditConfig
from trainer.tree import ROOT, CreditState, FinishReason, RolloutTree
from trainer.values import Floats, answer_weights, leaf_means, leaf_rewards

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
    `value_numbers` likewise for its value; `group` what it was compared with; `filter` a sentence on whether
    its group was kept, "" where no group exists. `advantage` is NaN without credit; `state` then says why and
    `reason` says it in a sentence.
    """

    node: int
    name: str
    value: float
    value_formula: str
    value_numbers: str
    formula: str
    numbers: str
    group: tuple[GroupRow, ...]
    filter: str
    reason: str
    state: CreditState
    advantage: float


def explain(tree: RolloutTree, node: int, plan: CreditPlan) -> Explanation:
    """Value and advantage of `node` in formulas and figures, computed anew from the leaf rewards.

    Raises IndexError when the tree has no such node, and RewardRangeError.
    """
    if not 0 <= node < tree.n_nodes:
        raise IndexError(f"There is no node {node}; the tree has nodes 0 to {tree.n_nodes - 1}.")
    credit = credit_of(tree, plan)
    state = CreditState(int(credit.state[node]))
    value_formula, value_numbers = _value_lines(tree, node, credit, plan.credit)
    numbers = ""
    if state is CreditState.CREDITED:
        if plan.credit.spread == "leaf_mean" and not tree.is_leaf()[node]:
            numbers = _leaf_mean_line(tree, node, credit)
        else:
            numbers = _numbers(tree, node, credit, plan)
    return Explanation(
        node=node,
        name=tree.name(node),
        value=float(credit.comparison.value[node]),
        value_formula=value_formula,
        value_numbers=value_numbers,
        formula=formula(plan.credit),
        numbers=numbers,
        group=_group(tree, node, credit),
        filter=_filter_sentence(tree, node, credit, plan.credit),
        reason=_reason(state, plan.credit),
        state=state,
        advantage=float(credit.advantage[node]),
    )


# ------------------------------------------------------------------------------------------------ formulas


def formula(credit: CreditConfig) -> str:
    """The estimator's formula in symbols, as its parts make it."""
    amount, where = _amount_symbols(credit)
    scale = credit.scale
    symbol = "R" if credit.spread != "node" else "V"
    if scale.kind == "group_std":
        line = f"A = ({amount}) / (σ + ε)" if scale.eps else f"A = ({amount}) / σ"
        where.append("σ its standard deviation")
    elif scale.kind == "bernoulli_variance":
        line = "A = (V − μ) / (μ (1 − μ))" if symbol == "V" else "A = (R − μ) / (μ (1 − μ))"
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
        where = ["μ, σ of the next steps from the same state, by answers through them"]
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
    if scale.kind == "batch_whiten":
        top = f"({amount} − {figure(credit.offset)})".replace("− −", "+ ")
        return f"A = {top} / ({figure(tree.batch_std)} + {scale.eps:g}) = {result}"
    if scale.kind == "batch_std":
        return f"A = ({amount}) / ({figure(tree.batch_std)} + {scale.eps:g}) = {result}"
    if scale.kind == "bernoulli_variance":
        mean = float(credit.comparison.baseline[node])
        return f"A = ({amount}) / ({figure(mean)} × {figure(1 - mean)}) = {result}"
    if scale.kind == "group_std":
        return f"A = ({amount}) / ({figure(divisor - scale.eps)} + {scale.eps:g}) = {result}"
    return f"A = [{amount}] / √{figure(divisor**2)} = {result}"


def _amount_numbers(tree: RolloutTree, node: int, credit: Credit, plan: CreditPlan) -> str:
    baseline, comparison = plan.credit.baseline, credit.comparison
    rewards = leaf_rewards(tree)
    is_node = plan.credit.spread == "node"
    v = float(comparison.value[node] if is_node else rewards[node])
    off = float(comparison.baseline[node])
    parent = int(tree.parent[node])
    if baseline.kind == "group_mean" and baseline.shift:
        return f"{figure(v)} − ({figure(off - baseline.shift)} {_signed(baseline.shift)})"
    if baseline.kind in ("group_mean", "leave_one_out", "log_avg_exp", "parent_value"):
        return f"{figure(v)} − {figure(off)}"
    if baseline.kind == "ancestor_mean":
        means = comparison.value if is_node else leaf_means(tree, rewards)
        sizes = answer_weights(tree, rewards)
        used = [a for a in tree.path(node)[:-1] if a == ROOT or is_node or sizes[a] > 1]
        if baseline.weights == "size":
            terms = " + ".join(f"{sizes[a]:g} · ({figure(v)} − {figure(means[a])})" for a in used)
            return f"[{terms}] / {sum(float(sizes[a]) for a in used):g}"
        return f"mean({', '.join(f'{figure(v)} − {figure(means[a])}' for a in used)})"
    if baseline.kind == "root_and_parent" and baseline.form == "paper":
        values = comparison.value
        return f"({figure(v)} − {figure(values[ROOT])}) + ({figure(v)} − {figure(values[parent])})"
    if baseline.kind == "tree_and_prompt":
        parts: list[str] = []
        for kind in ("tree", "prompt"):
            if baseline.parts in ("both", kind):
                group, weight = groups_of(tree, kind, rewards)
                parts.append(_standard_line(rewards, group, weight, node, baseline.ddof, baseline.eps))
        return " + ".join(parts)
    if baseline.kind == "state":
        means, counts = leaf_means(tree, rewards), answer_weights(tree, rewards)
        group, _ = groups_of(tree, "siblings", means)
        parts = []
        peers = np.flatnonzero((group == parent) & (counts > 0))
        if np.ptp(means[peers]) > 1e-12:
            parts.append(_standard_line(means, group, counts, node, 0, baseline.eps))
        if baseline.global_term:
            everyone, weight = groups_of(tree, "prompt", rewards)
            std = _weighted_std(rewards, everyone, weight, 0, 0)
            parts.append(
                f"({figure(means[node])} − {figure(means[ROOT])}) / ({figure(std)} + {baseline.eps:g})"
            )
        return " + ".join(parts)
    if baseline.kind == "budget" and plan.budget is not None:
        group, weight = groups_of(tree, "tree", rewards)
        peers = np.flatnonzero((group == group[node]) & np.isfinite(rewards))
        mine = np.average(rewards[peers], weights=weight[peers])
        everyone, weight = groups_of(tree, "prompt", rewards)
        line = _standard_line(rewards, everyone, weight, node, baseline.ddof, baseline.eps)
        budget = plan.budgets[int(group[node])]
        cosine = f"{plan.budget.beta:g} cos(π · {budget} / (2 · {plan.budget.max_tokens}))"
        return f"({figure(mine)} − {cosine}) + {line}"
    return figure(comparison.amount[node])


def _standard_line(
    values: Floats, group: NDArray[np.int64], weight: Floats, node: int, ddof: int, eps: float
) -> str:
    """`(1 − 0.5) / (0.5774 + 1e-06)`, and what stands for it in an all-equal group or a group of one."""
    peers = np.flatnonzero((group == group[node]) & np.isfinite(values))
    if float(weight[peers].sum()) < 1.5:
        return f"{figure(values[node])} / (1 + {eps:g})"
    mean = float(np.average(values[peers], weights=weight[peers]))
    if np.ptp(values[peers]) <= 1e-12:
        return "0"
    std = _weighted_std(values, group, weight, int(group[node]), ddof)
    return f"({figure(values[node])} − {figure(mean)}) / ({figure(std)} + {eps:g})"


def _weighted_std(values: Floats, group: NDArray[np.int64], weight: Floats, number: int, ddof: int) -> float:
    peers = np.flatnonzero((group == number) & np.isfinite(values))
    v, w = values[peers], weight[peers]
    mean = np.average(v, weights=w)
    return float(np.sqrt((w * (v - mean) ** 2).sum() / max(w.sum() - ddof, 1e-300)))


def _leaf_mean_line(tree: RolloutTree, node: int, credit: Credit) -> str:
    own = credit.own[_leaves_below(tree, node)]
    own = own[np.isfinite(own)]
    return f"A = {_mean_of(own)} = {figure(credit.advantage[node])}"


def _value_lines(tree: RolloutTree, node: int, credit: Credit, config: CreditConfig) -> tuple[str, str]:
    value = credit.comparison.value
    is_leaf = tree.is_leaf()
    if config.backup == "quality":
        return (
            "V = max(0, V(parent) + (1 − V(parent)) · r / m),  r = ±1: reaches a correct answer or not",
            f"V = {figure(value[node])}",
        )
    if is_leaf[node]:
        if tree.finish[node] == FinishReason.PRUNED:
            return "V = the score that the search gave it", f"V = {figure(value[node])}"
        return "V = reward of the answer", f"V = {figure(value[node])}"
    if config.backup == "leaf_mean":
        rewards = leaf_rewards(tree)
        below = _leaves_below(tree, node)
        below = below[np.isfinite(rewards[below])]
        figures = np.repeat(rewards[below], np.minimum(tree.copies[below], MOST_FIGURES + 1))
        text = "V = mean reward of the answers below"
    else:
        below = np.flatnonzero(tree.parent == node)
        below = below[np.isfinite(value[below])]
        figures = value[below]
        text = "V = mean V of the children"
        if config.backup == "visit_weighted":
            text = "V = Σ max(1, N) V / Σ max(1, N) of the children"
            terms = [f"{max(1, int(tree.visits[c]))} × {figure(value[c])}" for c in below[:MOST_FIGURES]]
            return text, f"V = weighted mean({', '.join(terms)}) = {figure(value[node])}" if terms else ""
    if not len(figures):
        return text, ""
    return text, f"V = {_mean_of(figures)} = {figure(value[node])}"


def _mean_of(values: Floats) -> str:
    more = f", … {len(values)} in all" if len(values) > MOST_FIGURES else ""
    return f"mean({', '.join(map(figure, values[:MOST_FIGURES]))}{more})"


def _leaves_below(tree: RolloutTree, node: int) -> NDArray[np.int64]:
    reached = np.zeros(tree.n_nodes, np.bool_)
    reached[node] = True
    for other in range(node + 1, tree.n_nodes):
        reached[other] = reached[tree.parent[other]]
    return np.flatnonzero(reached & tree.is_leaf())


# ------------------------------------------------------------------------------------------------ the rest


def _group(tree: RolloutTree, node: int, credit: Credit) -> tuple[GroupRow, ...]:
    comparison = credit.comparison
    number = int(comparison.group[node])
    if number < 0 or node == ROOT:
        return ()
    peers = np.flatnonzero(comparison.group == number)
    return tuple(
        GroupRow(
            int(peer),
            tree.name(int(peer)),
            float(comparison.value[peer]),
            bool(np.isfinite(comparison.value[peer]) and comparison.weight[peer] > 0),
            float(comparison.weight[peer]),
        )
        for peer in peers
    )


def _filter_sentence(tree: RolloutTree, node: int, credit: Credit, config: CreditConfig) -> str:
    if node == ROOT or tree.finish[node] == FinishReason.GIVEN or config.baseline.kind == "none":
        return ""
    rule = config.filter
    if rule.kind == "zero_variance":
        if has_zero_variance(tree):
            return "Dropped: all rewards of the prompt are equal."
        return "Kept: the rewards of the prompt differ."
    if rule.kind == "nonzero":
        is_zero = credit.state[node] == CreditState.DROPPED_BY_FILTER
        return "Dropped: its amount is 0." if is_zero else "Kept: its amount is not 0."
    comparison = credit.comparison
    members = comparison.value[(comparison.group == comparison.group[node]) & (comparison.weight > 0)]
    members = members[np.isfinite(members)]
    if comparison.group[node] < 0 or len(members) < 2:
        return ""
    if rule.kind == "none":
        if credit.state[node] == CreditState.DROPPED_BY_FILTER:
            return "Dropped: all values of its group are equal."
        return ""
    spread = float(members.max() - members.min())
    if spread > rule.tau:
        return f"Kept: max V − min V = {figure(spread)} > τ = {rule.tau:g}."
    return f"Dropped: max V − min V = {figure(spread)} ≤ τ = {rule.tau:g}."


def _reason(state: CreditState, config: CreditConfig) -> str:
    if state is CreditState.DROPPED_BY_FILTER:
        return {
            "zero_variance": "No credit: all answers to the prompt have the same reward.",
            "nonzero": "No credit: it is no better or worse than what it is compared with.",
        }.get(config.filter.kind, "No credit: the values of its group differ too little.")
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


def figure(number: Any) -> str:
    """A number for people: four decimals, without trailing zeros, with a true minus. `Any`: numpy scalars."""
    text = f"{float(number):.4f}".rstrip("0").rstrip(".")
    return (text if text not in ("-0", "") else "0").replace("-", "−")
