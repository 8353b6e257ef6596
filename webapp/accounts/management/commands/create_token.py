from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from webapp.accounts.models import ApiToken, User
from webapp.accounts.services import create_token
from webapp.limits import MAX_TOKEN_DAYS, TOKEN_DAYS
from webapp.projects.access import projects_for


class Command(BaseCommand):
    help = "Make a bearer token for the API and print it. It is shown this once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="user name; the token may do what this user may")
        parser.add_argument(
            "--scope",
            nargs="+",
            choices=ApiToken.Scope.values,
            default=[ApiToken.Scope.READ.value],
            help="one or more; reading is always among them",
        )
        parser.add_argument("--project", help="slug; the token is good for this project alone")
        parser.add_argument("--name", default="command line", help="what it is for, to tell tokens apart")
        told = f"it ends after so many days, {MAX_TOKEN_DAYS} at most (default: {TOKEN_DAYS})"
        parser.add_argument("--days", type=int, default=TOKEN_DAYS, help=told)

    def handle(self, *_args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["user"], is_active=True).first()
        if user is None:
            raise CommandError(
                f"There is no active user {options['user']!r}. `manage.py create_user` makes one."
            )
        if not 1 <= options["days"] <= MAX_TOKEN_DAYS:
            raise CommandError(f"--days is {options['days']}. Use 1 to {MAX_TOKEN_DAYS}.")
        if not 0 < len(options["name"]) <= 80:
            raise CommandError(f"--name has {len(options['name'])} letters. Use 1 to 80.")
        project = None
        if options["project"]:
            project = projects_for(user).filter(slug=options["project"]).first()
            if project is None:
                raise CommandError(f"{user.username} is in no project {options['project']!r}.")
        scopes = [ApiToken.Scope(scope) for scope in options["scope"]]
        bound = None if project is None else project.id
        self.stdout.write(
            create_token(user, options["name"], *scopes, days=options["days"], project_id=bound)
        )
