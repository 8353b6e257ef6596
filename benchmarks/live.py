"""How long a committed event takes to a page: commit to client, over the real server, with many viewers.

    python -m benchmarks.live --viewers 20 --seconds 30

A recorder commits batches as a tiny run makes them (one metrics event of 30 numbers and 12 trees, twice a
second) plus single events in between; viewers are WebSocket clients in a process of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time

from benchmarks import parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--watch", nargs=2, type=int, metavar=("RUN", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        import django

        django.setup()
        asyncio.run(_watch(*options.watch, options.viewers))
        return
    print(parts.machine())
    with parts.database(), parts.web(port := parts.free_port()) as web:
        _measure(options.viewers, options.seconds, port, web.pid)


def _measure(viewers: int, seconds: float, port: int, web: int) -> None:
    from benchmarks.rows import metrics_event, new_run, tree_event
    from webapp.runs.models import RunStatus
    from workers import lease
    from workers.recorder import Recorder

    run = new_run()
    held = lease.claim(run.id, "benchmark")
    assert held is not None
    recorder, n = Recorder(held), 0
    argv = [
        sys.executable,
        "-m",
        "benchmarks.live",
        "--viewers",
        str(viewers),
        "--watch",
        str(run.id),
        str(port),
    ]
    watching = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert watching.stdout is not None
    watching.stdout.readline()  # all are there
    cpu, committed, began = parts.own_cpu_seconds(web), {}, time.monotonic()
    step = 0
    while time.monotonic() - began < seconds:
        step += 1
        for events in (
            [metrics_event(step, 30), *(tree_event(step, 21) for _ in range(12))],
            [metrics_event(step, 4)],
        ):
            recorded = recorder.record(list(enumerate(events, n + 1)))
            committed[recorded.last_seq] = time.time()
            n += len(events)
            time.sleep(0.25)
    cpu = parts.own_cpu_seconds(web) - cpu
    lease.end(held, RunStatus.STOPPED, "The benchmark is over.")
    delays = []
    for line in watching.stdout:
        received = json.loads(line)
        for seq, at in committed.items():
            # The first frame that holds it.
            delays.append(next(then for last, then in received if last >= seq) - at)
    watching.wait()
    milliseconds = [1000 * delay for delay in delays]
    print(
        f"{viewers} viewers, {len(committed)} commits, {len(delays)} deliveries: commit to client "
        f"p50 {parts.quantile(milliseconds, 0.5):.0f} ms, p99 {parts.quantile(milliseconds, 0.99):.0f} ms, "
        f"max {max(milliseconds):.0f} ms; site {cpu / seconds:.1%} of a core"
    )


async def _watch(run_id: int, port: int, viewers: int) -> None:
    """Prints a line when all are connected, then one per viewer: its (last seq, time) pairs."""
    from benchmarks.viewers import follow

    there = 0

    async def one() -> list[tuple[int, float]]:
        nonlocal there
        received = []
        async for frame in follow(run_id, port):
            received.append((frame["last_seq"], time.time()))
            if len(received) == 1:
                there += 1
                if there == viewers:
                    print("ready", flush=True)
        return received

    for received in await asyncio.gather(*(one() for _ in range(viewers))):
        print(json.dumps(received))


if __name__ == "__main__":
    main()
