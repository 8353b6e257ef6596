"""The trainer's standard output, line by line: a line back into an event, checked so that rows can hold it.

The trainer is our own, yet what it writes holds model text and numbers that went wrong, so nothing is taken
on trust: whatever passes here can be stored.
"""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from trainer.events import CheckpointSaved, Event, Finished, Started, TreeSampled
from trainer.text import storable
from workers.limits import MAX_STEP

_INT32_MAX, _INT64_MAX = 2**31 - 1, 2**63 - 1
# Clocks may be wrong; dates that the database and people can read are from these two.
_EARLIEST, _LATEST = 0.0, 4_102_444_800.0  # 2100-01-01


class Preempted(BaseModel):
    """The worker's own last record of an attempt that is to go on elsewhere: the run is queued again.
    `microbatch_tokens`: of what it begins with then, where memory ran out; None: as it was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["preempted"] = "preempted"
    time: float
    step: int
    reason: str
    microbatch_tokens: Annotated[int, Field(ge=1)] | None = None


class Died(BaseModel):
    """Likewise, when the trainer was ended by a signal that none of us sent: another attempt goes on from its
    checkpoint, unless it dies again and again. `what` is the beginning of a sentence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["died"] = "died"
    time: float
    step: int
    what: str


WORKERS_OWN = (Preempted, Died)
Spooled = Event | Preempted | Died
SpoolEvent = Annotated[Spooled, Field(discriminator="kind")]
_SPOOLED: TypeAdapter[Spooled] = TypeAdapter(SpoolEvent)


class UnreadableEventError(ValueError):
    """A line that should have been an event and cannot be stored as one. The message is one sentence."""


def is_event(line: bytes) -> bool:
    """Whether a line means to be an event; anything else is a stray print of some library."""
    return line.lstrip().startswith(b"{")


def read_event(line: bytes) -> Spooled:
    """The event of one line (or spool record). Raises UnreadableEventError."""
    try:
        event = _parse(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the line"
        raise UnreadableEventError(f"{where}: {first['msg']}") from error
    _check(event)
    return event


def _parse(line: bytes) -> Spooled:
    try:
        return _SPOOLED.validate_json(line)
    except ValidationError:
        # Lone surrogates are no UTF-8 and no strict JSON, but a broken token may have made one.
        try:
            loose = json.loads(line.decode("utf-8", errors="replace"))
        except ValueError:
            loose = None
        if loose is None:
            raise
        return _SPOOLED.validate_json(json.dumps(storable_json(loose)))


def _check(event: Spooled) -> None:
    if event.kind != "log" and event.step > MAX_STEP:
        raise UnreadableEventError(f"step: {event.step} is larger than {MAX_STEP}")
    if isinstance(event, TreeSampled):
        _fits("index", event.index, _INT32_MAX)
        for name, value in event.summary:
            if isinstance(value, int):
                _fits(f"summary.{name}", value, _INT64_MAX if name.startswith("tokens") else _INT32_MAX)
    elif isinstance(event, CheckpointSaved):
        _fits("bytes", event.bytes, _INT64_MAX)
        _hash("weights_sha256", event.weights_sha256)
        path = PurePosixPath(event.path)
        if (
            not event.path
            or len(event.path) > 900
            or path.is_absolute()
            or ".." in path.parts
            or "\0" in event.path
        ):
            raise UnreadableEventError(f"path: {event.path[:80]!r} is not a path inside the run's folder")
    elif isinstance(event, Started):
        _hash("weights_sha256", event.weights_sha256)
    elif isinstance(event, Finished):
        _hash("weights_sha256", event.weights_sha256 or "")
        _hash("events_sha256", event.events_sha256 or "")


def _fits(name: str, value: int, most: int) -> None:
    if not 0 <= value <= most:
        raise UnreadableEventError(f"{name}: {value} is not between 0 and {most}")


def _hash(name: str, value: str) -> None:
    if len(value) > 64:
        raise UnreadableEventError(f"{name}: {len(value)} characters are no SHA-256")


def storable_json(value: Any) -> Any:
    """JSON data with all its text storable. `Any`: JSON has no closed type."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [storable_json(item) for item in value]
    if isinstance(value, dict):
        return {storable(str(key)): storable_json(item) for key, item in value.items()}
    return value


def moment(unix_seconds: float) -> datetime:
    """When it happened, for people: within 1970 and 2100 whatever the clock said."""
    if not math.isfinite(unix_seconds):
        unix_seconds = time.time()
    return datetime.fromtimestamp(min(max(unix_seconds, _EARLIEST), _LATEST), UTC)
