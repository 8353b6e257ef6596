from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from webapp.projects.models import ModelSource


class Command(BaseCommand):
    help = "Let runs start from a model: a folder on the workers' disks. Configs name it by its slug."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug")
        parser.add_argument("folder", type=Path, help="absolute; with config.json, tokenizer and safetensors")
        parser.add_argument("--name", help="what people see (default: the slug)")

    def handle(self, *_args: Any, **options: Any) -> None:
        folder: Path = options["folder"]
        if not folder.is_absolute():
            raise CommandError(f"{folder} is not absolute. Give the whole path, as workers see it.")
        if not folder.exists():
            self.stderr.write(f"{folder} is not on this machine; it must be on every worker's.")
        elif not any(folder.glob("*.safetensors")):
            raise CommandError(f"{folder} has no *.safetensors file; other weights are never loaded.")
        source = ModelSource(slug=options["slug"], name=options["name"] or options["slug"], path=str(folder))
        try:
            source.full_clean()
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        source.save()
        self.stdout.write(f"runs may start from {source.slug}")
