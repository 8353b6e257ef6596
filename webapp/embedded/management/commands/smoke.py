from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS, ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from webapp.embedded import processes, smoke
from webapp.embedded.errors import EmbeddedError
from webapp.embedded.folder import DataFolder
from webapp.embedded.stack import REPOSITORY, STEPS, Interrupted, Stack
from webapp.embedded.terminal import Terminal

RUN_SECONDS = 300.0
END_SECONDS = 60.0


class Command(BaseCommand):
    help = "The demo without a browser, in a temporary data folder, until its run has some steps."
    requires_system_checks = []  # noqa: RUF012 (as Django declares it)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--steps", type=int, default=5, help="how many steps to wait for (default: 5)")
        # The stack runs in a process of its own, so that what it leaves behind can be judged after its end.
        parser.add_argument("--report", type=Path, help=SUPPRESS)

    def handle(self, *_args: object, steps: int, report: Path | None, **_options: Any) -> None:  # Django's
        if report is None:
            self._judge(steps)
        else:
            self._run(steps, report)

    def _judge(self, steps: int) -> None:
        """Start the stack in a fresh folder, wait for its end, and see what it reported and what it left."""
        temporary = Path(tempfile.mkdtemp(prefix="arborist-smoke-"))
        # The database's user must be able to pass, when we are root.
        temporary.chmod(0o711)
        folder = DataFolder.at(temporary / "data")
        report = temporary / "report.json"
        status = self._run_apart(folder, steps, report)
        wrong = [] if status == 0 else [f"the stack ended with exit status {status}"]
        wrong += [f"{thing} was left" for thing in smoke.what_is_left(folder)]
        if wrong:
            wrong.append(f"the data folder is kept for a look: {folder.root}")
        for sentence in wrong:
            self.stderr.write(f"smoke: {sentence}")
        if report.exists():
            self.stdout.write(report.read_text(encoding="utf-8").strip())
            report.unlink()
        if wrong:
            sys.exit(1)
        folder.remove()
        temporary.rmdir()

    def _run_apart(self, folder: DataFolder, steps: int, report: Path) -> int:
        """The stack in a process of its own, to its end. Returns the exit status."""
        ours = ("ARBORIST_DATABASE_URL", "ARBORIST_BROKER_URL", "ARBORIST_SECRET_KEY")
        env = {name: value for name, value in os.environ.items() if name not in ours}
        env["ARBORIST_DATA_DIR"] = str(folder.root)
        arguments = ["manage.py", "smoke", "--steps", str(steps), "--report", str(report)]
        # If we are killed the stack gets a SIGTERM, and stops in order.
        command = processes.guarded([sys.executable, *arguments], death_signal=signal.SIGTERM)
        with subprocess.Popen(command, cwd=REPOSITORY, env=env) as stack:
            # Ctrl-C reaches the stack by itself; a SIGTERM may be for us alone.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, lambda *_: stack.terminate())
            return stack.wait()

    def _run(self, steps: int, report: Path) -> None:
        terminal = Terminal(steps=len(STEPS) + 1)
        stack = Stack(DataFolder.at(settings.DATA_DIR), terminal, show_logs=False)
        began = time.monotonic()
        try:
            with stack.running():
                figures, reason = self._figures(stack, steps, began)
        except Interrupted:
            raise CommandError("interrupted") from None
        except EmbeddedError as error:
            raise CommandError(str(error)) from None
        report.write_text(figures.as_json() + "\n", encoding="utf-8")
        if wrong := figures.what_is_wrong(steps):
            raise CommandError("; ".join(wrong) + (f" ({reason})" if reason else ""))

    def _figures(self, stack: Stack, steps: int, began: float) -> tuple[smoke.Figures, str]:
        """The run's figures, and its own words on why it ended."""
        # These speak to the database, which is up only now.
        from webapp.accounts.models import ApiToken
        from webapp.accounts.services import create_token
        from webapp.embedded import demo

        def look(run: dict[str, object]) -> bool:
            stack.tick()
            stack.terminal.status(demo.describe(run))
            return bool(stack.interrupts)

        content = demo.prepare(stack)
        token = create_token(content.admin, "smoke", ApiToken.Scope.CONTROL, days=1)
        client = smoke.Client(stack.url, token)
        smoke.wait_for_steps(client, content.run_id, steps, RUN_SECONDS, look=look)
        if not stack.interrupts and client.get(f"/runs/{content.run_id}")["status"] not in smoke.ENDED:
            client.post(f"/runs/{content.run_id}/stop")
            smoke.wait_for_end(client, content.run_id, END_SECONDS, look=look)
        figures = smoke.read_figures(client, content.run_id, time.monotonic() - began)
        return figures, client.get(f"/runs/{content.run_id}")["reason"]
