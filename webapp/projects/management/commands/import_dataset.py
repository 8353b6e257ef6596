from __future__ import annotations

import os
import shutil
from hashlib import file_digest
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.text import slugify
from pydantic import ValidationError as ConfigInvalid

from trainer.data import DataError, DatasetReport, RowForm, load_data, validate_jsonl
from trainer.schema.data import HubData, JsonlData, ParquetData
from webapp.embedded.terminal import visible
from webapp.projects.models import Dataset, Project

SHOWN_BAD_ROWS = 20


class Command(BaseCommand):
    help = (
        "Check a JSONL or Parquet file, keep a copy in the data folder, and let a project train on it. "
        "With --hub, a data set by its name, read by `datasets` on the workers."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="slug")
        parser.add_argument("file", help="a .jsonl or .parquet file; with --hub a data set's name")
        parser.add_argument("--name", help="what people see (default: the file's name)")
        parser.add_argument("--hub", action="store_true", help="FILE is the name of a data set")
        parser.add_argument("--subset", default="", help="with --hub: its configuration")
        parser.add_argument("--split", default="train", help="with --hub: which part (default: train)")
        parser.add_argument("--question-column", default="question")
        parser.add_argument("--answer-column", default="answer")
        parser.add_argument("--answer-form", choices=("gsm8k", "plain"), default="gsm8k")

    def handle(self, *_args: Any, **options: Any) -> None:
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            known = ", ".join(Project.objects.values_list("slug", flat=True)[:20]) or "none yet"
            raise CommandError(f"There is no project {options['project']!r}. Known: {known}.")
        columns = {name: options[name] for name in ("question_column", "answer_column", "answer_form")}
        try:
            if options["hub"]:
                spec: HubData | JsonlData | ParquetData = HubData(
                    name=options["file"], subset=options["subset"], split=options["split"], **columns
                )
                name, rows, digest, skipped = options["file"], None, "", 0
            elif options["file"].endswith(".parquet"):
                spec, rows, digest = self._parquet(Path(options["file"]), columns)
                name, skipped = Path(options["file"]).stem, 0
            else:
                source = Path(options["file"])
                report = self._jsonl(source, columns)
                spec = JsonlData(path=str(keep(source, report.sha256, "jsonl")), **columns)
                name, rows, digest, skipped = source.stem, report.rows, report.sha256, report.bad_rows
        except (DataError, ConfigInvalid) as error:
            raise CommandError(visible(str(error))) from error
        name = options["name"] or name
        dataset = Dataset(
            project=project,
            name=name,
            slug=slugify(name)[:64] or digest[:12] or "data",
            spec=spec.model_dump(mode="json"),
            n_problems=rows,
            sha256=digest,
        )
        try:
            dataset.full_clean()
        except ValidationError as error:
            raise CommandError(f"{' '.join(error.messages)} Choose another --name.") from error
        dataset.save()
        told = f"{rows:,} problems" if rows is not None else "a data set"
        self.stdout.write(f"imported {told} as {dataset.slug}" + (f", {skipped} skipped" if skipped else ""))

    def _jsonl(self, source: Path, columns: dict[str, str]) -> DatasetReport:
        """Read the whole file. Raises DataError."""
        form = RowForm(
            question=columns["question_column"],
            answer=columns["answer_column"],
            is_gsm8k=columns["answer_form"] == "gsm8k",
        )
        report = validate_jsonl(source, form)
        for number, message in report.bad[:SHOWN_BAD_ROWS]:
            self.stderr.write(visible(f"line {number}: {message}"))
        if report.bad_rows > SHOWN_BAD_ROWS:
            self.stderr.write(f"and {report.bad_rows - SHOWN_BAD_ROWS} more rows that cannot be used")
        return report

    def _parquet(self, source: Path, columns: dict[str, str]) -> tuple[ParquetData, int, str]:
        """Read the whole file, as a run would. Raises DataError."""
        data = load_data(ParquetData(path=str(source), **columns), seed=0, evaluation_problems=1)
        for warning in data.warnings:
            self.stderr.write(visible(warning))
        digest = file_sha256(source)
        spec = ParquetData(path=str(keep(source, digest, "parquet")), **columns)
        return spec, data.training.count or 0, digest


def file_sha256(source: Path) -> str:
    """Hash of a file's bytes."""
    with source.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def keep(source: Path, digest: str, suffix: str) -> Path:
    """A copy of the file under its own hash, so that what a run was trained on never changes."""
    folder = Path(settings.DATA_DIR) / "datasets"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = folder / f"{digest}.{suffix}"
    if not kept.exists():
        new = folder / f"{digest}.{os.getpid()}.new"
        shutil.copyfile(source, new)
        new.replace(kept)
    return kept
