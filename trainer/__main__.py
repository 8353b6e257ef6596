"""python -m trainer FILE.yaml: train from a shell. Events are JSON lines on stdout, and nothing else is; logs
go to stderr.

Exit status: 0 the run succeeded or was stopped, 1 it failed (the last event says why), 2 the config is wrong.
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
from typing import IO

from trainer.config import RunConfig
from trainer.config_file import MAX_CONFIG_BYTES, ConfigError, config_from_yaml
from trainer.events import Event, EventDigest, Finished
from trainer.supervised import end_with_parent, only_events_on_stdout, thread_count

logger = logging.getLogger("trainer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, train, tell. Returns the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if options.parent_fd is not None:
        end_with_parent(options.parent_fd)
    try:
        config = _read_config(options.config, options.set)
        threads = thread_count(os.environ.get("ARBORIST_TORCH_THREADS", "1"))
    except (ConfigError, ValueError) as error:
        for problem in getattr(error, "problems", (error,)):
            print(f"{options.config}: {problem}", file=sys.stderr)  # noqa: T201  # the answer, not a log
        return 2
    stream = only_events_on_stdout()
    should_stop = _stop_on_signals()
    return _run(config, options.output, options.resume, threads, _EventWriter(stream), should_stop)


def _run(
    config: RunConfig,
    output: Path,
    resume: Path | None,
    threads: int,
    writer: _EventWriter,
    should_stop: Callable[[], bool],
) -> int:
    # Heavy imports come after the config was found good, so that a typo is told in a moment.
    warnings.filterwarnings("ignore", category=FutureWarning)
    import torch
    from transformers.utils import logging as transformers_logging

    from trainer.checkpoint import CheckpointError
    from trainer.credit import RewardRangeError
    from trainer.data import DataError
    from trainer.loop import Outcome, train
    from trainer.policy import ModelError

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers types it in part
    torch.set_num_threads(threads)
    try:
        output.mkdir(parents=True, exist_ok=True)
        outcome = train(
            config,
            emit=writer.emit,
            should_stop=should_stop,
            run_dir=output,
            resume=_resume_path(resume, output),
            device=_device(config),
        )
    except (DataError, ModelError, CheckpointError, RewardRangeError, ValueError) as error:
        logger.info("The run failed", exc_info=error)
        outcome = Outcome("failed", writer.step, str(error), "")
    except torch.OutOfMemoryError as error:
        logger.exception("Out of GPU memory")
        outcome = Outcome("failed", writer.step, _memory_sentence("GPU", config, error), "")
    except MemoryError as error:
        logger.exception("Out of memory")
        outcome = Outcome("failed", writer.step, _memory_sentence("host", config, error), "")
    except (
        Exception
    ) as error:  # the last event must say that the run failed, whatever the reason; the log has the traceback
        logger.exception("The run failed")
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        outcome = Outcome("failed", writer.step, f"Unexpected {what} (the log has the traceback).", "")
    writer.emit(
        Finished(
            time=time.time(),
            outcome=outcome.outcome,
            step=outcome.step,
            reason=outcome.reason[:2000],
            weights_sha256=outcome.weights_sha256 or None,
            events_sha256=writer.digest.hexdigest(),
        )
    )
    return 1 if outcome.outcome == "failed" else 0


class _EventWriter:
    """Events as JSON lines; `digest` over all of them, `step` the last one that was told of."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = EventDigest()
        self.step = 0

    def emit(self, event: Event) -> None:
        if event.kind != "finished":
            self.digest.add(event)
        if event.kind in ("started", "metrics"):
            self.step = event.step
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
        "--resume", type=Path, metavar="CHECKPOINT", help="a checkpoint folder, as it is or below DIR"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="change one value of the config"
    )
    parser.add_argument("--parent-fd", type=int, metavar="N", help="end at once when this pipe closes")
    return parser


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

    return "cuda" if config.resources.queue == "gpu" and torch.cuda.is_available() else "cpu"


def _resume_path(resume: Path | None, output: Path) -> Path | None:
    if resume is None or resume.is_dir() or resume.is_absolute():
        return resume
    return output / resume


def _memory_sentence(where: str, config: RunConfig, error: BaseException) -> str:
    training = config.training
    return (
        f"Out of memory ({where}) with micro-batches of {training.microbatch_tokens} tokens and "
        f"{training.problems_per_step} problems "
        f"per step. Lower training.microbatch_tokens or training.problems_per_step. "
        f"({str(error).splitlines()[0] if str(error) else ''})"
    )


def _stop_on_signals() -> Callable[[], bool]:
    asked = threading.Event()

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return asked.is_set


if __name__ == "__main__":
    exit_status = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is written and synced; taking a process with torch apart would keep whoever waits for seconds.
    os._exit(exit_status)
