"""Probes: continuations that a person had sampled from a node of a stored tree. They are kept apart from
everything that training makes: no run, tree, event, metric or export knows of them.

The row is the job, as with runs: messages are hints, the lease says whose it is, the epoch fences what a
worker writes.
"""

from __future__ import annotations

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now

from webapp.limits import PROBE_CONTINUATIONS
from webapp.trees.models import StoredTree


class ProbeStatus(models.TextChoices):
    """Where a probe stands. Ends: done, failed, cancelled."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = (ProbeStatus.QUEUED, ProbeStatus.RUNNING)
ENDED = (ProbeStatus.DONE, ProbeStatus.FAILED, ProbeStatus.CANCELLED)


class Probe(models.Model):
    """One request: `n` continuations of a node's path by the policy after `policy_version` steps.

    `prefix` NULL: the node's own tokens, exactly; else the answer so far as somebody rewrote it, read into
    tokens anew.
    """

    tree = models.ForeignKey(StoredTree, on_delete=models.CASCADE, related_name="probes", db_index=False)
    node = models.CharField(max_length=1000, help_text="As in `2.1.3`; the root is `0`.")
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="probes")
    created_at = models.DateTimeField(db_default=Now())
    idempotency_key = models.CharField(max_length=64, null=True, blank=True)

    policy_version = models.BigIntegerField(help_text="Steps trained; 0 is the base model.")
    prefix = models.TextField(null=True, blank=True)
    n = models.PositiveSmallIntegerField()
    temperature = models.FloatField()
    max_tokens = models.PositiveIntegerField()
    verify = models.BooleanField(default=True)
    seed = models.BigIntegerField()
    queue = models.CharField(max_length=40)

    status = models.CharField(max_length=12, choices=ProbeStatus.choices, default=ProbeStatus.QUEUED)
    reason = models.CharField(max_length=2000, blank=True)
    queued_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    prefix_tokens = models.PositiveIntegerField(null=True, help_text="The prompt's included.")
    cancel_requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    # The lease.
    epoch = models.BigIntegerField(default=0)
    owner = models.CharField(max_length=120, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    losses = models.PositiveSmallIntegerField(default=0, help_text="Workers that were lost over it.")

    class Meta:
        db_table = "arborist_probe"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(status__in=ProbeStatus.values), name="probe_status_is_known"
            ),
            models.CheckConstraint(
                condition=models.Q(status__in=[s.value for s in ENDED], ended_at__isnull=False)
                | models.Q(status__in=[s.value for s in ACTIVE], ended_at__isnull=True),
                name="probe_is_ended_iff_it_has_an_end_time",
            ),
            models.CheckConstraint(
                condition=models.Q(status=ProbeStatus.RUNNING, lease_until__isnull=False)
                | (~models.Q(status=ProbeStatus.RUNNING) & models.Q(lease_until__isnull=True)),
                name="probe_is_running_iff_it_has_a_lease",
            ),
            models.CheckConstraint(
                condition=models.Q(
                    n__gte=1, n__lte=PROBE_CONTINUATIONS, max_tokens__gte=1, temperature__gte=0
                ),
                name="probe_asks_for_something",
            ),
            models.UniqueConstraint(
                fields=["created_by", "idempotency_key"], name="probe_idempotency_key_is_used_once_per_user"
            ),
        ]
        indexes = [
            # The probes of a tree, and of one node of it.
            models.Index(fields=["tree", "node"], name="probe_node"),
            # Workers and sweeper: what waits or is worked on, in its order.
            models.Index(
                fields=["queue", "id"],
                name="probe_active",
                condition=models.Q(status__in=[s.value for s in ACTIVE]),
            ),
        ]

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE


class Continuation(models.Model):
    """Continuation number `number`, from 0, of a probe. Arrays per token: ids; logprobs and entropies in
    nats.
    """

    probe = models.ForeignKey(Probe, on_delete=models.CASCADE, related_name="continuations", db_index=False)
    number = models.PositiveSmallIntegerField()
    tokens = ArrayField(models.IntegerField())
    logprobs = ArrayField(models.FloatField())
    entropies = ArrayField(models.FloatField())
    n_tokens = models.PositiveIntegerField()
    mean_logprob = models.FloatField(null=True)
    mean_entropy = models.FloatField(null=True)
    text = models.TextField(blank=True)
    finish = models.CharField(max_length=12)
    verdict = models.CharField(max_length=12)
    answer = models.TextField(blank=True)
    reward = models.FloatField(null=True)

    class Meta:
        db_table = "arborist_continuation"
        constraints = [
            models.UniqueConstraint(
                fields=["probe", "number"], name="continuation_number_is_unique_in_its_probe"
            )
        ]
