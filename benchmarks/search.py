"""Search over many nodes: how long the first page, the counts and a pattern take, and what the index weighs.

    python -m benchmarks.search --nodes 10000000

The index table is filled directly (COPY, logged, then its index is made), with generated text: words of a
Zipf distribution, arithmetic, and some rare words; 20 runs of one project, four of them at a time. PostgreSQL
has the settings of the embedded server. Every query runs through `webapp.search.finding`, as the page does.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module

from benchmarks import parts

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--nodes", type=int, default=10_000_000)
parser.add_argument("--turns", type=int, default=5)

RUNS = 20
NODES_PER_TREE = 40
TREES_PER_STEP = 48
VOCABULARY = 30_000
COLUMNS = (
    "project_id", "run_id", "tree_id", "step", "value", "advantage", "tokens", "depth", "verdict",
    "credit_state", "path", "problem", "text",
)  # fmt: skip


def rows(n: int, project: int, runs: Sequence[int], seed: int = 1) -> Iterator[tuple[int, int, str]]:
    """(run, step, line for COPY). Four runs at a time; each has a step indexed at a time."""
    rng = random.Random(seed)  # noqa: S311 (text, no secret)
    words = [f"{a}{b}{c}" for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES][:VOCABULARY]
    rng.shuffle(words)
    words[: len(COMMON)] = COMMON
    weights = list(itertools.accumulate(1 / (place + 3) for place in range(len(words))))
    pieces = [" ".join(rng.choices(words, cum_weights=weights, k=rng.randint(4, 8))) for _ in range(200_000)]
    pick, number = rng.choice, rng.random
    steps = n // len(runs) // (TREES_PER_STEP * NODES_PER_TREE) + 1
    groups = [runs[first : first + 4] for first in range(0, len(runs), 4)]
    places = itertools.count()
    for step, run in ((step, run) for group in groups for step in range(steps) for run in group):
        for tree in range(TREES_PER_STEP):
            problem = f"p-{int(number() * 2000):04}"
            for node in range(NODES_PER_TREE):
                if next(places) == n:
                    return
                depth = 1 if node < 4 else 2 if node < 16 else 3
                verdict = 0 if depth < 3 else 1 if number() < 0.5 else 2 if number() < 0.9 else 3
                credited = number() < 0.75
                advantage = f"{int(rng.gauss(0, 19)) / 16}" if credited else "\\N"
                a, b = int(number() * 90) + 10, int(number() * 900)
                text = f"{pick(pieces)}, {pick(pieces)}: {a}+{b}={a + b}. {pick(pieces)}\\n"
                if number() < 0.0002 + step / 100_000:
                    text = f"wait recheck {text}"
                if number() < 1e-5:
                    text = f"{text}zugzwang{int(number() * 5)}"
                line = (
                    f"{project}\t{run}\t{TREES_PER_STEP * (steps * run + step) + tree}\t{step}\t"
                    f"{int(number() * 17) / 16}\t{advantage}\t{len(text) // 4}\t{depth}\t{verdict}\t"
                    f"{1 if credited else 2}\t1.{node}\t{problem}\t{text}\n"
                )
                yield run, step, line


SYLLABLES = [a + b for a in "bdfghklmnprst" for b in "aeiou"]
COMMON = [
    "the", "so", "we", "is", "then", "of", "and", "has", "number", "total", "first", "even",
    "divisors", "answer", "find", "gives", "therefore", "sum", "must", "be", "are", "have", "let",
    "us", "count", "each", "which", "that", "for", "to", "in", "with", "by", "from", "add",
    "multiply", "left", "right", "remaining", "all",
]  # fmt: skip

QUERIES = {
    "rare word": ["zugzwang1", "zugzwang2 zugzwang3"],
    "uncommon word": ["recheck", '"wait recheck"'],
    "common word": ["divisors", "the number"],
    "common word and predicate": [
        "divisors adv:<-1", "divisors adv:<-3 depth:3", "the verdict:unparsed value:>0.9",
    ],
    "common word and rare predicate": ["divisors adv:<-4", "answer adv:>=4.5 verdict:correct depth:3"],
    "phrase": ['"even divisors"', '"first even divisors"', '"the number of" adv:<-2'],
    "number": ["437", '"45+267"'],
    "predicate only": ["adv:<-1", "adv:<-4 verdict:incorrect", "step:3..5", "depth:1 value:0"],
    "one run": ["divisors run:{first}", "recheck run:{last} step:100..200", "run:{first} adv:<-3.5"],
    "nothing found": ["xyzzy", "zugzwang1 adv:<-4 depth:1", "divisors step:999999"],
    "a problem": ["problem:p-0042", "divisors problem:p-0042 verdict:incorrect"],
}  # fmt: skip


def fill(n: int) -> None:
    from django.db import connection

    from benchmarks.rows import new_run
    from webapp.search.models import IndexedPart

    runs = [new_run() for _ in range(RUNS)]
    began = time.perf_counter()
    with connection.cursor() as cursor:
        cursor.execute("DROP INDEX IF EXISTS search_words_and_marks")
        copy = f"COPY arborist_search_node ({', '.join(COLUMNS)}) FROM STDIN"
        parts = []
        written = 0
        with cursor.cursor.copy(copy) as into:
            made = rows(n, runs[0].project_id, [run.id for run in runs])
            for (run, step), lines in itertools.groupby(made, key=lambda row: row[:2]):
                text = [line for *_, line in lines]
                into.write("".join(text))
                parts.append((run, step, written + 1, written + len(text)))
                written += len(text)
        print(f"copied {written:,} rows in {time.perf_counter() - began:.0f} s", flush=True)
        cursor.execute("SELECT min(id) - 1 FROM arborist_search_node")
        (before,) = cursor.fetchone()
        IndexedPart.objects.bulk_create(
            IndexedPart(
                run_id=run, first_step=step, last_step=step, first_id=before + first, last_id=before + last
            )
            for run, step, first, last in parts
        )
        began = time.perf_counter()
        cursor.execute("SET maintenance_work_mem = '1GB'")
        cursor.execute(import_module("webapp.search.migrations.0001_initial").INDEX)
        print(f"index made in {time.perf_counter() - began:.0f} s", flush=True)
        cursor.execute("VACUUM (ANALYZE) arborist_search_node")


def weigh() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), pg_table_size('arborist_search_node'), "
            "pg_relation_size('arborist_search_node_pkey'), pg_relation_size('search_words_and_marks'), "
            "avg(octet_length(text)) FROM arborist_search_node"
        )
        n, table, key, index, text = cursor.fetchone()
    print(
        f"{n:,} nodes, text {text:.0f} bytes each; bytes per node: table {table / n:.0f}, key {key / n:.0f}, "
        f"words and marks {index / n:.0f}; in all {(table + key + index) / n:.0f}"
    )


def measure(turns: int, cpu_of: Callable[[], float]) -> None:
    """Each query's first page, as the page asks for it, in `turns` turns; then its counts, once."""
    from webapp.projects.models import Project
    from webapp.runs.models import Run
    from webapp.search import finding

    # The trees themselves are not there: what a page shows of them is one query for 25 rows more.
    finding._with_trees = list  # type: ignore[assignment]  # in place of a query
    project = Project.objects.get(slug="bench")
    runs = list(Run.objects.order_by("id").values_list("id", flat=True))
    walls: list[float] = []
    works: list[float] = []
    for kind, queries in QUERIES.items():
        for query in queries:
            text = query.format(first=runs[0], last=runs[-1])
            taken, worked = [], []
            for _ in range(turns):
                work, began = cpu_of(), time.perf_counter()
                page = finding.find(finding.ask(project, text))
                taken.append(1000 * (time.perf_counter() - began))
                worked.append(1000 * (cpu_of() - work))
            walls += taken
            works += worked
            began = time.perf_counter()
            tally = finding.tally(project, finding.ask(project, text))
            counting = 1000 * (time.perf_counter() - began)
            far = f"stopped after {page.looked:,} nodes" if page.stopped else ""
            n = "too slow" if tally is None else f"{'about ' if tally.every > 1 else ''}{tally.n:,}"
            print(
                f"{kind:31} {text:41} {statistics.median(taken):4.0f} ms, "
                f"CPU {statistics.median(worked):4.0f} ms  {len(page.nodes):2} found {far:30} "
                f"counts {counting:5.0f} ms: {n}",
                flush=True,
            )
    print(
        f"first page: p50 {parts.quantile(walls, 0.5):.0f} ms, p95 {parts.quantile(walls, 0.95):.0f} ms, "
        f"largest {max(walls):.0f} ms; CPU p50 {parts.quantile(works, 0.5):.0f} ms, "
        f"p95 {parts.quantile(works, 0.95):.0f} ms"
    )
    for pattern in (r"/(\d)\1\1/", r"/zug+zwang/", r"/(\d+)\+\1=/ adv:<-3", r"/(a+)(a+)(a+)\1\2\3b$/"):
        began = time.perf_counter()
        page = finding.find(finding.ask(project, pattern))
        took = 1000 * (time.perf_counter() - began)
        print(f"pattern {pattern}: {took:.0f} ms, {len(page.nodes)} found, {page.looked:,} nodes looked at")


def main() -> None:
    print(parts.machine())
    arguments = parser.parse_args()
    with parts.database() as server:
        from webapp.search.models import IndexedNode

        if not IndexedNode.objects.exists():
            fill(arguments.nodes)
        weigh()
        # Of the server with its backends, and of this process, which does the page's part.
        measure(arguments.turns, lambda: parts.cpu_seconds(server.popen.pid) + time.process_time())


if __name__ == "__main__":
    main()
