from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from webapp.accounts.models import User
from webapp.accounts.services import create_login_link
from webapp.projects.access import Role
from webapp.projects.demo import ensure_tiny_reasoner
from webapp.projects.models import Membership, Project


class Command(BaseCommand):
    help = "Make a user, put them into a project if one is named, and print a login link."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user")
        parser.add_argument("--project", help="slug; the project is made when it does not exist")
        parser.add_argument("--role", choices=Role.values, default=Role.VIEWER.value)

        parser.add_argument("--operator", action="store_true", help="may drain workers")

    @transaction.atomic
    def handle(self, *_args: Any, **options: Any) -> None:
        user = User(username=options["user"], is_staff=options["operator"])
        user.set_unusable_password()
        try:
            user.full_clean()
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        user.save()
        if options["project"]:
            project = Project.objects.filter(slug=options["project"]).first()
            if project is None:
                project = Project(slug=options["project"], name=options["project"])
                try:
                    project.full_clean()
                except ValidationError as error:
                    raise CommandError(" ".join(error.messages)) from error
                project.save()
                ensure_tiny_reasoner()
            Membership.objects.create(project=project, user=user, role=options["role"])
        self.stdout.write(create_login_link(user))
