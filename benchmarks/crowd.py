"""What many pages at once cost the site, and how fast they are back when it was killed.

    python -m benchmarks.crowd                     all three, some four minutes
    python -m benchmarks.crowd idle                1,000 sockets on which nothing happens: memory
    python -m benchmarks.crowd spread              50 runs, 4 viewers each, 2 commits a second and run
    python -m benchmarks.crowd storm               200 viewers of a run; the site is killed and started again

Viewers are WebSocket clients in a process of their own, which come back as a page does: after 0.5 s, doubling
to 15 s, each half to one and a half times, and from the fifth attempt on when a poll every 8 s would find the
site. *Back*: from the moment the site takes connections again until the
last viewer has all that was committed by then.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from benchmarks import parts
from benchmarks.live import resident

IDLE, RUNS, VIEWERS_EACH, STORM = 1000, 50, 4, 200
COMMITS_PER_SECOND = 2
EVENTS_PER_COMMIT = 3
SECONDS = 60.0
AWAY_SECONDS = 5.0
LIMITS = {"idle_mb": 250, "p99": 1000, "back": 10}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", help="idle, spread, storm")
    parser.add_argument("--watch", metavar="JSON", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        import django

        django.setup()
        asyncio.run(_watch(**json.loads(options.watch)))
        return
    if unknown := sorted(set(options.what) - set(MEASURES)):
        parser.error(f"{', '.join(unknown)}: choose of {', '.join(MEASURES)}")
    print(parts.machine())
    with parts.database(), parts.broker():
        for measure in [MEASURES[what] for what in options.what] or MEASURES.values():
            measure()


class _Watching:
    """The process with the viewers: ready when all are connected, `end` gives what they saw."""

    def __init__(self, port: int, runs: list[int], each: int) -> None:
        job = {"port": port, "runs": runs, "each": each}
        argv = [sys.executable, "-m", "benchmarks.crowd", "--watch", json.dumps(job)]
        self._popen = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        assert self._popen.stdout is not None
        assert self._popen.stdin is not None
        self._out, self._in = self._popen.stdout, self._popen.stdin
        if self._out.readline().strip() != b"ready":
            sys.exit("the viewers did not connect")

    def end(self) -> dict[str, Any]:
        self._in.write(b"end\n")
        self._in.flush()
        told: dict[str, Any] = json.loads(self._out.readline())
        self._popen.wait()
        return told


class _Recording(threading.Thread):
    """A worker's recorder at work on one run, until it is told to leave."""

    def __init__(self) -> None:
        from benchmarks.rows import new_run
        from workers import lease
        from workers.recorder import Recorder

        super().__init__(daemon=True)
        self.run_id = new_run().id
        held = lease.claim(self.run_id, "benchmark")
        assert held is not None
        self._lease, self._recorder = held, Recorder(held)
        self.committed: list[tuple[int, float]] = []
        self._is_over = threading.Event()

    def run(self) -> None:
        from django.db import connections

        from benchmarks.rows import metrics_event

        n = step = 0
        pause = random.uniform(0, 1 / COMMITS_PER_SECOND)  # noqa: S311 (they do not commit in step)
        while not self._is_over.wait(pause):
            step += 1
            events = [metrics_event(step, 30) for _ in range(EVENTS_PER_COMMIT)]
            recorded = self._recorder.record(list(enumerate(events, n + 1)))
            self.committed.append((recorded.last_seq, time.time()))
            n += len(events)
            pause = 1 / COMMITS_PER_SECOND
        connections.close_all()

    def leave(self) -> None:
        from webapp.runs.models import RunStatus
        from workers import lease

        self._is_over.set()
        self.join()
        lease.end(self._lease, RunStatus.STOPPED, "The benchmark is over.")


def idle() -> None:
    from benchmarks.rows import new_run

    run = new_run()
    with parts.web(port := parts.free_port()) as web:
        few = _Watching(port, [run.id], 10)  # what is made once is no socket's
        before = resident(web.pid)
        many = _Watching(port, [run.id], IDLE)
        time.sleep(15)
        cpu, began = parts.own_cpu_seconds(web.pid), time.monotonic()
        time.sleep(30)
        used = (parts.own_cpu_seconds(web.pid) - cpu) / (time.monotonic() - began)
        grown = (resident(web.pid) - before) / 1e6
        told = many.end()
        few.end()
    print(
        f"idle: {IDLE:,} sockets, {told['open']:,} of them open after 45 s: site {grown:+.0f} MB (limit "
        f"{LIMITS['idle_mb']}), {used:.2f} of a core"
    )


def spread() -> None:
    recordings = [_Recording() for _ in range(RUNS)]
    with parts.web(port := parts.free_port()) as web:
        watching = _Watching(port, [each.run_id for each in recordings], VIEWERS_EACH)
        cpu = parts.own_cpu_seconds(web.pid)
        for each in recordings:
            each.start()
        time.sleep(SECONDS)
        for each in recordings:
            each.leave()
        time.sleep(2)
        cpu = parts.own_cpu_seconds(web.pid) - cpu
        told = watching.end()
    delays, missing = _delays(recordings, told)
    print(
        f"spread: {RUNS} runs x {VIEWERS_EACH} viewers, {COMMITS_PER_SECOND} commits a second and run for "
        f"{SECONDS:.0f} s, {len(delays):,} deliveries: commit to client p50 "
        f"{parts.quantile(delays, 0.5):.0f} ms, p99 {parts.quantile(delays, 0.99):.0f} ms (limit "
        f"{LIMITS['p99']}); gaps {told['gaps']}, duplicates "
        f"{told['repeats']}, missing {missing}; site {cpu / SECONDS:.2f} of a core"
    )


def storm() -> None:
    recording = _Recording()
    port = parts.free_port()
    with parts.web(port) as web:
        watching = _Watching(port, [recording.run_id], STORM)
        recording.start()
        time.sleep(10)
        os.kill(web.pid, signal.SIGKILL)
        web.wait()
    time.sleep(AWAY_SECONDS)
    with parts.web(port):
        answers_at = time.time()
        time.sleep(25)
        recording.leave()
        time.sleep(3)
        told = watching.end()
    seq = recording.committed[bisect.bisect_left([at for _, at in recording.committed], answers_at) - 1][0]
    back = []
    for received in told["received"]:
        later = [at for last, at in received if last >= seq and at >= answers_at]
        back.append(min(later) - answers_at if later else float("inf"))
    print(
        f"storm: {STORM} viewers, the site killed and away for {AWAY_SECONDS:.0f} s: back after "
        f"{parts.quantile(back, 0.5):.1f} s (half), {max(back):.1f} s (all; limit {LIMITS['back']}); gaps "
        f"{told['gaps']}, duplicates {told['repeats']}, answers of 500 and above {told['errors']}"
    )


MEASURES = {"idle": idle, "spread": spread, "storm": storm}


def _delays(recordings: list[_Recording], told: dict[str, Any]) -> tuple[list[float], int]:
    """Milliseconds from each commit to each of its run's viewers, and how many never came."""
    delays, missing = [], 0
    for number, received in enumerate(told["received"]):
        lasts = [last for last, _ in received]
        for seq, at in recordings[number // VIEWERS_EACH].committed:
            place = bisect.bisect_left(lasts, seq)
            if place == len(lasts):
                missing += 1
            else:
                delays.append(1000 * (received[place][1] - at))
    return delays, missing


async def _watch(port: int, runs: list[int], each: int) -> None:
    """Prints a line when all are connected; told to end, one JSON object with what they received."""
    from asgiref.sync import sync_to_async

    from benchmarks.viewers import Viewer, cookie

    session = await sync_to_async(cookie)()
    viewers = [(Viewer(), run_id) for run_id in runs for _ in range(each)]
    tasks = []
    for viewer, run_id in viewers:
        tasks.append(asyncio.create_task(viewer.stay(run_id, port, session, 2)))
        await asyncio.sleep(0.01)
    while not all(viewer.is_open for viewer, _ in viewers):  # noqa: ASYNC110 (they are tasks of this loop)
        await asyncio.sleep(0.1)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    is_open = sum(viewer.is_open for viewer, _ in viewers)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(
        json.dumps(
            {
                "received": [viewer.received for viewer, _ in viewers],
                "gaps": sum(viewer.gaps for viewer, _ in viewers),
                "repeats": sum(viewer.repeats for viewer, _ in viewers),
                "errors": sum(viewer.errors for viewer, _ in viewers),
                "open": is_open,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
