"""What may be asked of a worker. A message holds a run's id and is a hint: twice, late or never."""

from __future__ import annotations

import logging
from typing import Any

from django.db import InterfaceError, OperationalError, connections

from webapp import broker
from workers import exports, lease
from workers.celery import app, leaving
from workers.supervisor import supervise

logger = logging.getLogger(__name__)


@app.task(name=broker.TRAIN_RUN, bind=True, ignore_result=True)  # type: ignore[untyped-decorator] # Celery
def train_run(self: Any, run_id: object) -> None:
    """Work on the run, if it waits for a worker. `Any`: Celery's task instance has no types."""
    if not isinstance(run_id, int) or isinstance(run_id, bool) or not 0 < run_id < 2**63:
        logger.warning("A message names the run %.80r, which is no id; it is dropped.", run_id)
        return
    if leaving.is_set():
        return
    try:
        held = lease.claim(run_id, self.request.hostname or "worker")
    except (OperationalError, InterfaceError) as error:
        logger.warning("Run %s waits for the sweeper: the database does not answer (%s).", run_id, error)
        return
    finally:
        connections.close_all()
    if held is None:
        logger.info("Run %s does not wait for a worker; nothing to do.", run_id)
        return
    supervise(held, told_to_leave=leaving.is_set)


@app.task(name=broker.WRITE_EXPORT, bind=True, ignore_result=True)  # type: ignore[untyped-decorator] # Celery
def write_export(self: Any, export_id: object) -> None:
    """Write the export's file, if it waits for a worker. `Any`: see `train_run`."""
    if not isinstance(export_id, int) or isinstance(export_id, bool) or not 0 < export_id < 2**63:
        logger.warning("A message names the export %.80r, which is no id; it is dropped.", export_id)
        return
    if leaving.is_set():
        return
    try:
        held = exports.claim(export_id, self.request.hostname or "worker", leaving.is_set)
        if held is not None:
            exports.work_off(held)
    except (OperationalError, InterfaceError) as error:
        logger.warning(
            "Export %s waits for the sweeper: the database does not answer (%s).", export_id, error
        )
    finally:
        connections.close_all()
