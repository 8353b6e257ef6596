"""What the pages of problems and of all trees of a step cost: CPU milliseconds, here and in PostgreSQL.

    python -m benchmarks.problems

Synthetic trees (`manage.py make_forest`) in a database of its own: 20,000 of 40 nodes, 60 of 5,000. Each
page is asked for by a logged-in member through Django's test client, once to warm up and then five times.
"""

from __future__ import annotations

import time
from statistics import median

from benchmarks import parts

TURNS = 5


def main() -> None:
    print(parts.machine())
    with parts.database() as server:
        from django.core.management import call_command
        from django.test import Client

        from webapp.accounts.models import User
        from webapp.runs.models import Run
        from webapp.trees.models import StoredTree

        user = User.objects.create_user("bench-reader")
        call_command("make_forest", "--trees", "20000", "--nodes", "40", "--run", "small")
        call_command("make_forest", "--trees", "60", "--nodes", "5000", "--run", "large")
        client = Client(SERVER_NAME="127.0.0.1")
        client.force_login(user)
        small, large = Run.objects.order_by("id")
        problem = StoredTree.objects.filter(run=small).order_by("id").values_list("problem_id", flat=True)[0]
        one, two = StoredTree.objects.filter(run=large).order_by("id").values_list("id", flat=True)[:2]
        for what, path in (
            ("problems, first page of 100", "/p/synthetic/prompts/"),
            ("problems, 2,000 looked at for words that none has", "/p/synthetic/prompts/?q=zzzz"),
            ("one problem over training", f"/p/synthetic/prompts/{problem}"),
            ("all trees of a step, 64 of 40 nodes", f"/r/{small.id}/trees/all?step=1"),
            ("all trees, the most one page reads: 512 of 40 nodes", f"/r/{small.id}/trees/all?step=1&to=99"),
            ("all trees, the most one page reads: 40 of 5,000 nodes", f"/r/{large.id}/trees/all?step=1"),
            ("two trees of 5,000 nodes side by side", f"/t/{one}/beside/{two}/?n=1.1"),
        ):
            own, theirs = [], []
            for _ in range(TURNS + 1):
                here, there = time.process_time(), parts.cpu_seconds(server.popen.pid)
                assert client.get(path).status_code == 200, path
                own.append(1000 * (time.process_time() - here))
                theirs.append(1000 * (parts.cpu_seconds(server.popen.pid) - there))
            print(f"{what}: {median(own[1:]):.0f} ms here, {sum(theirs[1:]) / TURNS:.0f} ms in PostgreSQL")


if __name__ == "__main__":
    main()
