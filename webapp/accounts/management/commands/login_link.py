from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from webapp.accounts.models import User
from webapp.accounts.services import create_login_link


class Command(BaseCommand):
    help = "Print a link that logs a user in once, within an hour."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", nargs="?", default="admin", help="user name (default: admin)")
        parser.add_argument(
            "--site", default="", help="what to put before the path, as in https://arborist.example"
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["user"], is_active=True).first()
        if user is None:
            raise CommandError(
                f"There is no active user {options['user']!r}. `manage.py create_user` makes one."
            )
        self.stdout.write(options["site"].rstrip("/") + create_login_link(user))
