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
    help = "Run the site on this machine: database, broker, web, sweeper and worker, until Ctrl-C."
    # The database is not up yet.
    requires_system_checks = []  # noqa: RUF012 (as Django declares it)

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, help="of 127.0.0.1; by default the first free one from 8000")
        parser.add_argument(
            "--quiet-logs", action="store_true", help="show only log lines that need attention"
        )

    def handle(self, *_args: object, port: int | None, quiet_logs: bool, **_options: Any) -> None:  # Django's
        terminal = Terminal(steps=len(STEPS))
        stack = Stack(DataFolder.at(settings.DATA_DIR), terminal, port=port, show_logs=not quiet_logs)
        try:
            with stack.running():
                terminal.say(f"Arborist is up: {stack.url}  (Ctrl-C stops it)")
                from webapp.accounts.models import User  # the database is up only now

                if not User.objects.exists():
                    terminal.say(
                        "There is no user yet. In another shell, with the same ARBORIST_DATA_DIR:\n"
                        "  .venv/bin/python manage.py create_user ada --project lab --role admin\n"
                        "makes one, and the project, and prints a login link."
                    )
                stack.watch()
        except Interrupted:
            return
        except EmbeddedError as error:
            raise CommandError(str(error)) from None
