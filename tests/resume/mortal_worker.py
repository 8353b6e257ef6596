"""One attempt in a process of its own, as the pool's child of a worker makes it:
mortal_worker.py RUN PLAN [SCENARIO].

PLAN is a moment of this process or of its trainer ("moment:n"), or "". With a SCENARIO the trainer is
`tests.workers.fake_trainer`.
"""

from __future__ import annotations

import os
import sys

import django

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")
    django.setup()

    from tests.resume.deaths import SUPERVISOR, arm
    from workers import lease, supervisor

    run_id, plan = int(sys.argv[1]), sys.argv[2]
    arm(SUPERVISOR, plan)
    held = lease.claim(run_id, f"w-{os.getpid()}@here")
    if held is None:
        sys.exit(3)
    trainer = (
        ("tests.workers.fake_trainer", sys.argv[3]) if sys.argv[3:] else ("tests.resume.mortal_trainer", plan)
    )
    supervisor.supervise(held, command=(sys.executable, "-m", *trainer))
