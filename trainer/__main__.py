"""python -m trainer FILE.yaml: train from a shell. Events are JSON lines on stdout, and nothing else is; logs
go to stderr.

Exit status: 0 the run succeeded or was stopped, 1 it failed or cannot go on now (the last event says why), 2
the config is wrong.
SIGTERM and SIGINT ask the run to stop: it gives up the step under way, writes a checkpoint and ends. A second
one ends it at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Literal

from trainer.config import RunConfig
from trainer.config_file import MAX_CONFIG_BYTES, ConfigError, config_from_yaml
from trainer.events import Event, EventDigest, Finished
from trainer.guards import (
    MOST_LETTERS,
    TROUBLES,
    BeginSmallerError,
    OutOfRoomError,
    is_full,
    is_host_memory,
    told,
)
from trainer.launcher import PEER_SECONDS, RANK_SIGNALS, STOP_SIGNAL, launch
from trainer.supervised import (
    BEGIN_SMALLER,
    Place,
    beat,
    die_with_parent,
    end_with_parent,
    only_events_on_stdout,
    thread_count,
)

logger = logging.getLogger("trainer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, train, tell. Returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    place = _place(options)
    if options.beat_fd is not None:
        die_with_parent()
        beat(options.beat_fd)
    if options.parent_fd is not None:
        end_with_parent(options.parent_fd)
    try:
        config = _read_config(options.config, options.set)
        threads = thread_count(os.environ.get("ARBORIST_TORCH_THREADS", "1"))
    except (ConfigError, ValueError) as error:
        for problem in getattr(error, "problems", (error,)):
            print(f"{options.config}: {problem}", file=sys.stderr)  # noqa: T201  # the answer, not a log
        return 2
    if options.engine is not None:
        return _sample(config, options, threads)
    if place is None and config.resources.devices > 1:
        return launch(
            config,
            options.output,
            options.resume,
            options.fork,
            microbatch_tokens=options.microbatch_tokens,
        )
    stream = only_events_on_stdout()
    should_stop = _stop_on_signals() if place is None else _stop_on_launcher()
    begin = options.resume if options.fork is None else [options.fork]
    writer = _EventWriter(stream, begin)
    is_fork = options.fork is not None
    return _run(
        config,
        options.output,
        begin,
        threads,
        writer,
        should_stop,
        place,
        options.engine_fds,
        is_fork=is_fork,
        microbatch_tokens=options.microbatch_tokens,
    )


def _run(
    config: RunConfig,
    output: Path,
    resume: Sequence[Path],
    threads: int,
    writer: _EventWriter,
    should_stop: Callable[[], bool],
    place: Place | None,
    engine_fds: Sequence[int],
    *,
    is_fork: bool,
    microbatch_tokens: int,
) -> int:
    # Heavy imports come after the config was found good, so that a typo is told in a moment.
    warnings.filterwarnings("ignore", category=FutureWarning)
    import torch
    from transformers.utils import logging as transformers_logging

    from trainer.checkpoint import CheckpointError
    from trainer.credit import RewardRangeError
    from trainer.data import DataError
    from trainer.loop import Outcome, train
    from trainer.parallel import Group, device_of, engines_of, is_loss_of_rank, meeting_point
    from trainer.policy import ModelError

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers types it in part
    torch.set_num_threads(threads)
    try:
        output.mkdir(parents=True, exist_ok=True)
        device = device_of(place, _device(config))
        group = None if place is None or place.size == 1 else Group(place, device)
        engines = None
        if place is not None and engine_fds:
            store = meeting_point(place) if group is None else group.store
            engines = engines_of(place, store, engine_fds, device)
        outcome = train(
            config,
            emit=writer.emit if place is None or place.rank == 0 else _unsaid,
            should_stop=should_stop,
            run_dir=output,
            resume=[_resume_path(path, output) for path in resume] or None,
            is_fork=is_fork,
            device=device,
            group=group,
            engines=engines,
            microbatch_tokens=microbatch_tokens,
        )
    except BeginSmallerError as error:  # whoever starts us does so once more, with less
        logger.info("The run ended early", exc_info=error)
        return BEGIN_SMALLER
    except Exception as error:  # the last event must say how the run ended, whatever the reason
        expected = (DataError, ModelError, CheckpointError, RewardRangeError, OutOfRoomError, ValueError)
        is_expected = isinstance(error, expected)
        if place is not None and is_loss_of_rank(error):
            # What ended the other one is the reason, and whoever watches both will say it.
            logger.info("Another process of the run does not answer any more: %s", error)
            time.sleep(PEER_SECONDS)
        logger.log(logging.INFO if is_expected else logging.ERROR, "The run ended early", exc_info=error)
        outcome = Outcome(*_ending(error, is_expected, writer), "")
    if place is not None and place.rank > 0:
        return 1 if outcome.outcome in ("failed", "paused") else 0
    writer.emit(
        Finished(
            time=time.time(),
            outcome=outcome.outcome,
            step=outcome.step,
            reason=outcome.reason[:MOST_LETTERS],
            weights_sha256=outcome.weights_sha256 or None,
            events_sha256=writer.digest.hexdigest(),
        )
    )
    return 1 if outcome.outcome in ("failed", "paused") else 0


def _sample(config: RunConfig, options: argparse.Namespace, threads: int) -> int:
    """Be an engine process to its end."""
    _stop_on_launcher()  # what it is to do its rank says
    only_events_on_stdout()
    warnings.filterwarnings("ignore", category=FutureWarning)
    import torch
    from transformers.utils import logging as transformers_logging

    from trainer.channel import Channel
    from trainer.engine_process import EngineProcess
    from trainer.parallel import feed_of

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers types it in part
    torch.set_num_threads(threads)
    kind = _device(config)
    device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)  # of GPUs it sees its own alone
    each = config.resources.engine_processes // config.resources.processes
    feed = feed_of(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), options.engine, each, device)
    EngineProcess(config, options.engine, Channel(options.rank_fd), feed, device).serve()
    return 0


def _unsaid(event: Event) -> None:
    """Of a rank that does not speak for the run; what it warns of stands in its log."""
    if event.kind == "log":
        logger.warning("%s", event.message)


class _EventWriter:
    """Events as JSON lines; `digest` over all of them, `step` the last one that was told of, `checkpoint` the
    step of the last one that is whole, as far as is known.
    """

    def __init__(self, stream: IO[bytes], resume: Sequence[Path]) -> None:
        self._stream = stream
        self.digest = EventDigest()
        steps = [path.name.removeprefix("step-") for path in resume]
        self.checkpoint = next((int(step) for step in steps if step.isdecimal()), None)
        self.step = self.checkpoint or 0

    def emit(self, event: Event) -> None:
        if event.kind != "finished":
            self.digest.add(event)
        if event.kind in ("started", "metrics"):
            self.step = event.step
        if event.kind == "checkpoint" or (event.kind == "started" and event.resumed_from is not None):
            self.checkpoint = event.step
        try:
            self._stream.write(event.model_dump_json().encode() + b"\n")
            self._stream.flush()
        except BrokenPipeError:  # nobody reads any more: whoever started this run is gone
            os._exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer", description="Train a policy with tree rollouts."
    )
    parser.add_argument("config", metavar="FILE.yaml", help="the run's config; `-` reads standard input")
    parser.add_argument(
        "--output", type=Path, default=Path("run"), metavar="DIR", help="the run's folder (default: run)"
    )
    parser.add_argument(
        "--resume",
        type=Path,
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="a checkpoint folder, as it is or below DIR; of several the first that is whole is taken",
    )
    parser.add_argument(
        "--fork",
        type=Path,
        metavar="CHECKPOINT",
        help="begin with another run's checkpoint; the config may differ in all but the model",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="change one value of the config"
    )
    parser.add_argument("--parent-fd", type=int, metavar="N", help="end at once when this pipe closes")
    parser.add_argument(
        "--microbatch-tokens",
        type=int,
        default=0,
        metavar="N",
        help="begin with smaller micro-batches than the config's, as after memory ran out",
    )
    # Of one of several processes; the launcher gives them.
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--beat-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--engine-fds", type=_numbers, default=[], help=argparse.SUPPRESS)
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rank-fd", type=int, help=argparse.SUPPRESS)
    return parser


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _place(options: argparse.Namespace) -> Place | None:
    """Which rank this process is; None: it is no rank (yet)."""
    if options.rank is None:
        return None
    port, size = int(os.environ["MASTER_PORT"]), int(os.environ["WORLD_SIZE"])
    return Place(options.rank, size, port, options.store_fd)


def _read_config(name: str, overrides: Sequence[str]) -> RunConfig:
    try:
        if name == "-":
            content = sys.stdin.buffer.read(MAX_CONFIG_BYTES + 1)
        else:
            with Path(name).open("rb") as stream:
                content = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError.one(f"cannot be read: {error.strerror}") from error
    return config_from_yaml(content, overrides)


def _device(config: RunConfig) -> str:
    import torch

    return "cuda" if config.resources.queue.startswith("gpu") and torch.cuda.is_available() else "cpu"


def _resume_path(resume: Path, output: Path) -> Path:
    return resume if resume.is_dir() or resume.is_absolute() else output / resume


def _ending(
    error: Exception, is_expected: bool, writer: _EventWriter
) -> tuple[Literal["failed", "paused"], int, str]:
    """What an error makes of the run: the outcome, the last complete step, and why in words. What is expected
    says itself what to do.
    """
    step, checkpoint = writer.step, writer.checkpoint
    what = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if is_host_memory(error):
        return "failed", step, TROUBLES["host memory"].sentence(step, checkpoint, what=what)
    if is_full(error):
        return "paused", step, TROUBLES["disk full"].sentence(step, checkpoint, what=what)
    if is_expected:
        do = TROUBLES["no model"].do if type(error).__name__ == "ModelError" else ""
        return "failed", step, told(str(error), step, checkpoint, do)
    if isinstance(error, ImportError):
        return "failed", step, TROUBLES["import"].sentence(step, checkpoint, error=what)
    what = f"{type(error).__name__}: {what}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, where nothing smaller could be tried
        return (
            "failed",
            step,
            TROUBLES["gpu memory"].sentence(
                step, checkpoint, place="GPU", doing="loading or updating the model", sizes=what
            ),
        )
    return "failed", step, TROUBLES["error"].sentence(step, checkpoint, error=what)


def _stop_on_signals() -> Callable[[], bool]:
    asked = threading.Event()

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return asked.is_set


def _stop_on_launcher() -> Callable[[], bool]:
    """Of a rank: what a terminal or a container sends to every process is the launcher's to judge."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(STOP_SIGNAL, lambda _number, _frame: asked.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, RANK_SIGNALS)
    return asked.is_set


if __name__ == "__main__":
    exit_status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is written and synced; taking a process with torch apart would keep whoever waits for seconds.
    os._exit(exit_status)
