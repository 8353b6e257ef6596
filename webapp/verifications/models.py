"""Verifications: answers of stored trees that somebody had judged again, with the run's verifier or another.

They stand beside the recorded verdict. No tree, reward, count, metric or export knows of them.
"""

from __future__ import annotations

from django.conf import settings
from django.db import models

from webapp.jobs import Job, state_constraints, unfinished_index
from webapp.trees.models import StoredTree


class Verification(Job):
    """One answer, one verifier; once it has succeeded, what that verifier said. "" in a form of the answer:
    nothing could be read; NULL: it is not known.
    """

    tree = models.ForeignKey(
        StoredTree, on_delete=models.CASCADE, related_name="verifications", db_index=False
    )
    node = models.CharField(max_length=1000, help_text="Of the leaf, as in `2.1.3`.")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="verifications", db_index=False
    )
    verifier = models.JSONField(help_text="As in a run's config, complete.")
    is_own = models.BooleanField(help_text="Whether it is the verifier of the run.")

    verdict = models.CharField(max_length=12, blank=True)
    answer = models.TextField(blank=True, help_text="What was read.")
    normalised = models.TextField(null=True, help_text="The answer as it was compared.")
    expected = models.TextField(null=True, help_text="The reference answer as it was compared.")
    seconds = models.FloatField(null=True)
    words = models.CharField(max_length=600, blank=True, help_text="Why there is no verdict.")

    class Meta:
        db_table = "arborist_verification"
        constraints = [
            *state_constraints("verification"),
            models.CheckConstraint(
                condition=~models.Q(status="succeeded") | models.Q(seconds__isnull=False),
                name="verification_that_succeeded_says_how_long_it_took",
            ),
        ]
        indexes = [
            # The verifications of a node, newest first.
            models.Index(fields=["tree", "node", "-id"], name="verification_node"),
            models.Index(fields=["created_by", "status"], name="verification_of_a_user"),
            unfinished_index("verification"),
        ]
