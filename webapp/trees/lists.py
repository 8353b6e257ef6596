"""What the address of a list of trees asks for, and what its page shows: rows, order, scope, filter."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote, urlencode

from django.http import QueryDict

from webapp.errors import RequestError
from webapp.filters import Filter, FilterError, parse
from webapp.formatting import percent
from webapp.limits import PAGE_SIZE
from webapp.runs.models import Run
from webapp.trees.filters import DUPLICATED, PRESETS, TREE_LANGUAGE
from webapp.trees.models import StoredTree
from webapp.trees.querysets import (
    MAX_COUNT,
    SORTS,
    Scope,
    Sort,
    count_up_to,
    newest_step,
    steps_beside,
    trees_in,
    trees_page,
)

MOST_BESIDE = 200
MAX_LIST_LETTERS = 2000
RANGE_STEPS = 10  # what the range begins with


@dataclass(frozen=True, slots=True)
class ListAddress:
    """The query of `/r/<run>/trees`. `step` None with kind "step": the newest one. Defaults are left out."""

    kind: Literal["step", "range", "all"] = "step"
    step: int | None = None
    first: int | None = None
    last: int | None = None
    sort: str = "index"
    q: str = ""
    after: int | None = None

    @classmethod
    def read(cls, query: Mapping[str, str]) -> ListAddress:
        """Raises RequestError(400) for what no list has. Free text is read later, by the filter language."""
        numbers = {name: _number(query, name) for name in ("step", "from", "to", "after")}
        first, last, step = numbers["from"], numbers["to"], numbers["step"]
        scope = query.get("scope", "")
        if scope not in ("", "all"):
            raise RequestError(400, f"There is no scope {scope[:80]!r}. Use all, or leave it out.")
        kind: Literal["step", "range", "all"] = "step"
        if scope == "all":
            kind, step, first, last = "all", None, None, None
        elif step is None and (first is not None or last is not None):
            kind = "range"
            if first is not None and last is not None and first > last:
                first, last = last, first
        return cls(
            kind, step, first if kind == "range" else None, last if kind == "range" else None,
            check_sort(query.get("sort") or "index"), query.get("q", "").strip(), numbers["after"],
        )  # fmt: skip

    def query(self, **changes: Any) -> str:
        """The address with some parts changed, from the first page on: `?step=4&sort=-value`, or `?`."""
        new = replace(self, **{"after": None, **changes})
        parts = {
            "step": new.step,
            "from": new.first,
            "to": new.last,
            "scope": "all" if new.kind == "all" else None,
            "sort": None if new.sort == "index" else new.sort,
            "q": new.q or None,
            "after": new.after,
        }
        return "?" + urlencode(
            {name: part for name, part in parts.items() if part is not None}, quote_via=quote
        )

    def here(self, step: int | None) -> str:
        """This very page of this list, as a tree's address carries it: the newest step by its number."""
        named = replace(self, step=step) if self.kind == "step" else self
        return named.query(after=self.after).removeprefix("?")

    def of_step(self, step: int | None) -> str:
        return self.query(kind="step", step=step, first=None, last=None)


def list_beside(tree: StoredTree, text: str) -> dict[str, Any]:
    """The list that a tree's page shows beside it, in which PgUp and PgDn go: the page of the list that the
    reader came from (`text`: `ListAddress.here`), or the trees of its step where it is not on that page.

    `beside` its rows, `beside_list` for their addresses, `beside_query` leads back to it. `beside_next`: the
    first tree behind the page, where this one is its last.
    """
    run = tree.run
    if text:
        with suppress(RequestError, FilterError):
            address = ListAddress.read(QueryDict(text[:MAX_LIST_LETTERS]).dict())
            step = address.step if address.step is not None else newest_step(run)
            scope = Scope.of_step(step or 0) if address.kind == "step" else Scope(address.first, address.last)
            wanted = read_filter(address.q)
            rows, following = trees_page(
                run, scope, wanted, sort=address.sort, after=address.after, limit=PAGE_SIZE
            )
            if any(row["id"] == tree.pk for row in rows):
                here = address.here(step)
                beyond = None
                if following is not None and rows[-1]["id"] == tree.pk:
                    first, _ = trees_page(run, scope, wanted, sort=address.sort, after=following, limit=1)
                    beyond = first[0]["id"] if first else None
                return {
                    "beside": rows,
                    "beside_list": here,
                    "beside_query": f"?{here}",
                    "beside_words": f"trees {_scope_words(address, step)}".strip(),
                    "beside_filter": address.q,
                    "beside_order": SORTS[address.sort.removeprefix("-")].title,
                    "beside_next": beyond,
                    "beside_next_list": replace(address, after=following).here(step),
                    "beside_steps": address.kind != "step",
                }
    rows, _ = trees_page(run, Scope.of_step(tree.step), limit=MOST_BESIDE)
    return {
        "beside": rows,
        "beside_list": "",
        "beside_query": f"?step={tree.step}",
        "beside_words": f"trees of step {tree.step}",
    }


def check_sort(sort: str) -> str:
    """Raises RequestError(400) for an order that lists do not have."""
    if sort.removeprefix("-") not in SORTS:
        raise RequestError(
            400,
            f"Trees cannot be sorted by {sort[:80]!r}. Use one of: {', '.join(SORTS)}; with - before it the "
            "largest come first.",
        )
    return sort


def _number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise RequestError(400, f"{name} is {text[:80]!r}. Use a whole number.")
    return int(text)


def read_filter(text: str) -> Filter:
    """Raises FilterError."""
    return parse(text, TREE_LANGUAGE)


def tree_list(run: Run, address: ListAddress, *, has_advantages: bool) -> dict[str, Any]:
    """What the page shows. Raises RequestError. A filter that cannot be read is told as `filter_error`, with
    no rows. `has_advantages`: the run's objective trains on them.
    """
    newest = newest_step(run)
    step = address.step if address.step is not None else newest
    scope = Scope(address.first, address.last)
    if address.kind == "step":
        scope = Scope.of_step(step if step is not None else 0)
    error: FilterError | None = None
    wanted = Filter()
    rows: list[dict[str, Any]] = []
    following = None
    try:
        wanted = read_filter(address.q)
    except FilterError as wrong:
        error = wrong
    trees = trees_in(run, scope, wanted)
    if newest is not None and error is None:
        rows, following = trees_page(
            run, scope, sort=address.sort, after=address.after, limit=PAGE_SIZE, trees=trees
        )
    on_one_page = address.after is None and following is None
    n = len(rows) if on_one_page else count_up_to(trees)
    of = count_up_to(trees_in(run, scope)) if wanted else n
    count = {"n": n, "words": _words(n), "of": of, "of_words": _words(of)}
    before, beyond = (None, None) if step is None else steps_beside(run, step)
    return {
        "address": address,
        "step": step,
        "newest": newest,
        "scope_words": _scope_words(address, step),
        "rows": [
            {**row, "flags": flags_of(row, has_advantages=has_advantages), "share": _solved(row)}
            for row in rows
        ],
        "count": count,
        "sorts": [_sort_link(sort, address) for sort in SORTS.values()],
        "shade": _shade(address.sort),
        "presets": [
            {
                "title": preset.title,
                "help": preset.help,
                "href": address.query(q=preset.filter, sort=preset.sort),
                "is_current": (preset.filter, preset.sort) == (address.q, address.sort),
            }
            for preset in PRESETS
        ],
        "scopes": [
            ("This step", address.of_step(address.step), address.kind == "step"),
            (
                "Range",
                address.query(
                    kind="range", step=None, first=max(0, (step or 1) - RANGE_STEPS + 1), last=step
                ),
                address.kind == "range",
            ),
            (
                "All steps",
                address.query(kind="all", step=None, first=None, last=None),
                address.kind == "all",
            ),
        ],
        "chips": [{**chip, "href": address.query(q=chip["without"])} for chip in wanted.chips()],
        "filter_error": None if error is None else _told(address, error),
        "keys": [(field.name, field.example, field.help) for field in TREE_LANGUAGE.fields],
        "clear": address.query(q=""),
        "start": address.query(),
        "here": "" if address.here(step) == f"step={step}" else address.here(step),
        "next": "" if following is None else address.query(after=following),
        "before": None if before is None else address.of_step(before),
        "beyond": None if beyond is None else address.of_step(beyond),
        # As the pages of all trees in one picture, and of exports, name steps.
        "picture": f"?step={step}" if address.kind == "step" else _steps("step", address),
        "export": f"&from={step}&to={step}" if address.kind == "step" else _steps("from", address),
        "export_filter": urlencode({"q": address.q}) if address.q else "",
        "shows_steps": address.kind != "step",
    }


def _steps(first: str, address: ListAddress) -> str:
    parts = {first: address.first, "to": address.last}
    query = urlencode({name: step for name, step in parts.items() if step is not None})
    return query and ("?" if first == "step" else "&") + query


def _words(count: int | None) -> str:
    if count is None:
        return "very many"
    return f"{MAX_COUNT:,}+" if count > MAX_COUNT else f"{count:,}"


def _scope_words(address: ListAddress, step: int | None) -> str:
    if address.kind == "all":
        return "of all steps"
    if address.kind == "step":
        return "" if step is None else f"of step {step}"
    if address.first is None:
        return f"up to step {address.last}"
    if address.last is None:
        return f"from step {address.first} on"
    return f"of steps {address.first} to {address.last}"


def _sort_link(sort: Sort, address: ListAddress) -> dict[str, Any]:
    """A click sorts in the direction that is asked for first, another one the other way round."""
    first, other = f"{sort.first}{sort.name}", f"{'' if sort.first else '-'}{sort.name}"
    current = address.sort if address.sort.removeprefix("-") == sort.name else ""
    return {
        "name": sort.name,
        "title": sort.title,
        "help": sort.help,
        "href": address.query(sort=other if current == first else first),
        "direction": "" if not current else "descending" if current.startswith("-") else "ascending",
    }


def _shade(sort: str) -> dict[str, str]:
    """What the step bar is shaded by: the signal of the order, or the value."""
    name = sort.removeprefix("-")
    order = SORTS["value" if name == "index" else name]
    return {"sort": order.name, "title": order.title}


def _told(address: ListAddress, error: FilterError) -> dict[str, Any]:
    """A filter error with the text around it, to be pointed at."""
    return {
        "message": error.message,
        "before": address.q[: error.start],
        "wrong": address.q[error.start : error.end],
        "behind": address.q[error.end :],
        "suggestion": error.suggestion,
        "href": address.query(q=error.suggestion) if error.suggestion else "",
    }


def _solved(row: Mapping[str, Any]) -> float | None:
    return row["n_correct"] / row["n_answers"] if row["n_answers"] else None


def flags_of(row: Mapping[str, Any], *, has_advantages: bool = True) -> list[dict[str, str]]:
    """What is remarkable about a tree, in short words with an explanation."""
    flags = []
    if has_advantages and row["advantage_spread"] is None:
        flags.append(("no credit", "No segment has an advantage: nothing is learned here", "no-credit"))
    if (share := row["duplicate_share"]) is not None and share >= DUPLICATED:
        flags.append((f"dup {percent(share)}", "Share of segments that repeat a sibling", "dup"))
    if row["grpo_flips"]:
        word = "flip" if row["grpo_flips"] == 1 else "flips"
        flags.append(
            (f"{row['grpo_flips']} {word}", "Segments that plain GRPO would push the other way", "flips")
        )
    for name, word, help_text in (
        ("n_errors", "!", "Answers at which the verifier failed"),
        ("n_unparsed", "?", "Answers that could not be read"),
        ("n_truncated", "⋯", "Answers cut off before their end"),
    ):
        if row[name]:
            flags.append((f"{row[name]} {word}", help_text, name.removeprefix("n_")))
    return [{"word": word, "help": help_text, "kind": kind} for word, help_text, kind in flags]
