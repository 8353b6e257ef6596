"""What was asked for, and how it went: runs, attempts, events, metric points, checkpoints, workers.

Truth lives in these rows. Queue messages and pokes are hints. States move only by `states.move`; workers
write only under the run's current lease epoch. A key to a run or
series has no index of its own (`db_index=False`) where a constraint or index that starts with it serves.
"""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models.functions import Now

from webapp.projects.models import Project


class RunStatus(models.TextChoices):
    """Where a run stands; `states.MOVES` says where it may go from there. Ends: succeeded, stopped, failed,
    cancelled. Paused: not ended, nobody holds it, and it waits for a person.
    """

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    RECOVERING = "recovering"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    STOPPED = "stopped"
    FAILED = "failed"
    CANCELLED = "cancelled"


class WishKind(models.TextChoices):
    """What somebody asked the worker of a run to do. A later one of these may replace an earlier one."""

    PAUSE = "pause"
    STOP = "stop"
    KILL = "kill"


class RunOrigin(models.TextChoices):
    """Where a run's trees come from. An imported run was never worked on here: its config is no RunConfig but
    says what was imported (`webapp.imports.reading`), and it has neither attempts nor metrics.
    """

    TRAINED = "trained"
    IMPORTED = "imported"


LEASED = (RunStatus.STARTING, RunStatus.RUNNING, RunStatus.STOPPING)
CLAIMABLE = (RunStatus.QUEUED, RunStatus.RECOVERING)
ENDED = (RunStatus.SUCCEEDED, RunStatus.STOPPED, RunStatus.FAILED, RunStatus.CANCELLED)
ACTIVE = (*CLAIMABLE, *LEASED)


class Run(models.Model):
    """One execution of one config."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="runs")
    name = models.CharField(max_length=120)
    config = models.JSONField(help_text="The complete resolved RunConfig; never changes after creation.")
    config_sha256 = models.CharField(max_length=64)
    origin = models.CharField(
        max_length=8, choices=RunOrigin.choices, default=RunOrigin.TRAINED, db_default=RunOrigin.TRAINED
    )
    preset = models.CharField(max_length=64)
    seed = models.BigIntegerField()
    queue = models.CharField(max_length=32, default="cpu")
    priority = models.SmallIntegerField(
        default=0, db_default=0, help_text="Higher is taken first, from -100 to 100."
    )
    colour = models.PositiveSmallIntegerField(help_text="Slot of the run palette, 1 to 10.")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="runs")
    created_at = models.DateTimeField(db_default=Now())
    idempotency_key = models.CharField(max_length=64, null=True, blank=True)

    status = models.CharField(max_length=12, choices=RunStatus.choices, default=RunStatus.QUEUED)
    reason = models.CharField(
        max_length=2000, blank=True, help_text="One sentence: why it ended, or what it waits for."
    )
    queued_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    # What its worker was asked to do and has not done yet; nobody asks for anything where nobody works.
    wish = models.CharField(max_length=8, choices=WishKind.choices, blank=True, default="", db_default="")
    wish_at = models.DateTimeField(null=True, blank=True)
    wish_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    wish_seen_at = models.DateTimeField(null=True, blank=True, help_text="The worker acknowledged the wish.")

    # The lease: the right to write to this run. The epoch fences every write of a worker.
    lease_epoch = models.BigIntegerField(default=0)
    lease_owner = models.CharField(max_length=120, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    progress_at = models.DateTimeField(
        null=True, blank=True, help_text="When the trainer last said something."
    )
    not_before = models.DateTimeField(null=True, blank=True, help_text="Back-off: not claimed earlier.")
    restarts = models.PositiveSmallIntegerField(default=0, help_text="Attempts lost without an orderly end.")
    settled_epoch = models.BigIntegerField(
        default=0,
        db_default=0,
        help_text="Attempts up to this one are settled: somebody took the run up again after them.",
    )

    stalled_at = models.DateTimeField(
        null=True, blank=True, help_text="Its worker lives, but since this look its trainer made no progress."
    )

    # What a fork began with; its curves go on where those of the run it came from leave off.
    parent = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True, related_name="children"
    )
    parent_step = models.BigIntegerField(null=True, blank=True)
    forked_from = models.ForeignKey(
        "Checkpoint", on_delete=models.SET_NULL, null=True, blank=True, related_name="forks"
    )

    cloned_from = models.ForeignKey(
        "self",
        on_delete=models.SET_NULL,
        null=True,
        blank=True,
        related_name="clones",
        help_text="Whose config it was made with.",
    )

    # Where it stands.
    last_seq = models.BigIntegerField(default=0, help_text="Events 1..last_seq are stored, without a gap.")
    step = models.BigIntegerField(default=0)
    steps_total = models.BigIntegerField()
    phase = models.CharField(max_length=12, blank=True)
    phase_done = models.BigIntegerField(default=0)
    phase_total = models.BigIntegerField(default=0)
    checkpoint = models.ForeignKey(
        "Checkpoint", on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        db_table = "arborist_run"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status__in=RunStatus.values), name="run_status_is_known"
            ),
            models.CheckConstraint(
                condition=models.Q(status__in=[s.value for s in ENDED], ended_at__isnull=False)
                | (~models.Q(status__in=[s.value for s in ENDED]) & models.Q(ended_at__isnull=True)),
                name="run_is_ended_iff_it_has_an_end_time",
            ),
            models.CheckConstraint(
                condition=models.Q(priority__gte=-100, priority__lte=100), name="run_priority_is_bounded"
            ),
            models.CheckConstraint(
                condition=~models.Q(status__in=[s.value for s in LEASED])
                | models.Q(lease_until__isnull=False),
                name="run_that_is_worked_on_has_a_lease",
            ),
            models.CheckConstraint(
                condition=models.Q(wish="", wish_at__isnull=True, wish_seen_at__isnull=True)
                | models.Q(
                    wish__in=WishKind.values, wish_at__isnull=False, status__in=[s.value for s in LEASED]
                ),
                name="run_has_a_wish_only_while_it_is_worked_on",
            ),
            models.CheckConstraint(
                condition=models.Q(origin="trained") | models.Q(origin="imported", status="succeeded"),
                name="run_that_was_imported_is_ended",
            ),
            models.UniqueConstraint(
                fields=["project", "idempotency_key"], name="idempotency_key_is_used_once_per_project"
            ),
        ]
        indexes = [
            # The queue: who is next in a class.
            models.Index(
                fields=["queue", "-priority", "queued_at", "id"],
                name="run_queue",
                condition=models.Q(status__in=[s.value for s in CLAIMABLE]),
            ),
            # The runs table: newest first, in one project.
            models.Index(fields=["project", "-id"], name="run_table"),
            # The sweeper: what is queued or leased.
            models.Index(
                fields=["status", "lease_until"],
                name="run_active",
                condition=models.Q(status__in=[s.value for s in ACTIVE]),
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE

    @property
    def is_imported(self) -> bool:
        return self.origin == RunOrigin.IMPORTED


class Attempt(models.Model):
    """One period in which one worker held the run; its number is the lease epoch."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="attempts", db_index=False)
    epoch = models.BigIntegerField()
    owner = models.CharField(max_length=120)
    claim = models.UUIDField(
        null=True, unique=True, help_text="By which a worker knows its claim again whose answer was lost."
    )
    started_at = models.DateTimeField(db_default=Now())
    ended_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(
        max_length=12, blank=True, help_text="succeeded, stopped, failed, paused, preempted, died or lost."
    )
    reason = models.CharField(max_length=2000, blank=True)
    resumed_from_step = models.BigIntegerField(null=True, blank=True)
    last_step = models.BigIntegerField(null=True, blank=True, help_text="Where it stood when it ended.")
    microbatch_tokens = models.BigIntegerField(
        null=True,
        blank=True,
        help_text="Of the micro-batches that later ones begin with, where this one had no memory left.",
    )
    recorded_through = models.BigIntegerField(
        default=0, help_text="Spool records 1..n of this attempt are stored."
    )
    recorded_checksum = models.BigIntegerField(
        null=True, blank=True, help_text="Of those records, by which they are known when they come again."
    )

    class Meta:
        db_table = "arborist_attempt"
        constraints = [models.UniqueConstraint(fields=["run", "epoch"], name="one_attempt_per_epoch")]
        indexes = [
            # What a worker did last.
            models.Index(fields=["owner", "-started_at"], name="attempt_owner")
        ]


class Event(models.Model):
    """What happened, numbered 1, 2, 3 ... without gaps in its run. `body` is the event less what has its own
    rows.
    """

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="events", db_index=False)
    seq = models.BigIntegerField()
    epoch = models.BigIntegerField()
    kind = models.CharField(max_length=16)
    step = models.BigIntegerField(null=True, blank=True)
    at = models.DateTimeField(help_text="When it happened, by the clock of who says so. Order is `seq`.")
    body = models.JSONField()

    class Meta:
        db_table = "arborist_event"
        constraints = [models.UniqueConstraint(fields=["run", "seq"], name="event_seq_is_unique_in_its_run")]


class Series(models.Model):
    """One metric of one run, with the summary that tables show. NaN and infinity never enter minimum and
    maximum.
    """

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="series", db_index=False)
    name = models.CharField(max_length=200)
    n_points = models.BigIntegerField(default=0)
    first_value = models.FloatField(null=True)
    last_step = models.BigIntegerField(default=0)
    last_value = models.FloatField(null=True)
    minimum = models.FloatField(null=True)
    maximum = models.FloatField(null=True)

    class Meta:
        db_table = "arborist_series"
        constraints = [
            models.UniqueConstraint(fields=["run", "name"], name="series_name_is_unique_in_its_run")
        ]


class Point(models.Model):
    """One value of one metric at one step. `superseded`: a later attempt went over this step again."""

    # Not checked by the database, which would cost as much as storing the point (4 of 8 CPU-microseconds,
    # benchmarks/recording.py): the recorder makes the series in the same transaction.
    series = models.ForeignKey(
        Series, on_delete=models.CASCADE, related_name="points", db_index=False, db_constraint=False
    )
    run_id = models.BigIntegerField()
    seq = models.BigIntegerField()
    step = models.BigIntegerField()
    value = models.FloatField(help_text="double precision: NaN and infinity are kept")
    superseded = models.BooleanField(default=False)

    class Meta:
        db_table = "arborist_point"
        indexes = [
            # A chart: one series by step.
            models.Index(fields=["series", "step"], name="point_chart"),
            # A viewer catching up: all points of a run after a cursor.
            models.Index(fields=["run_id", "seq"], name="point_catch_up"),
        ]


class Checkpoint(models.Model):
    """A whole checkpoint on the worker's disk."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="checkpoints", db_index=False)
    epoch = models.BigIntegerField()
    step = models.BigIntegerField()
    seq = models.BigIntegerField(help_text="Events up to this number are reflected in it.")
    path = models.CharField(max_length=1024)
    size_bytes = models.BigIntegerField()
    weights_sha256 = models.CharField(max_length=64)
    is_pinned = models.BooleanField(
        default=False, db_default=False, help_text="A fork begins with it: no rule deletes it."
    )
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "arborist_checkpoint"
        constraints = [
            models.UniqueConstraint(
                fields=["run", "epoch", "step"], name="one_checkpoint_per_step_and_attempt"
            )
        ]


class Worker(models.Model):
    """A worker process as it was last seen, and what operators want of it. A sighting decides nothing, leases
    do; a wish to drain is obeyed by every claim.

    `machine`: what it stands on, as `workers.machine` measures it.
    """

    name = models.CharField(max_length=120, unique=True)
    queues = models.CharField(max_length=200)
    started_at = models.DateTimeField(db_default=Now())
    heartbeat_at = models.DateTimeField(db_default=Now())
    run = models.ForeignKey(Run, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    versions = models.JSONField(default=dict)
    slots = models.PositiveSmallIntegerField(
        default=1, db_default=1, help_text="How many runs it takes at once."
    )
    machine = models.JSONField(default=dict, db_default={})

    # Drain: take nothing new; `drain_now`: also give back what is worked on, after a checkpoint.
    drain_at = models.DateTimeField(null=True, blank=True)
    drain_now = models.BooleanField(default=False, db_default=False)
    drain_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    drain_seen_at = models.DateTimeField(null=True, blank=True, help_text="The worker acknowledged it.")
    drained_at = models.DateTimeField(null=True, blank=True, help_text="Nothing is worked on any more.")

    class Meta:
        db_table = "arborist_worker"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(drain_at__isnull=False)
                | models.Q(drain_now=False, drain_seen_at__isnull=True, drained_at__isnull=True),
                name="worker_drains_when_somebody_asked",
            )
        ]
