"""How fast a spool of 100,000 events is drained after the database was away.

    python -m benchmarks.drain
    python -m benchmarks.drain --short    10,000 events

Two thirds are metrics of 10 numbers, one third trees of 21 nodes. The worker's own drain, one run, PostgreSQL
on this machine with fsync on.
"""

from __future__ import annotations

import argparse
import time

from benchmarks import parts

LIMIT_SECONDS = 60  # for 100,000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    count = 10_000 if options.short else options.events
    print(parts.machine())
    with parts.database() as server:
        from benchmarks.rows import metrics_event, new_run, tree_event
        from trainer.events import Finished
        from workers import lease
        from workers.drain import Drain
        from workers.recorder import Recorder
        from workers.spool import Spool

        held = lease.claim(new_run().id, "benchmark")
        assert held is not None
        spool = Spool(parts.FOLDER.root / "spool")
        for i in range(count - 1):
            event = tree_event(i, 21) if i % 3 == 2 else metrics_event(i, 10)
            spool.append(event.model_dump_json().encode())
        last = Finished(time=1.0, outcome="stopped", step=count, reason="The benchmark is over.")
        spool.append(last.model_dump_json().encode())
        spool.sync()
        drain = Drain(spool, Recorder(held))
        own, theirs, began = time.process_time(), parts.cpu_seconds(server.popen.pid), time.perf_counter()
        drain.start()
        drain.appended()
        drain.join()
        seconds = time.perf_counter() - began
        assert drain.ended, drain.broken or drain.lost
        print(
            f"{count:,} events, {spool.end / 1e6:.0f} MB of spool, drained in {seconds:.1f} s wall: "
            f"{count / seconds:,.0f} events/s (limit {100_000 / LIMIT_SECONDS:,.0f}); "
            f"CPU {time.process_time() - own:.1f} s here, "
            f"{parts.cpu_seconds(server.popen.pid) - theirs:.1f} s in PostgreSQL"
        )
        spool.remove()


if __name__ == "__main__":
    main()
