"""What a page of the list of trees costs, in every order and scope, among a million trees.

    python -m benchmarks.forest [--trees 1000000] [--nodes 5]     builds a forest in a database of its own
    python -m benchmarks.forest --run 3                           measures one that this site has

Server time is the view's, in process, without the network: CPU of this process and of the database's backend
(which must be on this machine), and wall time. Plans are looked at, too: no order may sort a run.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import time
from pathlib import Path
from typing import Any

REPEATS = 7
MOST_SORTED = 20_000  # rows that a sort in a plan may read: some steps, never a run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trees", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--run", type=int, help="a run of this site, instead of a forest of its own")
    options = parser.parse_args()
    if options.run is not None:
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")
        import django

        django.setup()
        measure(options.run)
        return
    from benchmarks import parts

    print(parts.machine())
    with parts.database():
        from django.core.management import call_command

        from webapp.accounts.models import User
        from webapp.runs.models import Run

        User.objects.create_user("bench")
        began = time.process_time()
        call_command("make_forest", trees=options.trees, nodes=options.nodes)
        print(f"made in {time.process_time() - began:.0f} CPU-s")
        measure(Run.objects.get().id)


def measure(run_id: int) -> None:
    """Print a table of every order in every scope, of the named filters, and of the step bar."""
    from django.test import Client

    from webapp.accounts.models import User
    from webapp.runs.models import Run
    from webapp.trees.filters import PRESETS
    from webapp.trees.models import StoredTree
    from webapp.trees.querysets import SORTS

    run = Run.objects.get(id=run_id)
    client = Client(headers={"host": "localhost"})
    user = User.objects.filter(memberships__project=run.project).first()
    assert user is not None
    client.force_login(user)
    n = StoredTree.objects.filter(run=run, superseded=False).count()
    step = max(1, run.step // 2)
    some = f"from={max(1, step - 4)}&to={step + 5}"
    wide = f"from={step // 2 + 1}&to={step + step // 2}"
    scopes = {"one step": f"step={step}", "10 steps": some, "half": wide, "all steps": "scope=all"}
    print(f"run {run_id}: {n:,} trees, {run.step:,} steps; of {REPEATS} answers each:")
    print("ms of CPU, Python + PostgreSQL · wall, median (largest)")
    print("| order | " + " | ".join(scopes) + " |")
    print("|---|" + "---|" * len(scopes))
    worst = worst_cpu = 0.0
    for name in SORTS:
        for sort in (name, f"-{name}"):
            cells = []
            for query in scopes.values():
                figures = timed(client, f"/r/{run_id}/trees?{query}&sort={sort}")
                worst, worst_cpu = max(worst, figures[0]), max(worst_cpu, figures[2] + figures[3])
                cells.append(told(figures))
            print(f"| {sort} | {' | '.join(cells)} |", flush=True)
    print(f"largest: {worst_cpu:.0f} ms of CPU, {worst:.0f} ms wall (median)")
    print("\n| named filter, all steps | |\n|---|---|")
    for preset in PRESETS:
        path = f"/r/{run_id}/trees?scope=all&q={preset.filter}&sort={preset.sort}"
        print(f"| {preset.title} | {told(timed(client, path))} |", flush=True)
    print("\n| also | |\n|---|---|")
    deep = next_page(client.get(f"/r/{run_id}/trees?scope=all&sort=-value"))
    for _ in range(20):
        deep = next_page(client.get(f"/r/{run_id}/trees{deep}"))
    for what, path in {
        "page 22 of -value": f"/r/{run_id}/trees{deep}",
        "words of the problem": f"/r/{run_id}/trees?scope=all&q=marbles",
        "words that no problem has": f"/r/{run_id}/trees?scope=all&q=nowhere",
        "one problem's trees": f"/r/{run_id}/trees?scope=all&q=problem:syn-0007&sort=-tokens",
        "means of the step bar (API)": f"/api/v1/runs/{run_id}/steps?sort=cliff",
        "100 pictures (API)": icicles(client, run_id),
    }.items():
        print(f"| {what} | {told(timed(client, path))} |", flush=True)
    print(plans(run))


def next_page(answer: Any) -> str:
    found = re.search(r'id="next-page" href="([^"]*)"', answer.content.decode())
    return html.unescape(found[1]) if found else "?"


def icicles(client: Any, run_id: int) -> str:
    rows = client.get(f"/api/v1/runs/{run_id}/trees?limit=100").json()["trees"]
    return f"/api/v1/runs/{run_id}/icicles?trees={','.join(str(row['id']) for row in rows)}"


def database_cpu() -> float:
    """Seconds of the backend that serves this process."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        fields = Path(f"/proc/{cursor.fetchone()[0]}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(client: Any, path: str) -> tuple[float, float, float, float]:
    """Milliseconds: wall median, wall largest, CPU here and in PostgreSQL per answer. -1: refused."""
    walls = []
    client.get(path)
    own, theirs = time.process_time(), database_cpu()
    for _ in range(REPEATS):
        began = time.perf_counter()
        answer = client.get(path)
        walls.append(1000 * (time.perf_counter() - began))
        if answer.status_code != 200:
            return -1.0, -1.0, -1.0, -1.0
    own, theirs = time.process_time() - own, database_cpu() - theirs
    return sorted(walls)[REPEATS // 2], max(walls), 1000 * own / REPEATS, 1000 * theirs / REPEATS


def told(figures: tuple[float, float, float, float]) -> str:
    wall, largest, own, theirs = figures
    if wall < 0:
        return "refused: takes too long"
    return f"{own:.0f} + {theirs:.0f} · {wall:.0f} ({largest:.0f})"


def plans(run: Any) -> str:
    """Whether any page over all steps sorts more than some steps' trees: rows that reached each sort."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from webapp.trees.querysets import SORTS, Scope, trees_page

    most = 0
    for name in SORTS:
        for sort in (name, f"-{name}"):
            with CaptureQueriesContext(connection) as asked:
                trees_page(run, Scope(), sort=sort)
            for query in asked:
                if query["sql"].startswith("SELECT") and "LIMIT" in query["sql"]:
                    with connection.cursor() as cursor:
                        cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + query["sql"])
                        found = cursor.fetchone()[0]
                    plan = json.loads(found) if isinstance(found, str) else found
                    most = max(most, sorted_rows(plan[0]["Plan"]))
    verdict = "no" if most <= MOST_SORTED else "A"
    return f"\n{verdict} order over all steps sorts a run: at most {most:,} rows reached a sort"


def sorted_rows(plan: dict[str, Any]) -> int:
    below = plan.get("Plans", [])
    here = max((int(one["Actual Rows"]) for one in below), default=0) if "Sort" in plan["Node Type"] else 0
    return max([here, *map(sorted_rows, below)])


if __name__ == "__main__":
    main()
