"""The resource classes there are: what a run may ask for, and what workers serve."""

from __future__ import annotations

from typing import get_args

from trainer.schema.training import QueueName

CLASSES: tuple[str, ...] = get_args(QueueName)


def is_class(queue: str) -> bool:
    """Whether runs wait in `queue`; workers also serve queues of exports and probes."""
    return queue in CLASSES


def start_hint(queue: str) -> str:
    """The command that starts a worker of the class."""
    return f"celery --app workers.celery:app worker --pool prefork --concurrency 1 --queues {queue}"
