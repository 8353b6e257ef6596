from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from webapp.search.indexer import forget_all, index_all, is_caught_up


class Command(BaseCommand):
    help = "Index the texts of all recorded nodes for the search now, instead of waiting for the sweeper."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--again", action="store_true", help="empty the index first")

    def handle(self, *_: Any, **options: Any) -> None:
        """`Any`: what Django passes on."""
        if options["again"]:
            forget_all()
        written = index_all()
        rest = "" if is_caught_up() else "; another process indexes the rest"
        self.stdout.write(f"{written:,} nodes indexed{rest}")
