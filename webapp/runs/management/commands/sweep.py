from __future__ import annotations

import signal
import threading
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from webapp.exports.sweeper import sweep_exports
from webapp.imports.sweeper import sweep_imports
from webapp.runs.leftovers import end_leftovers
from webapp.runs.sweeper import sweep, sweep_until
from webapp.saved.alerts import look_for_news
from webapp.search.indexer import Indexer
from webapp.verifications.sweeper import sweep_verifications


class Command(BaseCommand):
    help = (
        "Bring back runs whose worker was lost, and runs that nobody was told of; index texts for the "
        "search. Runs until it is stopped."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--once", action="store_true", help="one round, then leave")

    def handle(self, *_: Any, **options: Any) -> None:
        """`Any`: what Django passes on."""
        if options["once"]:
            swept = sweep()
            sweep_exports()
            sweep_imports()
            sweep_verifications()
            end_leftovers()
            self.stdout.write(f"{swept.lost} lost, {swept.sent} sent")
            return
        leave = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: leave.set())
        Indexer(leave, then=look_for_news).start()
        sweep_until(leave.wait, (sweep_exports, sweep_imports, sweep_verifications, end_leftovers))
