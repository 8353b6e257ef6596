"""How long a committed event takes to a page, with many viewers; what a viewer that hangs costs the others.

    python -m benchmarks.live                        200 viewers, 50 events a second, 5 minutes
    python -m benchmarks.live --short                40 viewers, 40 s: does it work at all
    python -m benchmarks.live --beside frozen slow --seconds 640
                                                     viewers that hang taking turns with none, two of each

A recorder commits as a worker does, four times a second: metrics of 30 numbers and trees of 21 nodes. Viewers
are WebSocket clients in a process of their own; with PostgreSQL and the site, all of it on this machine.

*Commit to client*: from the return of the commit to the frame in the client. *Others*: all but the one that
hangs; turns without one and with one follow each other in one run, so both meet the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import parts

COMMITS_PER_SECOND = 4
RATES = {"frozen": 0, "slow": 1000}  # bytes a second
SETTLE_SECONDS = 5
LIMITS = {"p50": 250, "p99": 1000, "growth_mb": 50, "others": 1.10}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--events-per-second", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--beside", nargs="*", choices=list(RATES), default=[])
    parser.add_argument("--turns", type=int, default=2, help="of each kind, with --beside")
    parser.add_argument("--uvicorn", default="", help="more options for the server, to compare")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--watch", metavar="JSON", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.short:
        options.viewers, options.seconds, options.turns = (
            min(options.viewers, 40),
            min(options.seconds, 40),
            1,
        )
    if options.watch:
        import django

        django.setup()
        asyncio.run(_watch(**json.loads(options.watch)))
        return
    print(parts.machine())
    with parts.database() as server, parts.web(port := parts.free_port(), *options.uvicorn.split()) as web:
        measure(options, port, web.pid, server.popen.pid)


def measure(options: argparse.Namespace, port: int, web: int, database: int) -> None:
    from benchmarks.rows import new_run
    from webapp.runs.models import RunStatus
    from workers import lease
    from workers.recorder import Recorder

    run = new_run()
    held = lease.claim(run.id, "benchmark")
    assert held is not None
    recorder, n = Recorder(held), 0
    order = list(itertools.chain(*([None, kind] for _ in range(options.turns) for kind in options.beside)))
    length = options.seconds / max(len(order), 1)
    job = {"run_id": run.id, "port": port, "viewers": options.viewers, "order": order, "length": length}
    argv = [sys.executable, "-m", "benchmarks.live", "--watch", json.dumps(job)]
    watching = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert watching.stdout is not None
    assert watching.stdin is not None
    watching.stdout.readline()  # all are there
    committed: list[tuple[int, float]] = []
    per_commit = options.events_per_second / COMMITS_PER_SECOND
    owed, peak = 0.0, 0
    last_seq = 2
    # What is made once and kept (code, caches, buffers) is no growth.
    settled_at, before = time.monotonic() + SETTLE_SECONDS, 0
    cpu = {name: parts.own_cpu_seconds(pid) for name, pid in (("site", web), ("viewers", watching.pid))}
    cpu["database"] = parts.cpu_seconds(database)
    watching.stdin.write(b"begin\n")
    watching.stdin.flush()
    began = time.monotonic()
    for step in itertools.count(1):
        owed += per_commit
        recorded = recorder.record(list(enumerate(_events(step, int(owed)), n + 1)))
        committed.append((recorded.last_seq, time.time()))
        n, owed, last_seq = n + int(owed), owed - int(owed), recorded.last_seq
        if not before and time.monotonic() > settled_at:
            before = resident(web)
        peak = max(peak, resident(web))
        if (left := began + step / COMMITS_PER_SECOND - time.monotonic()) > 0:
            time.sleep(left)
        if time.monotonic() - began >= options.seconds:
            break
    seconds = time.monotonic() - began
    after = resident(web)
    cpu["site"] = parts.own_cpu_seconds(web) - cpu["site"]
    cpu["viewers"] = parts.own_cpu_seconds(watching.pid) - cpu["viewers"]
    cpu["database"] = parts.cpu_seconds(database) - cpu["database"]
    lease.end(held, RunStatus.STOPPED, "The benchmark is over.")
    told = json.loads(watching.stdout.readline())
    watching.wait()
    report(options, committed, told, seconds, n, last_seq)
    growth = (after - before) / 1e6
    print(
        f"site: {before / 1e6:.0f} MB with all viewers there, {after / 1e6:.0f} at the end ({growth:+.1f}; "
        f"limit {LIMITS['growth_mb']}), {peak / 1e6:.0f} at most; cores used: "
        + ", ".join(f"{name} {used / seconds:.2f}" for name, used in cpu.items())
    )


def _events(step: int, count: int) -> list[Any]:
    from benchmarks.rows import metrics_event, tree_event

    return [metrics_event(step, 30) if i % 3 == 0 else tree_event(step, 21) for i in range(count)]


def resident(pid: int) -> int:
    """Bytes of memory that the process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def report(
    options: argparse.Namespace,
    committed: list[tuple[int, float]],
    told: dict[str, Any],
    seconds: float,
    n_events: int,
    last_seq: int,
) -> None:
    kinds: dict[str | None, list[float]] = {}
    missing = 0
    for received in told["received"]:
        lasts = [last for last, _ in received]
        for seq, at in committed:
            place = bisect.bisect_left(lasts, seq)
            if place == len(lasts):
                missing += 1
                continue
            kinds.setdefault(_turn(told, at), []).append(1000 * (received[place][1] - at))
    delays = list(itertools.chain(*kinds.values()))
    print(
        f"{options.viewers} viewers, {n_events / seconds:.0f} events/s for {seconds:.0f} s, {len(committed)} "
        f"commits, {len(delays):,} deliveries: commit to client p50 {parts.quantile(delays, 0.5):.0f} ms "
        f"(limit {LIMITS['p50']}), p99 {parts.quantile(delays, 0.99):.0f} ms (limit {LIMITS['p99']}), max "
        f"{max(delays):.0f} ms"
    )
    ends = {received[-1][0] if received else 0 for received in told["received"]}
    print(
        f"gaps {told['gaps']}, duplicates {told['repeats']}, resyncs {told['resyncs']}, deliveries missing "
        f"{missing}; all viewers end at the same event: {len(ends) == 1 and min(ends) >= last_seq}"
    )
    alone = kinds[None]
    for kind in options.beside:
        beside = kinds[kind]
        ratio = parts.quantile(beside, 0.99) / parts.quantile(alone, 0.99)
        print(
            f"others beside a {kind} viewer: p50 {parts.quantile(beside, 0.5):.0f} ms, p99 "
            f"{parts.quantile(beside, 0.99):.0f} ms; without {parts.quantile(alone, 0.5):.0f} and "
            f"{parts.quantile(alone, 0.99):.0f} ms: p99 × {ratio:.2f} (limit {LIMITS['others']:.2f}); "
            f"dropped, it came again {told['times'].get(kind, 0)} times"
        )


def _turn(told: dict[str, Any], at: float) -> str | None:
    """Who hung at that moment."""
    for kind, start, end in told["turns"]:
        if start <= at < end:
            return str(kind)
    return None


async def _watch(run_id: int, port: int, viewers: int, order: list[str | None], length: float) -> None:
    """Prints a line when all are connected; at the end one JSON object with what they received."""
    from asgiref.sync import sync_to_async

    from benchmarks.viewers import Viewer, cookie, hang

    session = await sync_to_async(cookie)()
    all_viewers = [Viewer() for _ in range(viewers)]
    tasks = []
    for viewer in all_viewers:
        tasks.append(asyncio.create_task(viewer.watch(run_id, port, session, 2)))
        await asyncio.sleep(0.01)
    await asyncio.sleep(2 + viewers / 100)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    turns: list[tuple[str, float, float]] = []
    times: dict[str, int] = {}
    for kind in order:
        began = time.time()
        if kind is None:
            await asyncio.sleep(length)
        else:
            until = time.monotonic() + length
            count = await hang(run_id, port, session, bytes_per_second=RATES[kind], until=until)
            times[kind] = times.get(kind, 0) + count - 1
            turns.append((kind, began, time.time()))
    with contextlib.suppress(Exception):
        await asyncio.wait_for(asyncio.gather(*tasks), None)
    print(
        json.dumps(
            {
                "received": [viewer.received for viewer in all_viewers],
                "gaps": sum(viewer.gaps for viewer in all_viewers),
                "repeats": sum(viewer.repeats for viewer in all_viewers),
                "resyncs": sum(viewer.resyncs for viewer in all_viewers),
                "turns": turns,
                "times": times,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
