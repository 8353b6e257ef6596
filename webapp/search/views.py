"""The page of a search. Views parse, call, render."""

from __future__ import annotations

import math
from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_GET

from trainer.tree import CreditState, Verdict
from webapp.errors import RequestError
from webapp.filters import MAX_LETTERS, Between, Equals, Filter, FilterError, Test
from webapp.projects.access import Role, get_project, may
from webapp.projects.models import Project
from webapp.runs.views import page_cursor
from webapp.saved.querysets import views_of
from webapp.search.finding import EXAMPLES, LANGUAGE, Asked, Page, Tally, ask, behind, find, tally
from webapp.search.indexer import note_demand
from webapp.search.snippets import finds, snippet
from webapp.trees.words import CREDIT_WORDS

HISTOGRAM = (600, 72)  # width and height of the drawing
MAX_ROWS = 12  # of a facet
Row = tuple[Test, str, int, int]  # what it asks for, how it reads, matches, a run's colour or 0


@require_GET
def search(request: HttpRequest, slug: str) -> HttpResponse:
    """Matches of `q`, newest first. `counts`: also how many there are, which takes longer."""
    project = get_project(request, slug)
    note_demand(project.id)
    text = request.GET.get("q", "")
    before = page_cursor(request, "before")
    context: dict[str, Any] = {
        "project": project,
        "role": project.role,
        "can_write": may(project.role, Role.EDITOR),
        "q": text[: MAX_LETTERS + 1],
        "behind": behind(project),
        "keys": LANGUAGE.fields,
        "saved": views_of(project, "search"),
        "examples": [(query, why, _url(project, query)) for query, why in EXAMPLES],
        "with_counts": "counts" in request.GET,
    }
    if text.strip():
        try:
            asked = ask(project, text)
            page = find(asked, before=before)
            context |= _found(project, asked, page)
            if "counts" in request.GET and not asked.patterns:
                context["tally"] = _counted(project, asked)
        except FilterError as error:
            context["error"] = _told(project, text, error)
        except RequestError as refused:
            context["error"] = {"message": refused.detail}
            return render(request, "search/search.html", context, status=refused.status)
    status = 400 if "error" in context else 200
    return render(request, "search/search.html", context, status=status)


def _url(project: Project, query: str, **more: Any) -> str:
    return f"{reverse('search', args=[project.slug])}?{urlencode({'q': query, **more})}"


def _told(project: Project, text: str, error: FilterError) -> dict[str, Any]:
    """The error with the part of the filter at fault set apart."""
    start, end = error.start, max(error.end, error.start)
    return {
        "message": error.message,
        "before": text[max(0, start - 200) : start],
        "at": text[start:end][:200] or "▏",
        "after": text[end : end + 200],
        "place": start + 1,
        "suggestion": error.suggestion,
        "url": _url(project, error.suggestion) if error.suggestion else "",
    }


def _found(project: Project, asked: Asked, page: Page) -> dict[str, Any]:
    query = asked.wanted.text()
    return {
        "asked": True,
        "has_pattern": bool(asked.patterns),
        "hits": [_hit(node, asked) for node in page.nodes],
        "page": page,
        "chips": [
            {
                **chip,
                "url": _url(project, chip["without"])
                if chip["without"]
                else reverse("search", args=[project.slug]),
            }
            for chip in asked.wanted.chips()
        ],
        "older_url": _url(project, query, before=page.before) if page.before is not None else "",
        "counts_url": _url(project, query, counts=1),
        "canonical": query,
    }


def _hit(node: dict[str, Any], asked: Asked) -> dict[str, Any]:
    marked = [node["hit"]] if node.get("hit") else finds(node["text"], asked.words)
    return {
        **node,
        "pieces": snippet(node["text"], marked),
        "verdict": Verdict(node["verdict"]).word,
        "credit_words": CREDIT_WORDS[CreditState(node["credit_state"])],
        "url": f"{reverse('tree-detail', args=[node['tree_id']])}?n={node['path']}",
    }


def _counted(project: Project, asked: Asked) -> dict[str, Any]:
    """The tally with what the page draws of it, and what each part leads to."""
    found = tally(project, asked)
    if found is None:
        return {"too_slow": True}
    wanted = asked.wanted
    runs: list[Row] = [(Equals(name), name, n, colour) for _, name, colour, n in found.runs[:MAX_ROWS]]
    depths: list[Row] = [(Between(depth, depth), str(depth), n, 0) for depth, n in found.depths[:MAX_ROWS]]
    verdicts: list[Row] = [(Equals(word), word, n, 0) for word, n in found.verdicts]
    advantages: list[Row] = [(test, _range_words(test), n, 0) for test, n in found.advantages]
    return {
        "n": found.n,
        "every": found.every,
        "share_every": found.share_every,
        "bars": _drawn(project, wanted, found),
        "size": HISTOGRAM,
        "trend": _trend(found),
        "facets": [
            facet
            for facet in (
                _facet(project, wanted, "run", "Run", runs),
                _facet(project, wanted, "depth", "Depth", depths),
                _facet(project, wanted, "verdict", "Verdict", verdicts),
                _facet(project, wanted, "adv", "Advantage", advantages),
            )
            if facet["rows"]
        ],
    }


def _facet(project: Project, wanted: Filter, key: str, label: str, rows: list[Row]) -> dict[str, Any]:
    current = wanted.term(key)
    most = max((n for _, _, n, _ in rows), default=1)
    return {
        "key": key,
        "label": label,
        "clear": _url(project, wanted.with_term(key).text() or " ", counts=1) if current else "",
        "rows": [
            {
                "label": words,
                "n": n,
                "width": round(100 * n / most),
                "colour": colour,
                "chosen": current is not None and current.tests == (test,),
                "url": _url(project, wanted.with_term(key, test).text(), counts=1),
            }
            for test, words, n, colour in rows
        ],
    }


def _range_words(test: Test) -> str:
    if not isinstance(test, Between):
        return "none"
    sign = "\N{MINUS SIGN}"
    low, high = (None if end is None else f"{end:g}".replace("-", sign) for end in (test.low, test.high))
    if low is None:
        return f"< {high}"
    return f"≥ {low}" if high is None else f"{low} … < {high}"


def _drawn(project: Project, wanted: Filter, found: Tally) -> list[dict[str, Any]]:
    """Bars as rectangles: the share of the nodes of their steps that match."""
    width, height = HISTOGRAM
    most = max((bar.share or 0.0 for bar in found.bars), default=0.0)
    wide = width / max(len(found.bars), 1)
    drawn = []
    for place, bar in enumerate(found.bars):
        tall = 0.0 if not most or not bar.share else max(1.5, height * bar.share / most)
        steps = Between(float(bar.low), float(bar.high))
        drawn.append(
            {
                "x": f"{place * wide + 0.5:.1f}",
                "width": f"{max(wide - 1, 1):.1f}",
                "y": f"{height - tall:.1f}",
                "height": f"{tall:.1f}",
                "low": bar.low,
                "high": bar.high,
                "matches": bar.matches,
                "nodes": bar.nodes,
                "share": None if bar.share is None else 100 * bar.share,
                "url": _url(project, wanted.with_term("step", steps).text(), counts=1),
            }
        )
    return drawn


def _trend(found: Tally) -> dict[str, Any] | None:
    """The share of matches in the first and in the last third of the steps; None where there is too little.
    They differ where one is a fifth larger, and in a sample by more than chance (95 %).
    """
    third = len(found.bars) // 3
    if third == 0 or found.n / found.every < 20:
        return None
    shares = []
    by_chance = 0.0  # variance of the logarithm of the two shares' ratio, where they are of a sample
    for bars in (found.bars[:third], found.bars[-third:]):
        nodes = sum(bar.nodes for bar in bars)
        if not nodes:
            return None
        for number, every in (
            (sum(bar.matches for bar in bars), found.every),
            (nodes, found.share_every),
        ):
            by_chance += 1 / max(number / every, 0.5) if every > 1 else 0.0
        shares.append(
            {
                "low": bars[0].low,
                "high": bars[-1].high,
                "share": 100 * min(1.0, sum(bar.matches for bar in bars) / nodes),
            }
        )
    first, last = shares
    word = "about as frequent"
    factor = max(1.2, math.exp(1.96 * math.sqrt(by_chance)))
    if last["share"] > factor * first["share"]:
        word = "more frequent"
    elif first["share"] > factor * last["share"]:
        word = "less frequent"
    return {"first": first, "last": last, "word": word}
