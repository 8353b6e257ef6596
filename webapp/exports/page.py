"""One tree as a self-contained HTML page: it opens offline, runs no script and loads nothing.

Text of models is escaped by the templates; characters that hide others are shown by their number. The page's
own policy forbids everything but its one style sheet, known by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from django.template import loader
from django.utils.html import escape, format_html_join
from django.utils.safestring import SafeString, mark_safe

from trainer.credit import Credit, CreditPlan, credit_of
from trainer.explanation import Explanation, explain
from trainer.tree import ROOT, CreditState, FinishReason, RolloutTree, Verdict
from trainer.tree_rows import node_names
from webapp.errors import RequestError
from webapp.runs.origin import UNKNOWN_ESTIMATOR, method_of_run, plan_of
from webapp.trees.models import StoredTree
from webapp.trees.nodes import text_start
from webapp.trees.opened import read_tree
from webapp.trees.words import CREDIT_WORDS, FINISH_WORDS

MOST_NODES = 5000
MOST_TEXT_LETTERS = 65_536  # of one node
MOST_AUDITS = 2000
MOST_NESTED = 60  # browsers stop nesting at some depth; deeper nodes stand one below the other
OPEN_NODES = 60  # a tree of no more nodes is unfolded
OPEN_DEPTH = 2
AGREES_WITHIN = 1e-6

# The same characters as in static/js/core/text.js.
HIDDEN = re.compile(
    "([\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064"
    "\u2066-\u206f\ufeff\ufff9-\ufffb])"
)
VERDICT_GLYPHS = {
    Verdict.NONE: "",
    Verdict.CORRECT: "✓",
    Verdict.INCORRECT: "✕",
    Verdict.UNPARSED: "?",
    Verdict.TRUNCATED: "⋯",
    Verdict.ERROR: "!",
}


def page_of(tree_id: int) -> Iterator[str]:
    """The page, piece by piece. Raises RequestError(404) for no such tree and 422 for a damaged one."""
    stored = StoredTree.objects.filter(id=tree_id).select_related("run__project").first()
    if stored is None:
        raise RequestError(404, "The tree was deleted meanwhile.")
    yield from _pieces(stored, read_tree(stored))


def _pieces(stored: StoredTree, tree: RolloutTree) -> Iterator[str]:
    shown = min(tree.n_nodes, MOST_NODES)
    method, plan = method_of_run(stored.run), plan_of(stored.run)
    finite = np.abs(tree.advantage[np.isfinite(tree.advantage)])
    scale = float(finite.max()) if len(finite) else 0.0
    style = loader.get_template("exports/page.css").template.source  # type: ignore[attr-defined]  # Django's own
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    credit = None if plan is None else _credit(tree, plan)
    audits = 0 if credit is None else min(MOST_AUDITS, shown)
    yield loader.render_to_string(
        "exports/page_head.html",
        {
            "run": stored.run,
            "tree": stored,
            "method": method,
            "estimator_unknown": UNKNOWN_ESTIMATOR if stored.run.is_imported and plan is None else "",
            "style": mark_safe(style),  # noqa: S308 (our own file)
            "style_hash": digest,
            "reference_answer": visible(tree.reference_answer),
            "problem_id": visible(stored.problem_id),
            "run_name": visible(stored.run.name),
            "prompt": visible(tree.texts[ROOT][:MOST_TEXT_LETTERS]),
            "n_nodes": tree.n_nodes,
            "n_shown": shown,
            "n_audits": audits,
            "scale": scale,
            "stops": range(9),
        },
    )
    node_template = loader.get_template("exports/page_node.html")
    names = node_names(tree)
    for node, depth, closes in _in_reading_order(tree, shown):
        told = None
        if plan is not None and node < audits:
            told = explain(tree, node, plan, credit=credit, most_rows=1)
        yield node_template.render(
            {
                "node": _node(tree, node, names[node], scale, told),
                "is_open": depth <= OPEN_DEPTH or shown <= OPEN_NODES,
                "closes": SafeString("</ol></details></li>" * closes),
                "tree": stored,
            }
        )
    yield loader.render_to_string("exports/page_tail.html", {"run": stored.run, "tree": stored})


def _credit(tree: RolloutTree, plan: CreditPlan) -> Credit | None:
    """None: the estimator refuses these rewards."""
    try:
        return credit_of(tree, plan)
    except ValueError:
        return None


def _in_reading_order(tree: RolloutTree, shown: int) -> Iterator[tuple[int, int, int]]:
    """(node, depth, how many lists end after it) of the first `shown` nodes, children under their parents,
    the prompt left out. Breadth-first, so a node that is shown has its parent shown.
    """
    parent = tree.parent[:shown]
    counts = np.bincount(parent[1:], minlength=shown)
    first = 1 + np.concatenate(([0], np.cumsum(counts)[:-1]))
    waiting = [(int(node), 1) for node in range(int(counts[ROOT]), 0, -1)]
    while waiting:
        node, depth = waiting.pop()
        children = range(int(first[node]), int(first[node] + counts[node]))
        waiting.extend((child, depth + 1) for child in reversed(children))
        following = min(waiting[-1][1], MOST_NESTED) if waiting else 1
        yield node, depth, min(depth, MOST_NESTED) - following + 1


@dataclass(frozen=True, slots=True)
class Shown:
    """One node as the page tells it; texts are escaped."""

    name: str
    text: SafeString
    more_letters: int
    start: SafeString
    value: float | None
    bar: float | None  # width of the value in 0 to 40, for values from 0 to 1
    advantage: float | None
    stop: int
    no_credit: str
    is_hatched: bool
    verdict: str
    glyph: str
    finish: str
    tokens: int
    copies: int
    visits: int
    reward: float | None
    answer: SafeString
    audit: Explanation | None
    agrees: bool


def _node(tree: RolloutTree, node: int, name: str, scale: float, audit: Explanation | None) -> Shown:
    text = tree.texts[node]
    value, advantage, reward = (_number(column[node]) for column in (tree.value, tree.advantage, tree.reward))
    state, verdict = CreditState(int(tree.credit_state[node])), Verdict(int(tree.verdict[node]))
    agrees = audit is None or bool(
        np.isclose(
            [audit.value, audit.advantage],
            [tree.value[node], tree.advantage[node]],
            rtol=AGREES_WITHIN,
            atol=AGREES_WITHIN,
            equal_nan=True,
        ).all()
    )
    return Shown(
        name=name,
        text=visible(text[:MOST_TEXT_LETTERS]),
        more_letters=max(len(text) - MOST_TEXT_LETTERS, 0),
        start=visible(text_start(text)),
        value=value,
        bar=round(40 * value, 1) if value is not None and 0 <= value <= 1 else None,
        advantage=advantage,
        stop=4 if advantage is None or not scale else round(4 * advantage / scale) + 4,
        no_credit=CREDIT_WORDS[state] or "no credit",
        is_hatched=state not in (CreditState.PER_PATH, CreditState.GIVEN, CreditState.NO_ADVANTAGE),
        verdict=verdict.word,
        glyph=VERDICT_GLYPHS[verdict],
        finish=FINISH_WORDS[FinishReason(int(tree.finish[node]))],
        tokens=int(tree.token_offsets[node + 1] - tree.token_offsets[node]),
        copies=int(tree.copies[node]),
        visits=int(tree.visits[node]),
        reward=reward,
        answer=visible(tree.answers[node]),
        audit=audit,
        agrees=agrees,
    )


def visible(text: str) -> SafeString:
    """`text`, escaped, with the characters that hide or turn round others shown by their number."""
    if not HIDDEN.search(text):
        return escape(text)
    parts = HIDDEN.split(text)
    return format_html_join(
        "",
        "{}{}",
        ((part, "") if n % 2 == 0 else (SafeString(""), _capsule(part)) for n, part in enumerate(parts)),
    )


def _capsule(letter: str) -> SafeString:
    return SafeString(f'<span class="capsule">U+{ord(letter):04X}</span>')


def _number(value: Any) -> float | None:
    """A float, or None for NaN. `Any`: numpy scalars."""
    number = float(value)
    return number if np.isfinite(number) else None
