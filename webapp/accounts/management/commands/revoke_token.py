from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from webapp.accounts.models import User
from webapp.accounts.services import revoke_tokens


class Command(BaseCommand):
    help = "Revoke a user's API tokens by the first letters, at once."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user")
        parser.add_argument(
            "prefix", help="the first letters of the token, `arb_` included; `arb_` alone means all"
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        user = User.objects.filter(username=options["user"]).first()
        if user is None:
            raise CommandError(f"There is no user {options['user']!r}.")
        if not options["prefix"].startswith("arb_"):
            raise CommandError(f"{options['prefix'][:12]!r} does not start with arb_, as every token does.")
        count = revoke_tokens(user, options["prefix"][:12])
        self.stdout.write(f"revoked {count} token{'' if count == 1 else 's'}")
