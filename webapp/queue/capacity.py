"""Whether any worker that is there has what a run asks for: asked before the run is queued, since it would
wait for ever.
"""

from __future__ import annotations

from datetime import timedelta

from django.db.models.functions import Now

from webapp.errors import bad_field
from webapp.limits import SERVING_WORKER_SECONDS
from webapp.runs.models import Worker


def check_capacity(queue: str, processes: int, engines: int = 0) -> None:
    """Raise RequestError(400) if workers serve the class and none of them has a processor, or of a GPU class
    a GPU, for each of the run's processes: of those that train, and of the engine processes beside them.
    Without a worker, or with one that could not look, nothing is known and the run may wait. One query, for a
    run of several processes.
    """
    is_gpu = queue.startswith("gpu")
    asked = processes + engines
    if asked == 1:
        return
    lately = Now() - timedelta(seconds=SERVING_WORKER_SECONDS)
    seen = Worker.objects.filter(heartbeat_at__gte=lately, drain_at__isnull=True).order_by("name")
    serving = [worker for worker in seen if queue in worker.queues.split(",")]
    offers = [_offer(worker, is_gpu=is_gpu) for worker in serving]
    known = [offer for offer in offers if offer is not None]
    if len(known) < len(serving) or not known or max(known) >= asked:
        return
    kind = "GPU" if is_gpu else "processor"
    most = max(known)
    workers = (
        f"the only worker of class {queue} has"
        if len(known) == 1
        else (f"the largest of the {len(known)} workers of class {queue} has")
    )
    field, who = "resources.processes", f"{processes} processes"
    instead = f"Set resources.processes {most}" if most else "Choose another class"
    if engines:
        field, who = "resources.engine_processes", f"The run's {asked} processes, {engines} of them engines,"
        instead = "Set fewer"
    raise bad_field(
        field,
        f"{who} need a {kind} each, and {workers} {most}. {instead}, or start a worker on a larger machine.",
    )


def _offer(worker: Worker, *, is_gpu: bool) -> int | None:
    """Processors or GPUs of its machine; None: not known."""
    machine = worker.machine
    if not is_gpu:
        cpus = machine.get("cpus")
        return int(cpus) if cpus else None
    if "gpus" not in machine or machine.get("gpu_trouble"):
        return None
    return len(machine["gpus"])
