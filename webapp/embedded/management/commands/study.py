from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from webapp.embedded.demo import duration
from webapp.embedded.errors import EmbeddedError
from webapp.embedded.folder import DataFolder
from webapp.embedded.stack import REPOSITORY, STEPS, Interrupted, Stack
from webapp.embedded.terminal import Terminal
from webapp.study import plan
from webapp.study.plan import CREDITS, SAMPLINGS, TASKS, Cell
from webapp.study.report import choose_update_tokens, figure, overview, tables, tuning_tables
from webapp.study.results import Result, append_result, read_results

FOLDER = REPOSITORY / "docs" / "study"
BEGIN, END = "<!-- figures: written by make study -->", "<!-- end of figures -->"
OVERVIEW = (
    "Samplings against flat, over all credits; credits against trajectory (GRPO), over all samplings; paired "
    "by seed. Bold: the 95 % interval leaves out 0, as one in twenty does by chance."
)
WARMUP_SECONDS = 3600.0


class Command(BaseCommand):
    help = (
        "Sampling x credit x task, as ordinary runs; goes on where it was. Then docs/study is written anew."
    )
    requires_system_checks = []  # noqa: RUF012 (as Django declares it)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
        parser.add_argument("--samplings", nargs="+", choices=SAMPLINGS, default=list(SAMPLINGS))
        parser.add_argument("--credits", nargs="+", choices=CREDITS, default=list(CREDITS))
        parser.add_argument("--seeds", type=int, default=5, help="seeds per cell (default: 5)")
        parser.add_argument("--tokens", type=int, default=plan.TOKENS_PER_RUN, help="generated in every run")
        parser.add_argument("--at-once", type=int, default=2, help="runs side by side (default: 2)")
        parser.add_argument("--minutes", type=float, help="stop after so long; a later call goes on")
        parser.add_argument("--report", action="store_true", help="run nothing, write the pages anew")

    def handle(self, *_args: object, **options: Any) -> None:  # Django's
        results = FOLDER / "results.jsonl"
        if not options["report"]:
            terminal = Terminal(steps=len(STEPS) + 1)
            stack = Stack(
                DataFolder.at(settings.DATA_DIR), terminal, show_logs=False, runs_at_once=options["at_once"]
            )
            try:
                with stack.running():
                    _Study(stack, results, options).conduct()
            except Interrupted:
                raise CommandError("interrupted; the same command goes on") from None
            except EmbeddedError as error:
                raise CommandError(str(error)) from None
        written = write_pages(read_results(results).values())
        self.stdout.write(f"wrote {', '.join(written)}")


def write_pages(results: Iterable[Result]) -> list[str]:
    """Tables into docs/study/README.md between its marks, one SVG per task beside it. Returns file names."""
    results = list(results)
    page = FOLDER / "README.md"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    body, written = f"### All tasks\n\n{OVERVIEW}\n\n{overview(results)}\n{tables(results)}", [page.name]
    for slug in TASKS:
        if drawing := figure(results, slug):
            (FOLDER / f"{slug}.svg").write_text(drawing, encoding="utf-8")
            written.append(f"{slug}.svg")
            body = f"{body}\n![{slug}: mean accuracy of every method]({slug}.svg)\n"
    body = f"{body}\n{tuning_tables(results)}"
    page.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after}", encoding="utf-8")
    return written


class _Study:
    """The runs that are still missing, a few at a time."""

    def __init__(self, stack: Stack, results: Path, options: dict[str, Any]) -> None:
        # These speak to the database, which is up only now.
        from webapp.study import harvest

        self.stack, self.results, self.options = stack, results, options
        self.harvest = harvest
        settings.SECRET_KEY = stack.secret_key
        with stack.terminal.step("project"):
            self.owner = harvest.ensure_owner()
        minutes = options["minutes"]
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")

    def conduct(self) -> None:
        """First tuning on one seed, then all seeds at what tuning chose."""
        tasks = [TASKS[slug] for slug in self.options["tasks"]]
        for errors in dict.fromkeys(task.errors for task in tasks):
            self._ensure_model(errors)
        chosen = self.options["samplings"], self.options["credits"]
        self._run("tuning", list(plan.tuning_cells(tasks, *chosen)))
        tuned = {
            key: tokens
            for key, tokens in choose_update_tokens(self._known()).items()
            if key[0] in self.options["tasks"] and key[1] in chosen[0] and key[2] in chosen[1]
        }
        self._run("study", list(plan.final_cells(tuned, self.options["seeds"])))

    def _known(self) -> list[Result]:
        return list(read_results(self.results).values())

    def _run(self, stage: str, cells: Sequence[Cell]) -> None:
        """Queue the cells without a result, as many as run at once and one more; wait for them."""
        tokens = self.options["tokens"]
        known = read_results(self.results)
        waiting = [cell for cell in cells if plan.identity(plan.config(cell, tokens)) not in known]
        total, done, began = len(waiting), 0, time.monotonic()
        under_way: dict[int, Cell] = {}
        while (waiting or under_way) and not self.stack.interrupts:
            is_over = time.monotonic() > self.deadline
            while waiting and not is_over and len(under_way) <= self.options["at_once"]:
                cell = waiting.pop(0)
                under_way[self.harvest.ensure_run(self.owner, cell, tokens).id] = cell
            for run, cell in self._ended(under_way):
                del under_way[run]
                done += 1
                self._keep(run, cell)
            if is_over and not under_way:
                self.stack.terminal.say(f"{stage}: the time is over; {len(waiting)} runs are left for later")
                return
            spent = time.monotonic() - began
            left = f", {duration(spent / done * (total - done))} left" if done else ""
            self.stack.terminal.status(f"{stage}: {done} of {total} runs{left}")
            self.stack.watch(until=_After(1.0))
        if self.stack.interrupts:
            raise Interrupted
        if total:
            self.stack.terminal.say(f"{stage}: {total} runs done")

    def _ended(self, under_way: dict[int, Cell]) -> list[tuple[int, Cell]]:
        from webapp.runs.models import Run

        ended = Run.objects.filter(id__in=under_way, ended_at__isnull=False).values_list("id", flat=True)
        return [(run, under_way[run]) for run in ended]

    def _keep(self, run_id: int, cell: Cell) -> None:
        from webapp.runs.models import Run

        run = Run.objects.get(id=run_id)
        try:
            append_result(self.results, self.harvest.harvest(run, cell))
        except ValueError as error:
            reason = run.events.order_by("-seq").values_list("body", flat=True).first()
            self.stack.terminal.say(f"run {run.id} has no result: {error} Its last event: {reason}")

    def _ensure_model(self, errors: plan.Errors) -> None:
        """A task whose start policy is not the one that is shipped makes its own, once."""
        slug = plan.MODELS[errors]
        if errors == "uniform":
            return
        folder = self.stack.folder.root / "study" / slug
        if not (folder / "warmup.json").exists():
            self.stack.terminal.say(f"making the start policy {slug} (about ten minutes, once)")
            argv = [sys.executable, "-m", "trainer.warmup", "--output", str(folder), "--seed", "0"]
            log = self.stack.folder.logs / f"{slug}.log"
            with log.open("ab") as stream:
                made = subprocess.Popen(
                    [*argv, "--errors", errors],
                    cwd=REPOSITORY,
                    stdout=stream,
                    stderr=stream,
                    env=_one_thread(),
                )
                began = time.monotonic()
                while made.poll() is None and not self.stack.interrupts:
                    self.stack.terminal.status(f"{slug}: {duration(time.monotonic() - began)}")
                    self.stack.watch(until=_After(1.0))
                    if time.monotonic() - began > WARMUP_SECONDS:
                        made.kill()
                if made.poll() is None:
                    made.terminate()
                    made.wait()
                    raise Interrupted
            if made.returncode:
                raise EmbeddedError(f"The start policy {slug} could not be made; {log} says why.")
        self.harvest.ensure_model(slug, str(folder))


class _After:
    """True once so many seconds are over."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def __call__(self) -> bool:
        return time.monotonic() >= self._end


def _one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
