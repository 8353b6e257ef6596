"""python -m tests.campaign --seed 1 --faults 15

Plays that many faults against the real system and checks all that must hold. Exit status 0: no violation. The
last line is one JSON object with the figures.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from tests.campaign.stack import System, clear_killed, environment_kept


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _leave)
    with environment_kept():
        return _play(options)


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End everything, take the small disks off and delete the folder, once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


def _play(options: argparse.Namespace) -> int:
    began = time.monotonic()

    def say(text: str) -> None:
        print(text, flush=True)  # noqa: T201 (the answer)

    for folder in clear_killed():
        say(f"cleared what a killed campaign left in {folder}")
    system = System()
    say(f"seed {options.seed}, {options.faults} faults, in {system.folder.root}")
    try:
        return _play_in(system, options, say, began)
    except (KeyboardInterrupt, SystemExit):
        system.remove()  # nobody asked for it to be kept, and there is nothing to look at
        raise


def _play_in(system: System, options: argparse.Namespace, say: Callable[[str], None], began: float) -> int:
    with system:
        from tests.campaign.material import begin_django

        begin_django()
        from tests.campaign.checker import check
        from tests.campaign.driver import Campaign, figures, plan
        from tests.campaign.faults import catalogue

        say(f"{system.history.now():6.1f} s  the system is up")
        names = options.only.split(",") if options.only else list(catalogue())
        entries = plan(options.seed, options.faults, names, tuple(options.gap))
        campaign = Campaign(system, options.seed, say)
        campaign.begin(options.steps)
        campaign.wait(30, until=lambda: bool(campaign.leased()))
        campaign.play(entries)
        left, more = campaign.finish(options.finish)
    left.processes_left = [f"process {one.pid} was left when everything had stopped" for one in system.left]
    violations = check(system.history.lines, left)
    found = figures(campaign, left, more) | {
        "violations": [str(one) for one in violations],
        "wall_s": round(time.monotonic() - began, 1),
    }
    for one in violations:
        say(f"VIOLATION  {one}")
    if violations:
        say(
            f"again with: python -m tests.campaign --seed {options.seed} --faults {options.faults}"
            + (f" --only {options.only}" if options.only else "")
        )
        say(f"history, logs and data are kept in {system.folder.root}")
        (system.folder.root / "evidence.json").write_text(
            json.dumps(asdict(left), default=str, skipkeys=True)
        )
    elif options.keep:
        say(f"kept in {system.folder.root}")
    else:
        system.remove()
    if options.figures:
        with Path(options.figures).open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
    say(json.dumps(found))
    return 1 if violations else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the schedule; the same seed is the same schedule"
    )
    parser.add_argument("--faults", type=int, default=15, help="how many")
    parser.add_argument("--only", default="", metavar="F1,F20", help="these faults alone")
    parser.add_argument(
        "--gap", type=float, nargs=2, default=(1.0, 4.0), metavar=("FROM", "TO"), help="seconds between two"
    )
    parser.add_argument("--steps", type=int, default=40, help="of each run")
    parser.add_argument(
        "--finish", type=float, default=50.0, help="seconds for the runs to end in, at the end"
    )
    parser.add_argument("--keep", action="store_true", help="leave the folder in place")
    parser.add_argument(
        "--figures", metavar="FILE", help="append the figures to a file, one JSON object a line"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
