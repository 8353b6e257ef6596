"""`python -m trainer` that dies at a moment of its own: mortal_trainer.py PLAN [the trainer's arguments]."""

from __future__ import annotations

import logging
import os
import sys

if __name__ == "__main__":
    from tests.resume.deaths import TRAINER, arm

    plan = sys.argv.pop(1)
    if plan:
        import trainer.loop  # noqa: F401 (what is armed must be there)

        arm(TRAINER, plan)
    from trainer.__main__ import main

    status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
