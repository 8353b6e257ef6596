"""The worker's side of the queue: which broker, which rules, and what happens when it starts and stops.

Start one with `celery --app workers.celery:app worker --queues cpu`. It never touches CUDA and trains
nothing: each task supervises a fresh `python -m trainer`.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import signal
from collections.abc import Sequence
from typing import Any

import django
from celery import Celery
from celery.signals import (
    worker_process_init,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")
django.setup()

from django.conf import settings  # noqa: E402 (settings exist now)

from webapp import broker  # noqa: E402
from workers import upkeep  # noqa: E402
from workers.supervisor import trainer_notes  # noqa: E402

# Neither the threads of a connection pool nor its connections are of use in a child that is forked later.
_options: Any = settings.DATABASES["default"]["OPTIONS"]
_options.pop("pool", None)

PR_SET_PDEATHSIG = 1
logger = logging.getLogger(__name__)

# No fix-ups: the one task opens and closes its own database connections, and the parent never has one.
app = Celery("arborist", broker=broker.celery_url(settings.BROKER_URL), fixups=[], include=["workers.tasks"])
app.conf.update(
    broker.MESSAGES,
    worker_pool="prefork",
    worker_concurrency=1,
    # A run may take days: a worker takes the next message when it is free, not before.
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    worker_enable_prefetch_count_reduction=False,
    # Truth is the run row. Late acknowledgement would deliver a long run again after the visibility timeout.
    task_acks_late=False,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,  # a broker out of memory: without this the worker ends
    broker_transport_options={"socket_keepalive": True, "health_check_interval": 10},
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
)


class SharedFlag:
    """One bit in memory that a process shares with the children it forks."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 1)

    def set(self, on: bool = True) -> None:
        self._page[0] = on

    def is_set(self) -> bool:
        return self._page[0] == 1


# Set in the parent when the worker is told to stop; read by the supervisor in the pool's child.
leaving = SharedFlag()
# Set when it is told so once more: there is no time to save.
hurrying = SharedFlag()
# Set by the upkeep when an operator drains this worker: take nothing new; and give back what is worked on.
draining, giving_back = SharedFlag(), SharedFlag()


def urgency() -> int:
    """How urgently whatever is worked on has to leave: 0 not at all, 1 after saving, 2 now."""
    return max(leaving.is_set() + hurrying.is_set(), int(giving_back.is_set()))


def must_leave() -> bool:
    """Whether whatever is worked on has to leave."""
    return urgency() > 0


class Taps:
    """Opens and shuts the worker's queues, so that messages wait for workers that take them. `consumer` is
    Celery's, whose type is private.
    """

    def __init__(self, consumer: Any, queues: Sequence[str]) -> None:
        self.consumer = consumer
        self.queues = queues

    def turn(self, *, shut: bool, give_back: bool) -> None:
        """From any thread; the consumer's own one does it soon."""
        giving_back.set(shut and give_back)
        if shut == draining.is_set():
            return
        draining.set(shut)
        for queue in self.queues:
            do = self.consumer.cancel_task_queue if shut else self.consumer.add_task_queue
            self.consumer.call_soon(do, queue)


def _tell_supervisor(**_: object) -> None:
    if leaving.is_set():
        hurrying.set()
    leaving.set()


def _die_with_parent(**_: object) -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent or parent == 1:
        os._exit(1)


def _begin(sender: object, **_: object) -> None:
    # `sender` is Celery's consumer, whose type is private.
    queues = sorted(queue.name for queue in getattr(getattr(sender, "task_consumer", None), "queues", []))
    slots = getattr(getattr(sender, "controller", None), "concurrency", 1)
    name = getattr(sender, "hostname", "worker")
    upkeep.begin(name, queues, slots, trainer_notes(), Taps(sender, queues).turn)


def _end(**_: object) -> None:
    upkeep.end()


worker_shutting_down.connect(_tell_supervisor)
worker_process_init.connect(_die_with_parent)
worker_ready.connect(_begin)
worker_shutdown.connect(_end)
