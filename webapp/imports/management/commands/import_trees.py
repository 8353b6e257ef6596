from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from webapp.accounts.models import User
from webapp.embedded.terminal import visible
from webapp.errors import RequestError
from webapp.imports.reading import import_trees, told
from webapp.projects.models import Membership, Project


class Command(BaseCommand):
    help = "Import trees from a JSONL file (docs/exports.md) as a run of their own: all of them, or none."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", help="a .jsonl file, one tree per line")
        parser.add_argument("--project", required=True, help="slug")
        parser.add_argument("--run", help="what people see (default: the file's name)")
        parser.add_argument("--user", help="whose import it is (default: the project's first admin)")

    def handle(self, *_args: Any, **options: Any) -> None:
        """`Any`: what Django passes on."""
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            known = ", ".join(Project.objects.values_list("slug", flat=True)[:20]) or "none yet"
            raise CommandError(f"There is no project {options['project']!r}. Known: {known}.")
        source = Path(options["file"])
        try:
            with source.open("rb") as stream:
                done = import_trees(
                    project,
                    self._user(project, options["user"]),
                    stream,
                    name=options["run"] or source.stem,
                    file=source.name,
                )
        except OSError as error:
            raise CommandError(f"{source} cannot be read: {error.strerror}.") from error
        except RequestError as refused:
            others = [f"  {error['message']}" for error in refused.errors[1:]]
            raise CommandError("\n".join(map(visible, [refused.detail, *others]))) from refused
        self.stdout.write(visible(told(done)))

    def _user(self, project: Project, name: str | None) -> User:
        if name is not None:
            user = User.objects.filter(username=name).first()
            if user is None:
                raise CommandError(f"There is no user {name!r}.")
            return user
        admins = Membership.objects.filter(project=project, role=Membership.Role.ADMIN).order_by("id")
        first = admins.select_related("user").first()
        if first is None:
            raise CommandError(f"{project.slug} has no admin. Say whose import it is with --user.")
        return first.user
