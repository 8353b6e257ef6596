from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.text import slugify

from trainer.data import DataError, validate_jsonl
from trainer.schema.data import JsonlData
from webapp.embedded.terminal import visible
from webapp.projects.models import Dataset, Project

SHOWN_BAD_ROWS = 20


class Command(BaseCommand):
    help = "Check a JSONL file in GSM8K form, keep a copy in the data folder, and let a project train on it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="slug")
        parser.add_argument("file", type=Path)
        parser.add_argument("--name", help="what people see (default: the file's name)")

    def handle(self, *_args: Any, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            known = ", ".join(Project.objects.values_list("slug", flat=True)[:20]) or "none yet"
            raise CommandError(f"There is no project {options['project']!r}. Known: {known}.")
        source: Path = options["file"]
        try:
            report = validate_jsonl(source)
        except DataError as error:
            raise CommandError(visible(str(error))) from error
        for number, message in report.bad[:SHOWN_BAD_ROWS]:
            self.stderr.write(visible(f"line {number}: {message}"))
        if report.bad_rows > SHOWN_BAD_ROWS:
            self.stderr.write(f"and {report.bad_rows - SHOWN_BAD_ROWS} more rows that cannot be used")
        name = options["name"] or source.stem
        dataset = Dataset(
            project=project,
            name=name,
            slug=slugify(name)[:64] or report.sha256[:12],
            spec=JsonlData(path=str(keep(source, report.sha256))).model_dump(mode="json"),
            n_problems=report.rows,
            sha256=report.sha256,
        )
        try:
            dataset.full_clean()
        except ValidationError as error:
            raise CommandError(f"{' '.join(error.messages)} Choose another --name.") from error
        dataset.save()
        skipped = f", {report.bad_rows} skipped" if report.bad_rows else ""
        self.stdout.write(f"imported {report.rows:,} problems as {dataset.slug}{skipped}")


def keep(source: Path, sha256: str) -> Path:
    """A copy of the file under its own hash, so that what a run was trained on never changes."""
    folder = Path(settings.DATA_DIR) / "datasets"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = folder / f"{sha256}.jsonl"
    if not kept.exists():
        new = folder / f"{sha256}.{os.getpid()}.new"
        shutil.copyfile(source, new)
        new.replace(kept)
    return kept
