"""What the inspector's template shows of a node beyond `nodes.node_json`: where its numbers lie, drawn."""

from __future__ import annotations

from typing import Any

from trainer.cliffs import value_cliff
from trainer.config import RunConfig
from webapp.runs.origin import HowMade
from webapp.trees.comparing import counts_of
from webapp.trees.estimator_table import MOST_INLINE_NODES, compared, node_rows
from webapp.trees.nodes import node_json, visible
from webapp.trees.opened import OpenTree

MAX_STACKED = 4  # dots on top of each other; more of them say so in words
DOT_BINS = 50
PATH_STEPS = 8
HISTOGRAM_HEIGHT = 40  # pixels


def inspector_context(opened: OpenTree, node: int, made: RunConfig | HowMade) -> dict[str, Any]:
    """What `trees/_inspector.html` and `trees/_path.html` need."""
    shown = node_json(opened, node, made)
    bars = shown["token_figures"]["bars"]
    most = max((bar["n"] for bar in bars), default=1)
    for bar in bars:
        height = max(round(HISTOGRAM_HEIGHT * bar["n"] / most), 1 if bar["n"] else 0)
        bar |= {"height": height, "top": HISTOGRAM_HEIGHT - height}
    for token in shown["token_figures"]["top"]:
        if token["text"] is not None:
            token["text"] = visible(token["text"])
    estimators = node_rows(node, compared(opened, made)) if opened.tree.n_nodes <= MOST_INLINE_NODES else None
    return {
        "node": shown,
        "dots": dot_row(shown),
        "cliff": cliff_of(opened),
        "value_path": shown["path"][-PATH_STEPS:],
        "value_path_cut": len(shown["path"]) > PATH_STEPS,
        "node_estimators": estimators,
        "undefined_estimators": [row for row in estimators or () if row["reason"]],
    }


def cliff_of(opened: OpenTree) -> dict[str, Any] | None:
    """The edge that explains the failures, with the share of correct answers on both sides of it."""
    found = opened.keep("cliff", lambda: value_cliff(opened.tree))
    if found is None:
        return None
    correct, scored = counts_of(opened.tree, opened.leaves_below(found.parent))
    before = correct / scored
    return {
        "node": opened.name(found.node),
        "parent": opened.name(found.parent),
        "before": before,
        "after": before + found.drop,
        "probability": found.probability,
    }


def dot_row(node: dict[str, Any]) -> dict[str, Any] | None:
    """Values of a node, its siblings and its parent along one line, in percent of the width; None where there
    is nothing to place beside it. Rewards outside of 0 to 1 widen the line.
    """
    rows = [row for row in node["siblings"] if row["value"] is not None]
    if len(rows) < 2 and node["parent_value"] is None:
        return None
    others = (node["parent_value"], node["value"])
    values: list[float] = [row["value"] for row in rows] + [v for v in others if v is not None]
    if not values:
        return None
    low, high = min(0.0, *values), max(1.0, *values)

    def place(value: float) -> str:
        return f"{4 + 92 * (value - low) / (high - low):.1f}%"

    stacks: dict[int, int] = {}
    dots = []
    # The node itself comes last, so that it is drawn over the others, at the bottom of its stack.
    for row in sorted(rows, key=lambda row: row["node"] != node["node"]):
        column = round(DOT_BINS * (row["value"] - low) / (high - low))
        stacks[column] = level = stacks.get(column, -1) + 1
        if level < MAX_STACKED:
            dots.append(
                {
                    "node": row["node"],
                    "value": row["value"],
                    "is_self": row["node"] == node["node"],
                    "x": place(row["value"]),
                    "y": 30 - 7 * level,
                }
            )
    return {
        "dots": dots[::-1],
        "parent": None if node["parent_value"] is None else place(node["parent_value"]),
        "low": low,
        "high": high,
        "hidden": len(rows) - len(dots),
    }
