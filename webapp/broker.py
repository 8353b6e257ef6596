"""The queue as the web sees it: task names and a producer. It sends hints; the run row is the job.

Nothing here waits longer than a second, so a broker that is dead or frozen costs a web request no more than
that, and what could not be sent the sweeper sends later.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from celery import Celery
from django.conf import settings
from kombu.exceptions import KombuError
from redis import RedisError

TRAIN_RUN = "arborist.train_run"
WRITE_EXPORT = "arborist.write_export"
READ_IMPORT = "arborist.read_import"
SAMPLE_PROBE = "arborist.sample_probe"
VERIFY_ANSWER = "arborist.verify_answer"
VERIFY_QUEUE = "probes.cpu"  # judging needs no GPU, and nobody waits behind a run
EXPORT_QUEUE = "exports"  # of exports and imports: a run may keep a worker busy for days
TIMEOUT_SECONDS = 1.0
UNREACHABLE = (KombuError, RedisError, OSError)

logger = logging.getLogger(__name__)


def celery_url(url: str) -> str:
    """A broker's URL as Celery reads it: `unix:///path`, redis-py's word for a socket, is
    `redis+socket:///path`.
    """
    return "redis+socket://" + url.removeprefix("unix://") if url.startswith("unix://") else url


# What both ends agree on. JSON only, and no results: rows are the result.
MESSAGES: dict[str, Any] = {
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_ignore_result": True,
    "result_backend": None,
    "task_default_queue": "cpu",
    "task_protocol": 2,
    "broker_connection_timeout": TIMEOUT_SECONDS,
}


@lru_cache(maxsize=1)
def _producer(url: str) -> Celery:
    app = Celery("arborist-web", broker=celery_url(url), fixups=[], set_as_current=False)
    app.conf.update(
        MESSAGES,
        broker_transport_options={
            "socket_timeout": TIMEOUT_SECONDS,
            "socket_connect_timeout": TIMEOUT_SECONDS,
            "max_retries": 0,
        },
    )
    return app


def send_train_run(run_id: int, queue: str) -> bool:
    """Tell the workers of `queue` that a run waits. False: the broker did not take it, only logged."""
    return _send(TRAIN_RUN, run_id, queue, "Run")


def send_write_export(export_id: int) -> bool:
    """Tell the workers of exports that one waits. False: the broker did not take it, only logged."""
    return _send(WRITE_EXPORT, export_id, EXPORT_QUEUE, "Export")


def send_read_import(import_id: int) -> bool:
    """Tell them that a file waits to be imported; likewise."""
    return _send(READ_IMPORT, import_id, EXPORT_QUEUE, "Import")


def probe_queue(queue: str) -> str:
    """Where probes of the runs of `queue` wait: apart from runs, so that a long one does not hold them up."""
    return f"probes.{queue}"


def send_sample_probe(probe_id: int, queue: str) -> bool:
    """Tell the workers of `queue`, a `probe_queue`, that a probe waits; likewise."""
    return _send(SAMPLE_PROBE, probe_id, queue, "Probe")


def send_verify_answer(verification_id: int) -> bool:
    """Tell the workers of `VERIFY_QUEUE` that a verification waits; likewise."""
    return _send(VERIFY_ANSWER, verification_id, VERIFY_QUEUE, "Verification")


def _send(task: str, job_id: int, queue: str, what: str) -> bool:
    if not settings.BROKER_URL:
        logger.warning("%s %s waits for the sweeper: ARBORIST_BROKER_URL is not set.", what, job_id)
        return False
    try:
        _producer(settings.BROKER_URL).send_task(
            task, args=[job_id], queue=queue, retry=False, ignore_result=True
        )
    except UNREACHABLE as error:
        logger.warning("%s %s waits for the sweeper: the broker did not take it (%s).", what, job_id, error)
        return False
    return True


def waiting(queue: str) -> int | None:
    """How many messages lie in `queue`; None when the broker does not answer."""
    if not settings.BROKER_URL:
        return None
    try:
        with _producer(settings.BROKER_URL).connection_for_write() as connection:
            return int(connection.default_channel.client.llen(queue))
    except UNREACHABLE:
        return None


def is_reachable() -> bool:
    """Whether the broker answers now."""
    return waiting("cpu") is not None
