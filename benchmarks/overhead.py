"""What recording, storing and showing a run costs, against `python -m trainer` alone.

    python -m benchmarks.overhead --steps 20

The same config is trained twice: alone, its events written to a file; and by the worker, with PostgreSQL, the
site, and one open page that gets every event. Counted is CPU time from the second step's end to the last
one's, of every process that is not the trainer; evaluation is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import threading
import time
from typing import Any

from benchmarks import parts

FIRST = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="treerpo-tiny")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    print(parts.machine())
    with parts.database() as server, parts.broker(), parts.worker() as worker:
        port = parts.free_port()
        with parts.web(port) as web:
            config = _config(options.preset, options.steps)
            alone = _alone(config)
            with_all, others = _with_everything(config, worker.pid, server.popen.pid, web.pid, port)
    steps = options.steps - FIRST
    print(f"alone: {alone / steps:.3f} CPU-s a step; under the worker: {with_all / steps:.3f}")
    for name, seconds in others.items():
        print(f"  {name}: {seconds / steps * 1000:.1f} CPU-ms a step, {seconds / alone:.2%}")
    print(f"recording, storing and streaming: {sum(others.values()) / alone:.2%} of step CPU time")


def _config(preset: str, steps: int) -> Any:
    """`Any`: a RunConfig, imported when the settings are there."""
    from trainer.config import RunConfig
    from trainer.presets import PRESETS

    values = PRESETS[preset].config.model_dump(mode="json")
    values["training"]["steps"] = steps
    values["evaluation"] |= {"every_steps": 0, "problems": 1}
    values["checkpoint"]["every_steps"] = 0
    return RunConfig.model_validate(values)


def _alone(config: Any) -> float:
    """Step CPU time after the first two steps of a run from a shell."""
    from trainer.config_file import config_to_yaml
    from trainer.events import Metrics, parse_line

    folder = parts.FOLDER.root / "alone"
    folder.mkdir()
    (folder / "run.yaml").write_text(config_to_yaml(config))
    argv = [sys.executable, "-m", "trainer", str(folder / "run.yaml"), "--output", str(folder)]
    with (folder / "events").open("wb") as events, (folder / "log").open("wb") as log:
        subprocess.run(argv, stdout=events, stderr=log, check=True, cwd=parts.REPOSITORY)
    totals = {}
    for line in (folder / "events").open("rb"):
        event = parse_line(line)
        if isinstance(event, Metrics) and "speed/cpu_seconds_total" in event.values:
            totals[event.step] = event.values["speed/cpu_seconds_total"]
    return totals[max(totals)] - totals[FIRST]


def _with_everything(
    config: Any, worker: int, database: int, web: int, port: int
) -> tuple[float, dict[str, float]]:
    from benchmarks.rows import new_run
    from webapp.runs.models import Point, Run

    run = new_run(config)
    page = threading.Thread(target=lambda: asyncio.run(_watch(run.id, port)), daemon=True)
    page.start()
    _until(lambda: _step(run.id) >= FIRST)
    before = _others(worker, database, web)
    _until(lambda: _step(run.id) >= config.training.steps)
    after = _others(worker, database, web)
    _until(lambda: not Run.objects.get(id=run.id).is_active)
    page.join(10)
    totals = dict(
        Point.objects.filter(run_id=run.id, series__name="speed/cpu_seconds_total").values_list(
            "step", "value"
        )
    )
    spent = {name: after[name] - before[name] for name in before}
    return totals[max(totals)] - totals[FIRST], spent


def _others(worker: int, database: int, web: int) -> dict[str, float]:
    """CPU seconds so far of everything but the trainer, which is the pool child's child."""
    pool = parts.children(worker)
    return {
        "worker": parts.own_cpu_seconds(worker) + sum(parts.own_cpu_seconds(pid) for pid in pool),
        "PostgreSQL": parts.cpu_seconds(database),
        "site": parts.own_cpu_seconds(web),
    }


def _step(run_id: int) -> int:
    from webapp.runs.models import Run

    return Run.objects.values_list("step", flat=True).get(id=run_id)


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 1800
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"It did not happen within 30 minutes; see {parts.FOLDER.logs}")
        time.sleep(1)


async def _watch(run_id: int, port: int) -> None:
    from benchmarks.viewers import follow

    async for _ in follow(run_id, port):
        pass


if __name__ == "__main__":
    main()
