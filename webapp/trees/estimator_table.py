"""A tree, and a node of it, under every registered estimator. All numbers come from `trainer.comparison`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.comparison import Compared, compare, estimators, pushes
from trainer.config import RunConfig
from trainer.credit import credit_plan
from trainer.presets import PRESETS
from trainer.tree import ROOT, CreditState, RolloutTree
from webapp.errors import RequestError
from webapp.runs.origin import HowMade
from webapp.trees.nodes import number_of, text_start
from webapp.trees.opened import OpenTree
from webapp.trees.words import CREDIT_WORDS

MOST_KEPT_NODES = 20_000  # of a larger tree some 20 columns a node are too many to keep
MOST_INLINE_NODES = 5_000  # of a larger tree the inspector only links to the page
MOST_FLIPS = 50
NEUTRAL = "treerpo-tiny"  # its plan has no budgets and masks no token


def compared(opened: OpenTree, made: RunConfig | HowMade) -> Sequence[Compared]:
    """The tree under its own estimator and every other one. Where that is unknown, the numbers that came with
    an imported tree stand in its place.
    """
    plan = HowMade.of(made).plan
    if plan is None:
        found = compare(opened.tree, credit_plan(PRESETS[NEUTRAL].config))
        return [_as_given(opened.tree), *(dataclasses.replace(one, is_own=False) for one in found)]
    if opened.tree.n_nodes > MOST_KEPT_NODES:
        return compare(opened.tree, plan)
    return opened.keep(("compared", plan), lambda: compare(opened.tree, plan))


def _as_given(tree: RolloutTree) -> Compared:
    push = pushes(tree, tree.advantage, tree.credit_state)
    return Compared(
        name="given",
        title="As imported",
        formula="",
        is_own=True,
        value=tree.value,
        advantage=tree.advantage,
        state=tree.credit_state,
        push=push,
        flips=np.zeros(tree.n_nodes, np.bool_),
        reason="",
    )


def node_rows(node: int, found: Sequence[Compared]) -> list[dict[str, Any]]:
    """What each estimator gives one node: `push` is what its tokens take, which is the mean advantage of the
    answers through it where each answer has its own.
    """
    return [
        {
            "name": one.name,
            "title": one.title,
            "formula": one.formula,
            "is_own": one.is_own,
            "value": number_of(one.value[node]),
            "advantage": number_of(one.advantage[node]),
            "push": number_of(one.push[node]),
            "words": _words(node, one),
            "flips": bool(one.flips[node]),
            "reason": one.reason,
        }
        for one in found
    ]


def _words(node: int, one: Compared) -> str:
    """Why there is no advantage, "" where there is one."""
    state = CreditState(int(one.state[node]))
    if one.reason or node == ROOT or state is CreditState.CREDITED:
        return ""
    return CREDIT_WORDS[state]


def tree_rows(found: Sequence[Compared]) -> list[dict[str, Any]]:
    """Of each estimator on the whole tree: nodes with a push, of those how many the other way than they were
    trained, and how alike the two are (correlation over the nodes that both push; -1 to 1).
    """
    (own,) = [one for one in found if one.is_own]
    rows = []
    for one in found:
        both = np.isfinite(one.push) & np.isfinite(own.push)
        rows.append(
            {
                "name": one.name,
                "n_pushed": int(np.isfinite(one.push).sum()),
                "n_both": int(both.sum()),
                "n_flips": int(one.flips.sum()),
                "likeness": None if one.is_own else _likeness(one, own, both),
            }
        )
    return rows


def _likeness(one: Compared, own: Compared, both: Any) -> float | None:
    """Pearson's correlation; None where one of them pushes everything alike. `Any`: a boolean array."""
    a, b = one.push[both], own.push[both]
    if len(a) < 2 or np.ptp(a) <= 1e-12 or np.ptp(b) <= 1e-12:
        return None
    return number_of(np.corrcoef(a, b)[0, 1])


def flips_under(opened: OpenTree, found: Sequence[Compared], name: str) -> dict[str, Any]:
    """The nodes that an estimator would push the other way, those that were pushed hardest first. Raises
    RequestError(400) naming the estimators there are.
    """
    one = next((other for other in found if other.name == name), None)
    if one is None:
        raise RequestError(
            400,
            f"There is no estimator {name[:80]!r}. There are: {', '.join(other.name for other in found)}.",
        )
    (own,) = [other for other in found if other.is_own]
    nodes = np.flatnonzero(one.flips)
    nodes = nodes[np.argsort(-np.abs(own.push[nodes]), kind="stable")]
    return {
        "name": one.name,
        "title": one.title,
        "n": len(nodes),
        "rows": [
            {
                "node": opened.name(node),
                "own": number_of(own.push[node]),
                "other": number_of(one.push[node]),
                "text_start": text_start(opened.tree.texts[node]),
            }
            for node in nodes[:MOST_FLIPS].tolist()
        ],
    }


def difference(opened: OpenTree, made: HowMade, under: str) -> bytes:
    """float32 [N], little-endian: what each node's tokens would take under another estimator, less what they
    took (`trainer.comparison.Compared.push`); NaN where either has no credit. Raises RequestError: 400 names
    the estimators there are, 422 says why this one is not defined on the tree.
    """
    chosen = [estimator for estimator in estimators() if estimator.name == under]
    if not chosen:
        names = ", ".join(estimator.name for estimator in estimators())
        raise RequestError(400, f"There is no estimator {under[:80]!r}. There are: {names}.")
    tree = opened.tree
    plan = made.plan or credit_plan(PRESETS[NEUTRAL].config)
    other = next(one for one in compare(tree, plan, chosen) if one.name == under)
    if other.reason:
        raise RequestError(422, f"{other.title} gives no credit to this tree. {other.reason}")
    own = pushes(tree, tree.advantage, tree.credit_state)
    return (other.push - own).astype("<f4").tobytes()
