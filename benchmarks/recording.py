"""How fast the recorder stores: metric points and tree nodes per second of wall time, and the CPU they take.

    python -m benchmarks.recording
    python -m benchmarks.recording --short

Wall time is of one writer beside PostgreSQL on this machine, fsync on; *per CPU-second* counts the CPU of
both, so it holds on a busy machine, too. Batches as the worker makes them (500 events or fewer).
"""

from __future__ import annotations

import argparse
import time

from benchmarks import parts

POINTS_PER_EVENT = 30
NODES_PER_TREE = 21  # what the preset TreeRPO · tiny samples, and some 250 bytes of payload a node


LIMITS = {"points": 100_000, "trees": 50_000}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true")
    share = 4 if parser.parse_args().short else 1
    print(parts.machine())
    with parts.database() as server:
        from benchmarks.rows import metrics_event, new_run, tree_event
        from workers import lease
        from workers.recorder import Recorder

        held = lease.claim(new_run().id, "benchmark")
        assert held is not None
        recorder, n = Recorder(held), 0
        for what, make, size, unit, batches in (
            ("points", metrics_event, POINTS_PER_EVENT, "points", 40 // share),
            ("trees", tree_event, NODES_PER_TREE, "nodes", 20 // share),
        ):
            made = [[make(batch * 500 + i, size) for i in range(500)] for batch in range(batches + 2)]
            for batch in made[:2]:  # warm up
                recorder.record(list(enumerate(batch, n + 1)))
                n += 500
            own, theirs, began = time.process_time(), parts.cpu_seconds(server.popen.pid), time.perf_counter()
            for batch in made[2:]:
                recorder.record(list(enumerate(batch, n + 1)))
                n += 500
            seconds = time.perf_counter() - began
            own, theirs = time.process_time() - own, parts.cpu_seconds(server.popen.pid) - theirs
            count = batches * 500 * size
            print(
                f"{what}: {count / seconds:,.0f} {unit}/s of wall time (limit {LIMITS[what]:,}), "
                f"{count / (own + theirs):,.0f} per CPU-second; CPU per million {unit}: "
                f"{1e6 * own / count:.2f} s here, {1e6 * theirs / count:.2f} s in PostgreSQL"
            )


if __name__ == "__main__":
    main()
