from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from webapp.embedded.errors import EmbeddedError
from webapp.embedded.folder import DataFolder
from webapp.embedded.stack import STEPS, Interrupted, Stack
from webapp.embedded.terminal import Terminal


class Command(BaseCommand):
    help = "Run the site with a demo project and a TreeRPO run that starts at once, until Ctrl-C."
    requires_system_checks = []  # noqa: RUF012 (as Django declares it)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, help="of 127.0.0.1; by default the first free one from 8000")
        parser.add_argument("--logs", action="store_true", help="show every log line, not only alarming ones")

    def handle(self, *_args: object, port: int | None, logs: bool, **_options: Any) -> None:  # Django's
        terminal = Terminal(steps=len(STEPS) + 1)
        stack = Stack(DataFolder.at(settings.DATA_DIR), terminal, port=port, show_logs=logs)
        try:
            with stack.running():
                # Speaks to the database, which is up only now.
                from webapp.embedded import demo

                content = demo.prepare(stack)
                terminal.say("")
                terminal.say("  Log in with this link; it works once, within an hour:")
                terminal.say(f"  {demo.login_url(stack, content)}")
                terminal.say("")
                terminal.say("  Ctrl-C stops everything, and the next 'make demo' goes on from there.")
                terminal.say(f"  The logs are in {stack.folder.logs}")
                terminal.say("")
                stack.watch(demo.StatusLine(stack, content.run_id))
        except Interrupted:
            return
        except EmbeddedError as error:
            raise CommandError(str(error)) from None
