"""What may be asked of a worker. A message holds the id of a run, an export or a probe and is a hint: twice,
late or never.
"""

from __future__ import annotations

import logging
from typing import Any, TypeGuard

from django.db import InterfaceError, OperationalError, connections

from webapp import broker
from workers import exports, lease, probing
from workers.celery import app, leaving, urgency
from workers.supervisor import supervise

logger = logging.getLogger(__name__)


@app.task(name=broker.TRAIN_RUN, bind=True, ignore_result=True)  # type: ignore[untyped-decorator] # Celery
def train_run(self: Any, run_id: object) -> None:
    """Work on the run, if it waits for a worker. `Any`: Celery's task instance has no types."""
    if not _is_id(run_id, "run") or leaving.is_set():
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
    supervise(held, told_to_leave=urgency)


@app.task(name=broker.WRITE_EXPORT, bind=True, ignore_result=True)  # type: ignore[untyped-decorator] # Celery
def write_export(self: Any, export_id: object) -> None:
    """Write the export's file, if it waits for a worker. `Any`: see `train_run`."""
    if not _is_id(export_id, "export") or leaving.is_set():
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


@app.task(name=broker.SAMPLE_PROBE, bind=True, ignore_result=True)  # type: ignore[untyped-decorator] # Celery
def sample_probe(self: Any, probe_id: object) -> None:
    """Sample the probe, if it waits for a worker."""
    if not _is_id(probe_id, "probe") or leaving.is_set():
        return
    try:
        held = probing.claim(probe_id, self.request.hostname or "worker")
    except (OperationalError, InterfaceError) as error:
        logger.warning("Probe %s waits for the sweeper: the database does not answer (%s).", probe_id, error)
        return
    finally:
        connections.close_all()
    if held is None:
        logger.info("Probe %s does not wait for a worker; nothing to do.", probe_id)
        return
    probing.sample(held, told_to_leave=leaving.is_set)


def _is_id(value: object, what: str) -> TypeGuard[int]:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63:
        return True
    logger.warning("A message names the %s %.80r, which is no id; it is dropped.", what, value)
    return False
