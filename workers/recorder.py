"""Spool records into rows, each exactly once, under the lease, then one poke.

One transaction locks the run row, checks the epoch, skips what the attempt's `recorded_through` says is
stored, gives the rest the run's next numbers, copies rows and moves every counter. Delivered again, in whole
or in part, it does nothing twice; refused by the fence, it does nothing at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from django.db import connection, transaction
from psycopg.types.json import Jsonb

from trainer.events import (
    CheckpointSaved,
    Finished,
    LogLine,
    Metrics,
    PackingChecked,
    Progress,
    Started,
    TreeSampled,
)
from trainer.text import storable
from webapp.limits import MAX_SERIES_PER_RUN
from webapp.live.poke import poke
from webapp.runs.models import LEASED, Attempt, Checkpoint, Run, RunStatus, Series, WishKind
from webapp.runs.models import Event as StoredEvent
from webapp.runs.states import move
from webapp.runs.sweeper import give_up
from webapp.trees.models import summary_columns
from workers.lease import Lease, lock, settle
from workers.output import Died, Preempted, Spooled, moment, storable_json

_EVENT = ("run_id", "seq", "epoch", "kind", "step", "at", "body")
_EVENT_TYPES = ("int8", "int8", "int8", "varchar", "int8", "timestamptz", "jsonb")
_POINT = ("series_id", "run_id", "seq", "step", "value", "superseded")
_POINT_TYPES = ("int8", "int8", "int8", "int8", "float8", "bool")
_TREE_TYPES = {
    "run_id": "int8",
    "seq": "int8",
    "epoch": "int8",
    "step": "int8",
    "index": "int4",
    "problem_id": "varchar",
    "prompt": "text",
    "superseded": "bool",
    "n_nodes": "int4",
    "n_leaves": "int4",
    "n_correct": "int4",
    "n_unparsed": "int4",
    "n_truncated": "int4",
    "n_errors": "int4",
    "depth": "int4",
    "tokens": "int8",
    "tokens_flat": "int8",
    "value": "float8",
    "advantage_min": "float8",
    "advantage_max": "float8",
    "zero_variance_share": "float8",
    "mean_entropy": "float8",
    "n_answers": "int4",
    "n_given_up": "int4",
    "advantage_spread": "float8",
    "max_entropy": "float8",
    "mean_logprob": "float8",
    "cliff": "float8",
    "cliff_node": "text",
    "duplicate_share": "float8",
    "grpo_flips": "int4",
    "payload": "bytea",
}
_OUTCOMES = {
    "succeeded": RunStatus.SUCCEEDED,
    "stopped": RunStatus.STOPPED,
    "paused": RunStatus.PAUSED,
    "failed": RunStatus.FAILED,
}


_INT64_MAX = 2**63 - 1


class GapError(RuntimeError):
    """The batch does not follow what is stored: a spool lost its beginning. Nothing was written."""


class ConflictError(RuntimeError):
    """Records that were stored already came again with other content. The first are kept."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """`through`: spool records 1..n of the attempt are stored. `ended`: the lease was given back. `old`:
    checkpoints that are not listed any more, to be deleted.
    """

    through: int
    last_seq: int
    ended: bool
    old: Sequence[Path] = ()


@dataclass(slots=True)
class _SeriesChange:
    """What a batch adds to one series' summary."""

    n_points: int = 0
    first_value: float = math.nan
    last_step: int = 0
    last_value: float = math.nan
    minimum: float | None = None
    maximum: float | None = None

    def add(self, step: int, value: float) -> None:
        if self.n_points == 0:
            self.first_value = value
        self.n_points += 1
        self.last_step, self.last_value = step, value
        if math.isfinite(value):
            self.minimum = value if self.minimum is None else min(self.minimum, value)
            self.maximum = value if self.maximum is None else max(self.maximum, value)


@dataclass(slots=True)
class _Rows:
    """The rows of one batch, numbered from `seq` on. `is_late`: a later attempt has started since."""

    run_id: int
    epoch: int
    seq: int
    is_late: bool = False
    events: list[tuple[Any, ...]] = field(default_factory=list)
    points: list[tuple[str, int, int, float]] = field(default_factory=list)  # name, seq, step, value
    trees: list[tuple[Any, ...]] = field(default_factory=list)
    series: dict[str, _SeriesChange] = field(default_factory=dict)
    step: int | None = None

    def event(self, kind: str, step: int | None, at: float, body: dict[str, Any]) -> int:
        self.seq += 1
        row = (self.run_id, self.seq, self.epoch, kind, step, moment(at), Jsonb(body, dumps=_dump))
        self.events.append(row)
        return self.seq


def _dump(body: dict[str, Any] | list[Any]) -> str:
    return json.dumps(storable_json(body), allow_nan=False, ensure_ascii=False)


class Recorder:
    """Stores one attempt's records under `lease`: the attempt of that lease, or an earlier, dead one.

    `unlist` is asked with every new checkpoint which older ones are to go.
    """

    def __init__(
        self,
        lease: Lease,
        attempt_epoch: int | None = None,
        unlist: Callable[[Run], Sequence[Path]] = lambda _run: (),
    ) -> None:
        self.lease = lease
        self._unlist = unlist
        self.epoch = lease.epoch if attempt_epoch is None else attempt_epoch
        self._names: set[str] | None = None

    def through(self) -> int:
        """Records 1..n of this attempt are stored."""
        return self._attempt().recorded_through

    def _attempt(self) -> Attempt:
        return Attempt.objects.get(run_id=self.lease.run_id, epoch=self.epoch)

    def record(self, records: Sequence[tuple[int, Spooled]], checksums: Sequence[int] = ()) -> Recorded:
        """Store `records`, which are (n, event) in order without a gap. `checksums`: `spool.Record.checksum`
        of each, by which what comes again is known to be what came before; without them it is not looked at.

        Raises LeaseLostError, GapError, ConflictError, or the database's error; then nothing was stored, or
        (only if the connection broke at the commit) all of it, and recording the same again is right in both
        cases.
        """
        with transaction.atomic():
            run = lock(self.lease)
            attempt = self._attempt()
            known = attempt.recorded_through
            new = [(n, event) for n, event in records if n > known]
            if new and new[0][0] != known + 1:
                raise GapError(f"run {run.id}: record {new[0][0]} follows {known}")
            for (n, _), checksum in zip(records, checksums, strict=False):
                if n == known and attempt.recorded_checksum not in (None, checksum):
                    raise ConflictError(
                        f"records 1 to {n} of attempt {self.epoch} came again with other content"
                    )
            if self._names is None:
                self._names = set(Series.objects.filter(run=run).values_list("name", flat=True))
            rows = _Rows(run.id, self.epoch, run.last_seq, is_late=self._is_late())
            names = set(self._names)
            last: Finished | Preempted | Died | None = None
            for _, event in new:
                if isinstance(event, Finished | Preempted | Died):
                    last = event
                self._add(run, rows, event, names)
            self._copy(rows)
            self._restart_series(run, rows, new)
            is_saved = any(row[3] == "checkpoint" for row in rows.events)
            old = self._unlist(run) if is_saved else ()
            newest = checksums[-1] if new and checksums else None
            recorded = replace(self._move(run, rows, known + len(new), last, newest), old=old)
        self._names = names
        return recorded

    def _is_late(self) -> bool:
        """Whether a later attempt, on another machine, has started before this one's last events came: then
        they are kept for the record, and it is that later attempt's history that is shown.
        """
        if self.epoch == self.lease.epoch:
            return False
        later = StoredEvent.objects.filter(run_id=self.lease.run_id, kind="started", epoch__gt=self.epoch)
        return later.exists()

    # One event

    def _add(self, run: Run, rows: _Rows, event: Spooled, names: set[str]) -> None:
        match event:
            case Metrics():
                self._add_metrics(rows, event, names)
                rows.step = event.step
            case TreeSampled():
                seq = rows.event(
                    "tree", event.step, event.time, {"index": event.index, "problem_id": event.problem_id}
                )
                rows.trees.append(_tree_row(rows, seq, event))
            case CheckpointSaved():
                body = event.model_dump(mode="json", exclude={"kind", "time", "step"})
                seq = rows.event("checkpoint", event.step, event.time, body | {"path": self._path(event)})
                self._store_checkpoint(run, seq, event, is_current=not rows.is_late)
            case LogLine():
                body = {"level": event.level, "message": event.message}
                rows.event("log", run.step if rows.step is None else rows.step, event.time, body)
            case Started():
                body = event.model_dump(mode="json", exclude={"kind", "time", "step"})
                rows.event("started", event.step, event.time, body)
                rows.step = event.step
            case PackingChecked():
                # As JSON text: what is not finite is a word there, and the database takes nothing else.
                body = json.loads(event.model_dump_json(exclude={"kind", "time", "step"}))
                rows.event("packing_checked", event.step, event.time, body)
            case Finished():
                body = event.model_dump(mode="json", exclude={"kind", "time", "step"})
                rows.event("finished", event.step, event.time, body)
            case Preempted() | Died() | Progress():
                pass

    def _add_metrics(self, rows: _Rows, event: Metrics, names: set[str]) -> None:
        seq = rows.event("metrics", event.step, event.time, {})
        refused = 0
        for name, value in event.values.items():
            if name not in names:
                if len(names) >= MAX_SERIES_PER_RUN:
                    refused += 1
                    continue
                names.add(name)
            rows.points.append((name, seq, event.step, value))
            change = rows.series.setdefault(name, _SeriesChange())
            if not rows.is_late:
                change.add(event.step, value)
        if refused:
            message = (
                f"{refused} metrics of step {event.step} were not stored: a run keeps {MAX_SERIES_PER_RUN} "
                "different names. Log fewer."
            )
            rows.event("log", event.step, event.time, {"level": "warning", "message": message})

    def _path(self, event: CheckpointSaved) -> str:
        return f"attempt-{self.epoch}/{event.path}"

    def _store_checkpoint(self, run: Run, seq: int, event: CheckpointSaved, *, is_current: bool) -> None:
        # The same step may be saved twice, by the calendar and at the end.
        checkpoint, _ = Checkpoint.objects.update_or_create(
            run=run,
            epoch=self.epoch,
            step=event.step,
            defaults={
                "seq": seq,
                "path": self._path(event),
                "size_bytes": event.bytes,
                "weights_sha256": event.weights_sha256,
            },
        )
        if is_current:
            run.checkpoint = checkpoint

    # The batch

    def _copy(self, rows: _Rows) -> None:
        with connection.cursor() as cursor:
            if rows.events:
                _copy_rows(cursor, "arborist_event", _EVENT, _EVENT_TYPES, rows.events)
            if rows.points:
                ids = _upsert_series(cursor, rows)
                points = (
                    (ids[name], rows.run_id, seq, step, value, rows.is_late)
                    for name, seq, step, value in rows.points
                )
                _copy_rows(cursor, "arborist_point", _POINT, _POINT_TYPES, points)
            if rows.trees:
                _copy_rows(
                    cursor, "arborist_tree", tuple(_TREE_TYPES), tuple(_TREE_TYPES.values()), rows.trees
                )

    def _restart_series(self, run: Run, rows: _Rows, new: Sequence[tuple[int, Spooled]]) -> None:
        """A trainer that starts again goes over what came after its checkpoint once more. Shown is from now
        on what that checkpoint reflects, and what this attempt adds; everything else is kept and hidden.

        By attempt and event number, not by step: a checkpoint reflects its attempt's events up to its own,
        and what the checkpoint that attempt had started from reflects. What was hidden is shown again when a
        trainer goes on from an older checkpoint than the last one did, as on another machine.
        """
        started_seq = next((row[1] for row in rows.events if row[3] == "started"), None)
        if started_seq is None:
            return
        started = next(event for _, event in new if isinstance(event, Started))
        if rows.is_late:
            return
        if started.resumed_from is not None:
            Attempt.objects.filter(run=run, epoch=self.epoch).update(resumed_from_step=started.step)
        _show(run.id, list(_lineage(run.id, started_seq)), before=started_seq)

    def _move(
        self,
        run: Run,
        rows: _Rows,
        through: int,
        last: Finished | Preempted | Died | None,
        checksum: int | None,
    ) -> Recorded:
        """Counters and state of the run, and the poke."""
        with connection.cursor() as cursor:
            cursor.execute(
                """
                WITH moved AS (
                    UPDATE arborist_attempt SET
                        recorded_through = %s, recorded_checksum = coalesce(%s, recorded_checksum)
                    WHERE run_id = %s AND epoch = %s
                )
                UPDATE arborist_run SET
                    last_seq = %s, step = coalesce(%s, step), checkpoint_id = %s,
                    progress_at = statement_timestamp()
                WHERE id = %s
                """,
                [
                    *(through, checksum, run.id, self.epoch),
                    *(rows.seq, None if rows.is_late else rows.step, run.checkpoint_id, run.id),
                ],
            )
        if isinstance(last, Preempted) and last.microbatch_tokens:
            own = Attempt.objects.filter(run=run, epoch=self.epoch)
            own.update(microbatch_tokens=last.microbatch_tokens)
        last_seq = rows.seq
        if rows.step is not None and not rows.is_late:
            run.step = rows.step
        is_earlier = self.epoch != self.lease.epoch
        has_started = not is_earlier and any(row[3] == "started" for row in rows.events)
        if run.status == RunStatus.STARTING and has_started:
            last_seq = move(run, RunStatus.RUNNING, "", actor=self.lease.owner) or last_seq
        ended = True
        # An earlier attempt's "preempted" or "died" says only that this one is to go on; and so does any but
        # the last word "succeeded" of one that somebody, or another worker, took the run up again after.
        goes_on = rows.is_late or (is_earlier and self.epoch <= run.settled_epoch)
        if isinstance(last, Finished) and not (goes_on and last.outcome != "succeeded"):
            if rows.is_late:
                self._show_this_attempt(run, last.step)
            last_seq = settle(run, self.lease, _OUTCOMES[last.outcome], _reason(run, last))
        elif isinstance(last, Preempted) and not is_earlier:
            last_seq = settle(run, self.lease, RunStatus.QUEUED, last.reason)
        elif isinstance(last, Died) and not is_earlier:
            give_up(run, last.what, actor=self.lease.owner)
            last_seq = run.last_seq
        else:
            ended = False
            poke(run.id, run.project_id, last_seq)
        return Recorded(through, last_seq, ended)

    def _show_this_attempt(self, run: Run, step: int) -> None:
        """It was the one that finished, as is known only now: its history is the run's."""
        started = (
            StoredEvent.objects.filter(run=run, epoch=self.epoch, kind="started").order_by("-seq").first()
        )
        lines = [] if started is None else list(_lineage(run.id, started.seq))
        _show(run.id, [(self.epoch, _INT64_MAX), *lines], before=_INT64_MAX)
        Run.objects.filter(id=run.id).update(step=step)

    def show(self, progress: Progress) -> None:
        """Where the trainer is inside its step, and the trees that grow there; no event. One statement.
        Raises LeaseLostError.
        """
        growing = [tree.model_dump(mode="json") for tree in progress.growing]
        with connection.cursor() as cursor:
            cursor.execute(
                """
                WITH shown AS (
                    UPDATE arborist_run SET
                        phase = %s, phase_done = %s, phase_total = %s, progress_at = statement_timestamp()
                    WHERE id = %s AND lease_epoch = %s AND status = ANY(%s)
                    RETURNING id, project_id, last_seq
                ), grown AS (
                    INSERT INTO arborist_growing (run_id, step, at, trees, occupancy)
                    SELECT id, %s, statement_timestamp(), %s::jsonb, %s::jsonb FROM shown WHERE %s
                    ON CONFLICT (run_id) DO UPDATE SET
                        step = excluded.step, at = excluded.at, trees = excluded.trees,
                        occupancy = excluded.occupancy
                )
                SELECT pg_notify(
                    'arborist_poke',
                    json_build_object('run', id, 'project', project_id, 'last_seq', last_seq)::text
                ) FROM shown
                """,
                [
                    progress.phase,
                    min(progress.done, _INT64_MAX),
                    min(progress.total, _INT64_MAX),
                    self.lease.run_id,
                    self.lease.epoch,
                    [str(status) for status in LEASED],
                    min(progress.step, _INT64_MAX),
                    _dump(growing),
                    None if progress.occupancy is None else progress.occupancy.model_dump_json(),
                    bool(growing),
                ],
            )
            shown = cursor.rowcount
        if not shown:
            with transaction.atomic():
                lock(self.lease)


def _reason(run: Run, last: Finished) -> str:
    """Who wished for it, and after which step; what the worker itself has to say of it comes after."""
    if last.outcome != "stopped" or not run.wish:
        return last.reason
    by = run.wish_by.get_username() if run.wish_by else "somebody"
    word = "Paused" if run.wish == WishKind.PAUSE else "Stopped"
    more = "" if last.weights_sha256 else f" {last.reason}"
    return f"{word} by {by} after step {last.step}.{more}"


def _tree_row(rows: _Rows, seq: int, event: TreeSampled) -> tuple[Any, ...]:
    values: dict[str, Any] = summary_columns(event.summary) | {
        "run_id": rows.run_id,
        "seq": seq,
        "epoch": rows.epoch,
        "step": event.step,
        "index": event.index,
        "problem_id": storable(event.problem_id),
        "prompt": storable(event.prompt),
        "superseded": rows.is_late,
        "payload": event.payload,
    }
    return tuple(values[name] for name in _TREE_TYPES)


def _upsert_series(cursor: Any, rows: _Rows) -> dict[str, int]:
    """`Any`: Django's cursor wraps psycopg's and does not say so in types. Returns the ids by name."""
    changes = list(rows.series.items())
    cursor.execute(
        """
        INSERT INTO arborist_series
            (run_id, name, n_points, first_value, last_step, last_value, minimum, maximum)
        SELECT %s, * FROM unnest(%s::text[], %s::bigint[], %s::float8[], %s::bigint[], %s::float8[],
                                 %s::float8[], %s::float8[])
        ON CONFLICT (run_id, name) DO UPDATE SET
            n_points = arborist_series.n_points + excluded.n_points,
            first_value = coalesce(arborist_series.first_value, excluded.first_value),
            last_step = CASE WHEN excluded.n_points > 0 THEN excluded.last_step
                             ELSE arborist_series.last_step END,
            last_value = CASE WHEN excluded.n_points > 0 THEN excluded.last_value
                              ELSE arborist_series.last_value END,
            minimum = least(arborist_series.minimum, excluded.minimum),
            maximum = greatest(arborist_series.maximum, excluded.maximum)
        RETURNING name, id
        """,
        [
            rows.run_id,
            [name for name, _ in changes],
            [change.n_points for _, change in changes],
            [change.first_value for _, change in changes],
            [change.last_step for _, change in changes],
            [change.last_value for _, change in changes],
            [change.minimum for _, change in changes],
            [change.maximum for _, change in changes],
        ],
    )
    return dict(cursor.fetchall())


def _lineage(run_id: int, before: int) -> Iterator[tuple[int, int]]:
    """(epoch, seq): of which attempts the events up to which number stand behind the trainer that started
    with event `before`; its own are not among them.
    """
    kinds = ("started", "checkpoint")
    events = list(
        StoredEvent.objects.filter(run_id=run_id, kind__in=kinds, seq__lte=before)
        .order_by("-seq")
        .values_list("seq", "kind", "epoch", "step", "body")
    )
    started = events[0]
    while (resumed := started[4].get("resumed_from")) is not None:
        seq, _, epoch, step, _ = started
        earlier = [e for e in events if e[1] == "checkpoint" and e[2] < epoch and e[3] == step and e[0] < seq]
        # A trainer that is told of no attempts knows the checkpoint by its step alone.
        saved = next((e for e in earlier if e[4].get("path") == resumed), earlier[0] if earlier else None)
        if saved is None:
            return  # another run's
        yield saved[2], saved[0]
        before_it = next((e for e in events if e[1] == "started" and e[2] == saved[2]), None)
        if before_it is None:
            return
        started = before_it


def _show(run_id: int, lines: Sequence[tuple[int, int]], before: int) -> None:
    """Of all points and trees before event `before`, show those of these attempts up to these events."""
    values: dict[str, Any] = {"run": run_id, "before": before}
    values |= {"epochs": [epoch for epoch, _ in lines], "through": [seq for _, seq in lines]}
    with connection.cursor() as cursor:
        changed = 0
        for table in ("arborist_point", "arborist_tree"):
            cursor.execute(_SHOW.format(table=table), values)
            changed += cursor.rowcount
        if changed:
            cursor.execute(_SUMMARISE, {"run": run_id})


# Points and trees before a start are shown if they belong to what the trainer goes on from, else hidden.
_SHOW = """
    UPDATE {table} t SET superseded = NOT told.is_shown
    FROM (
        SELECT e.seq, EXISTS (
            SELECT 1 FROM unnest(%(epochs)s::bigint[], %(through)s::bigint[]) AS line(epoch, through)
            WHERE e.epoch = line.epoch AND e.seq <= line.through
        ) AS is_shown
        FROM arborist_event e
        WHERE e.run_id = %(run)s AND e.seq < %(before)s AND e.kind IN ('metrics', 'tree')
    ) told
    WHERE t.run_id = %(run)s AND t.seq = told.seq AND t.superseded = told.is_shown
"""


# The summaries again from what is left, for every series of a run.
_SUMMARISE = """
    UPDATE arborist_series s SET
        n_points = coalesce(p.n, 0), first_value = p.first, last_step = coalesce(p.last_step, 0),
        last_value = p.last, minimum = p.low, maximum = p.high
    FROM arborist_series t
    LEFT JOIN LATERAL (
        SELECT count(*) AS n,
               (array_agg(value ORDER BY seq))[1] AS first,
               (array_agg(value ORDER BY seq DESC))[1] AS last,
               (array_agg(step ORDER BY seq DESC))[1] AS last_step,
               min(value) FILTER (WHERE value NOT IN ('NaN', 'Infinity', '-Infinity')) AS low,
               max(value) FILTER (WHERE value NOT IN ('NaN', 'Infinity', '-Infinity')) AS high
        FROM arborist_point WHERE series_id = t.id AND NOT superseded
    ) p ON true
    WHERE t.run_id = %(run)s AND s.id = t.id
"""


def _copy_rows(
    cursor: Any, table: str, columns: Sequence[str], types: Sequence[str], rows: Iterable[tuple[Any, ...]]
) -> None:
    """`Any`: see `_upsert_series`. Binary: no text form of numbers or payloads is made or parsed. Raises
    Django's errors, which Django itself does for all statements but this.
    """
    names = ", ".join(f'"{column}"' for column in columns)
    statement = f"COPY {table} ({names}) FROM STDIN (FORMAT BINARY)"
    with connection.wrap_database_errors, cursor.copy(statement) as copy:
        copy.set_types(types)
        for row in rows:
            copy.write_row(row)
