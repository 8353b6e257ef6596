from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from webapp.accounts.models import ApiToken, User
from webapp.accounts.services import create_token


class Command(BaseCommand):
    help = "Make a bearer token for the API and print it. It is shown this once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="user name; the token may do what this user may")
        parser.add_argument("--scope", choices=ApiToken.Scope.values, default=ApiToken.Scope.READ.value)
        parser.add_argument("--name", default="command line", help="what it is for, to tell tokens apart")
        parser.add_argument(
            "--days", type=int, default=None, help="it ends after so many days (default: never)"
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["user"], is_active=True).first()
        if user is None:
            raise CommandError(
                f"There is no active user {options['user']!r}. `manage.py create_user` makes one."
            )
        if options["days"] is not None and options["days"] < 1:
            raise CommandError(f"--days {options['days']} is in the past. Use 1 or more.")
        if not 0 < len(options["name"]) <= 80:
            raise CommandError(f"--name has {len(options['name'])} letters. Use 1 to 80.")
        scope = ApiToken.Scope(options["scope"])
        self.stdout.write(create_token(user, options["name"], scope, days=options["days"]))
