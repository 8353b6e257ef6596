"""One rollout tree for people: nodes and outline. The canvas's columns are `columns.py`.

The numbers are the recorded ones; how a number came about is told by `trainer.explanation`, by the same
functions that trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.clipping import Clip
from trainer.config import RunConfig
from trainer.credit import CreditPlan
from trainer.explanation import explain
from trainer.intervals import wilson_interval
from trainer.loss_weights import TreeWeights, pull, trained_counts, weigh
from trainer.schema.objective import Objective, PolicyObjective
from trainer.text import storable
from trainer.token_means import token_means
from trainer.tree import ROOT, CreditState, FinishReason, RolloutTree, Verdict
from webapp.errors import RequestError
from webapp.runs.origin import UNKNOWN_ESTIMATOR, HowMade
from webapp.trees.opened import OpenTree
from webapp.trees.words import CREDIT_WORDS, FINISH_WORDS

MAX_SIBLINGS = 200  # and members of a group, around the node
MAX_UNTAKEN = 24  # siblings named between two segments of a path
HISTOGRAM_BARS = 16
TOP_TOKENS = 5
MAX_OUTLINE_ROWS = 200  # without scripts; with them the outline has every node
TEXT_START_LETTERS = 80
AGREES_WITHIN = 1e-6  # absolute and relative

# Nodes that are compared with nothing themselves.
NOT_COMPARED = (CreditState.NONE, CreditState.PER_PATH, CreditState.GIVEN, CreditState.NO_ADVANTAGE)


# ------------------------------------------------------------------------------------------------ one node


def find_node(tree: RolloutTree, name: str) -> int:
    """The node called `name`. Raises RequestError(404) naming the part that does not exist."""
    try:
        return tree.find(name)
    except KeyError as missing:
        raise RequestError(404, str(missing.args[0])[:300]) from missing


def node_json(opened: OpenTree, node: int, made: RunConfig | HowMade) -> dict[str, Any]:
    """Everything the inspector and the path reader show of one node. Missing numbers are None."""
    made = HowMade.of(made)
    tree, config = opened.tree, made.config
    leaves = opened.leaves_below(node)
    answers = leaves[tree.finish[leaves] != FinishReason.PRUNED]  # what a search gave up is no answer
    n_correct = int(tree.copies[answers[tree.verdict[answers] == Verdict.CORRECT]].sum())
    # Trees that were imported may have a verdict without a reward.
    scored = answers[np.isfinite(tree.reward[answers])]
    n_scored = int(tree.copies[scored].sum())
    scored_correct = int(tree.copies[scored[tree.verdict[scored] == Verdict.CORRECT]].sum())
    audit = audit_json(opened, node, made)
    siblings = _siblings_near(opened, node)
    path = tree.path(node)
    return {
        "node": opened.name(node),
        "depth": len(path) - 1,
        "text": tree.texts[node],
        "tokens": int(tree.token_offsets[node + 1] - tree.token_offsets[node]),
        "token_figures": token_figures(tree, node),
        "value": number_of(tree.value[node]),
        "leaf_mean": number_of(np.average(tree.reward[scored], weights=tree.copies[scored]))
        if n_scored
        else None,
        "n_leaves": len(leaves),
        "n_answers": int(tree.copies[answers].sum()),
        "n_given_up": len(leaves) - len(answers),
        "n_correct": n_correct,
        "n_scored": n_scored,
        "wilson": wilson_interval(scored_correct, n_scored)
        if n_scored and are_independent(tree, node, leaves)
        else None,
        "parent_value": None if node == ROOT else number_of(tree.value[tree.parent[node]]),
        "advantage": number_of(tree.advantage[node]),
        **credit_words(tree, node),
        "verdict": Verdict(int(tree.verdict[node])).word,
        "finish": FinishReason(int(tree.finish[node])).word,
        "finish_words": FINISH_WORDS[FinishReason(int(tree.finish[node]))],
        "reward": number_of(tree.reward[node]),
        "copies": int(tree.copies[node]),
        "visits": int(tree.visits[node]),
        "subgroup": _subgroup(tree, node, made.plan),
        "answer": tree.answers[node],
        "reference_answer": tree.reference_answer,
        "n_siblings": len(opened.siblings(node)),
        "is_compared": CreditState(int(tree.credit_state[node])) not in NOT_COMPARED,
        "group_is_siblings": {row["node"] for row in audit["group"]} == {opened.name(s) for s in siblings},
        "siblings": [
            {
                "node": opened.name(other),
                "value": number_of(tree.value[other]),
                "advantage": number_of(tree.advantage[other]),
                **credit_words(tree, other),
                "text_start": text_start(tree.texts[other]),
                "n_leaves": int(opened.n_leaves[other]),
                "copies": int(tree.copies[other]),
                "visits": int(tree.visits[other]),
            }
            for other in siblings
        ],
        "audit": audit,
        "path": [
            {
                "node": opened.name(part),
                "text": tree.texts[part],
                "value": number_of(tree.value[part]),
                "change": number_of(float(tree.value[part]) - float(tree.value[tree.parent[part]]))
                if part != ROOT
                else None,
                "advantage": number_of(tree.advantage[part]),
                **credit_words(tree, part),
                "verdict": Verdict(int(tree.verdict[part])).word,
                "n_siblings": len(opened.siblings(part)),
                "siblings": [
                    {"node": opened.name(other), "value": number_of(tree.value[other])}
                    for other in _siblings_near(opened, part, MAX_UNTAKEN + 1)
                    if other != part
                ],
            }
            for part in path
        ],
        "leaf_path_suggestion": opened.name(_best_leaf(tree, leaves, node)),
        "origin": {
            "policy_version": tree.policy_version,
            "step": tree.step,
            "imported": made.imported,
            "seed": None if config is None else config.seed,
            "temperature": number_of(tree.temperature)
            or (None if config is None else config.sampler.temperature),
            "stream": None if tree.stream is None else f"{tree.stream:016x}",
        },
    }


def are_independent(tree: RolloutTree, node: int, leaves: NDArray[np.int64]) -> bool:
    """Whether the leaves below were each sampled from the node on its own: all are its children, none was
    given up. Leaves deeper down share text, so they tell less about the node than as many on their own.
    """
    return bool((tree.parent[leaves] == node).all() and (tree.finish[leaves] != FinishReason.PRUNED).all())


def credit_words(tree: RolloutTree, node: int) -> dict[str, str]:
    state = CreditState(int(tree.credit_state[node]))
    return {"credit_state": state.word, "credit_words": CREDIT_WORDS[state]}


def _subgroup(tree: RolloutTree, node: int, plan: CreditPlan | None) -> str:
    """`budget 50 tokens`, or `tree 2 of 3`; "" where a problem has but one tree."""
    number, count = int(tree.subgroup[node]), int(tree.subgroup.max()) + 1
    if node == ROOT or count == 1:
        return ""
    if plan is not None and number < len(plan.budgets):
        return f"budget {plan.budgets[number]:,} tokens"
    return f"tree {number + 1} of {count}"


def token_figures(tree: RolloutTree, node: int) -> dict[str, Any]:
    """Of a sampled segment's tokens: means, a histogram of their entropies, and where they are highest."""
    first, stop = int(tree.token_offsets[node]), int(tree.token_offsets[node + 1])
    if node == ROOT or tree.finish[node] == FinishReason.GIVEN or first == stop:
        return {"n": 0, "bars": [], "top": []}
    entropy = tree.entropies[first:stop].astype(np.float64)
    logprob = tree.logprobs[first:stop].astype(np.float64)
    if not np.isfinite([entropy, logprob]).all():  # imported trees may lack them
        return {"n": stop - first, "bars": [], "top": []}
    most = max(float(entropy.max()), 0.1)
    counts, edges = np.histogram(entropy, bins=HISTOGRAM_BARS, range=(0.0, most))
    highest = np.argsort(-entropy, kind="stable")[:TOP_TOKENS]
    mismatch = np.zeros(0) if tree.mismatch is None else np.abs(tree.mismatch[first:stop].astype(np.float64))
    mismatch = mismatch[np.isfinite(mismatch)]
    return {
        "n": stop - first,
        "entropy_mean": number_of(entropy.mean()),
        "entropy_max": number_of(entropy.max()),
        "logprob_mean": number_of(logprob.mean()),
        "logprob_min": number_of(logprob.min()),
        "mismatch_mean": number_of(mismatch.mean()) if len(mismatch) else None,
        "mismatch_max": number_of(mismatch.max()) if len(mismatch) else None,
        "bars": [
            {"n": int(count), "low": float(low), "high": float(high)}
            for count, low, high in zip(counts, edges, edges[1:], strict=False)
        ],
        "top": [
            {
                "place": int(place),
                "entropy": float(entropy[place]),
                "logprob": float(logprob[place]),
                "probability": math.exp(min(float(logprob[place]), 0.0)),
                "text": piece(tree.token_bytes, int(tree.tokens[first + place])),
            }
            for place in highest.tolist()
            if entropy[place] > 0
        ],
    }


def piece(token_bytes: Mapping[int, bytes], token: int) -> str | None:
    """The text of a token alone; of one that is only a part of a character its bytes, `⟨E2 88⟩`. None: not
    recorded.
    """
    raw = token_bytes.get(token)
    if raw is None:
        return None
    try:
        return storable(raw.decode())
    except UnicodeDecodeError:
        return f"⟨{raw.hex(' ').upper()}⟩"


def visible(text: str) -> str:
    """A token's text with its blanks and line breaks to be seen."""
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")


# ------------------------------------------------------------------------------------------------ audit


def audit_json(opened: OpenTree, node: int, made: RunConfig | HowMade) -> dict[str, Any]:
    """How the trainer's own code explains the node, whether it comes to what was recorded, and what of it
    reaches the loss.
    """
    made = HowMade.of(made)
    tree, plan = opened.tree, made.plan
    part = None if made.config is None else loss_part(opened, node, made.config)
    if plan is None:
        return _no_audit(UNKNOWN_ESTIMATOR, part)
    try:
        told = explain(tree, node, plan, credit=opened.credit(plan), most_rows=MAX_SIBLINGS)
    except ValueError as error:  # rewards that this estimator refuses
        return _no_audit(str(error), part)
    return {
        "formula": told.formula,
        "substituted": told.numbers,
        "filter": told.filter,
        "reason": told.reason,
        "value_formula": told.value_formula,
        "value_substituted": told.value_numbers,
        "group": [
            {
                "node": row.name,
                "value": number_of(row.value),
                "advantage": number_of(tree.advantage[row.node]),
                **credit_words(tree, row.node),
                "weight": number_of(row.weight),
                "in_group": row.in_group,
                "text_start": text_start(tree.texts[row.node]),
            }
            for row in told.group
        ],
        "n_group": told.n_group,
        "recomputed": number_of(told.advantage),
        "agrees": _equal(told.advantage, tree.advantage[node]),
        "value_recomputed": number_of(told.value),
        "value_agrees": _equal(told.value, tree.value[node]),
        "loss": part,
    }


def _no_audit(reason: str, loss: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "formula": "", "substituted": "", "filter": "", "reason": reason, "value_formula": "",
        "value_substituted": "", "group": [], "n_group": 0, "recomputed": None, "agrees": None,
        "value_recomputed": None, "value_agrees": None, "loss": loss,
    }  # fmt: skip


def nearest_node(tree: RolloutTree, name: str) -> tuple[int, bool]:
    """The node called so, or the nearest one above it that exists; and whether it is the one."""
    parts = name.split(".")
    node, known, unknown = ROOT, 0, len(parts) + 1  # how many parts surely name a node, and surely do not
    while unknown - known > 1:
        tried = (known + unknown) // 2
        try:
            node, known = tree.find(".".join(parts[:tried])), tried
        except KeyError:
            unknown = tried
    return node, known == len(parts)


def usual_colour(opened: OpenTree, made: HowMade) -> str:
    """What a tree is coloured by: without advantages it is told apart by its values."""
    if made.config is None:
        return "advantage" if np.isfinite(opened.tree.advantage).any() else "value"
    return "advantage" if made.config.objective.kind == "policy" else "value"


def loss_part(opened: OpenTree, node: int, config: RunConfig) -> dict[str, Any]:
    """What of a node trains: how many of its tokens, with whose advantages, and its share of the tree's pull.

    The pull of a token is what its log-probability is multiplied by in the gradient, by size, at the first
    update of a step, where every ratio is 1. `share` is of this tree, `share_of_step` of all trees of the
    step, where that was recorded.
    """
    tree = opened.tree
    objective = config.objective
    weights, pulled = pull_of(opened, config)
    trained, total = pulled.tokens[node], float(pulled.mass.sum())
    share = float(pulled.mass[node]) / total if total > 0 else math.nan
    part: dict[str, Any] = {
        "n_tokens": int(trained),
        "n_masked": int(tree.token_offsets[node + 1] - tree.token_offsets[node] - trained)
        if node != ROOT and tree.finish[node] != FinishReason.GIVEN
        else 0,
        "share": number_of(share),
        "share_of_step": number_of(share * tree.loss_share),
        "masks": [],
        "clip": "",
        "clips": False,
        "clipped": None,
        "answers": None,
    }
    if not isinstance(objective, PolicyObjective) or node == ROOT:
        return part
    if objective.max_token_probability < 1:
        part["masks"].append(
            f"tokens that were sampled with a probability of {objective.max_token_probability:g} or more"
        )
    if objective.mask_truncated:
        part["masks"].append("answers that were cut off")
    part["clip"] = _clip_words(objective)
    part["clips"] = objective.clip != "none"
    part["clipped"] = clipped_tokens(tree, node)
    if weights.is_path:
        held, up, down = (float(column[node]) for column in pulled.sides)
        if held > 0:
            part["answers"] = {
                "mean": number_of((up + down) / held),
                "up": number_of(up / held),
                "down": number_of(down / held),
            }
    return part


def clipped_tokens(tree: RolloutTree, node: int) -> dict[str, Any] | None:
    """What was clipped of a node's tokens at the update that trained it, and their ratios: `update` of
    `updates`, and of `n` trained tokens those that were clipped `above`, `below` and by the `dual` bound.
    None where that was not recorded. Where a step has one update there are no other ratios than 1.
    """
    if not tree.updates:
        return None
    found: dict[str, Any] = {"update": tree.update, "updates": tree.updates, "n": 0}
    if tree.log_ratio is None or tree.clip is None:
        return found if tree.updates == 1 else None
    own = slice(int(tree.token_offsets[node]), int(tree.token_offsets[node + 1]))
    log_ratio, clip = tree.log_ratio[own].astype(np.float64), tree.clip[own]
    trained = np.isfinite(log_ratio)
    ratio = np.exp(log_ratio[trained])
    if not len(ratio):
        return found
    return found | {
        "n": len(ratio),
        "any": int(np.count_nonzero(clip)),
        "above": int(np.count_nonzero(clip & Clip.ABOVE)),
        "below": int(np.count_nonzero(clip & Clip.BELOW)),
        "dual": int(np.count_nonzero(clip & Clip.DUAL)),
        "ratio_mean": number_of(ratio.mean()),
        "ratio_min": number_of(ratio.min()),
        "ratio_max": number_of(ratio.max()),
    }


@dataclass(frozen=True, slots=True, eq=False)
class Pull:
    """[N] trained tokens of each segment, and the size of their pull summed over them; `sides`: [N] weight,
    and weight times the positive and the negative advantages, of a token's items.
    """

    tokens: NDArray[np.int64]
    mass: NDArray[np.float64]
    sides: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def pull_of(opened: OpenTree, config: RunConfig) -> tuple[TreeWeights, Pull]:
    """What trains of the tree, and how hard, under a run's objective."""
    objective, spread = config.objective, config.credit.spread
    return opened.keep(("pull", objective, spread), lambda: _pull(opened.tree, objective, spread))


def _pull(tree: RolloutTree, objective: Objective, spread: str) -> tuple[TreeWeights, Pull]:
    (weights,) = weigh([tree], objective, spread)
    trained = trained_counts(tree, objective, weights.trains)
    mass = pull(weights, objective, trained)
    # An advantage of 0 pulls nowhere, and is trained all the same.
    is_reached = weights.held > 0 if isinstance(objective, PolicyObjective) else mass > 0
    for pair in weights.pairs:  # so is a pair whose label is smoothed to even
        is_reached[[*pair.chosen, *pair.rejected]] = True
    sides = (weights.held, weights.up, weights.down)
    return weights, Pull(np.where(is_reached, trained, 0), mass, sides)


def _clip_words(objective: PolicyObjective) -> str:
    """What the clipping does to a token, in words."""
    low, high = f"{1 - objective.clip_low:g}", f"{1 + objective.clip_high:g}"
    what = {"sequence": "whole answer's ratio", "geometric": "answer's mean ratio"}.get(
        objective.ratio, "token's ratio"
    )
    if objective.clip == "both":
        dual = f" and at most {objective.clip_dual:g}" if objective.clip_dual else ""
        return (
            f"With A > 0 it pulls while the {what} is at most {high}; with A < 0 while it is at least "
            f"{low}{dual}."
        )
    if objective.clip == "one_side":
        return f"A token whose ratio is past {high} (A > 0), or below {low} (A < 0), is dropped."
    return "Nothing is clipped."


def _equal(computed: float, recorded: float) -> bool:
    """Within 1e-6; two missing numbers are equal."""
    return bool(np.isclose(computed, recorded, rtol=AGREES_WITHIN, atol=AGREES_WITHIN, equal_nan=True))


def _siblings_near(opened: OpenTree, node: int, most: int = MAX_SIBLINGS) -> range:
    """The node and its siblings; at most so many, around the node."""
    everyone = opened.siblings(node)
    start = max(min(node - everyone.start - most // 2, len(everyone) - most), 0)
    return everyone[start : start + most]


def _best_leaf(tree: RolloutTree, leaves: NDArray[np.int64], node: int) -> int:
    """The leaf at or below `node` with the highest value, the first of equals; `node` itself when there is
    none.
    """
    if not len(leaves):
        return node
    return int(leaves[np.argmax(np.nan_to_num(tree.value[leaves], nan=-np.inf))])


# ------------------------------------------------------------------------------------------------ outline


def outline(opened: OpenTree, selected: int) -> tuple[list[dict[str, Any]], bool]:
    """The tree as rows to read, children under their parents: at most 400, and whether it was cut."""
    tree = opened.tree
    tokens = tree.token_counts()
    entropy = opened.keep("mean entropies", lambda: token_means(tree, tree.entropies))
    rows: list[dict[str, Any]] = []
    waiting = [(ROOT, 0)]
    while waiting and len(rows) < MAX_OUTLINE_ROWS:
        node, depth = waiting.pop()
        rows.append(
            {
                "node": opened.name(node),
                "depth": depth,
                "text_start": text_start(tree.texts[node]),
                "value": number_of(tree.value[node]),
                "advantage": number_of(tree.advantage[node]),
                **credit_words(tree, node),
                "verdict": Verdict(int(tree.verdict[node])).word,
                "copies": int(tree.copies[node]),
                "tokens": int(tokens[node]),
                "entropy": number_of(entropy[node]),
                "selected": node == selected,
            }
        )
        waiting.extend((child, depth + 1) for child in reversed(opened.children(node)))
    return rows, tree.n_nodes > len(rows)


def text_start(text: str) -> str:
    """The first letters of a segment, on one line."""
    start = " ".join(text[: 2 * TEXT_START_LETTERS].split())
    return start if len(start) <= TEXT_START_LETTERS else start[: TEXT_START_LETTERS - 1] + "…"


def number_of(value: Any) -> float | None:
    """A float, or None for NaN and infinity: numpy scalars in, JSON numbers out."""
    number = float(value)
    return number if math.isfinite(number) else None
