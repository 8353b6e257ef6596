"""Who may enter: users, one-time login links, API tokens, and the tries that limit guessing."""

from __future__ import annotations

from django.contrib.auth.models import AbstractUser
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now


class User(AbstractUser):
    """A person. What they may see is decided by `projects.Membership`.

    `only_project`: the id of the one project that this request may touch, because its token is bound to it.
    """

    only_project: int | None = None

    class Meta:
        db_table = "arborist_user"


class LoginLink(models.Model):
    """A link that logs one user in once. Only the SHA-256 of its secret is stored."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="login_links")
    secret_sha256 = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "arborist_login_link"


def _read_only() -> list[str]:
    return [str(ApiToken.Scope.READ)]


class ApiToken(models.Model):
    """A bearer token of one user: 256 random bits, shown once, stored as SHA-256; `prefix` is for
    recognition. It never may more than its user; with a `project` it may so there alone.
    """

    class Scope(models.TextChoices):
        """`read` looks, `write` makes and changes, `control` orders runs and workers about."""

        READ = "read"
        WRITE = "write"
        CONTROL = "control"

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=80)
    prefix = models.CharField(max_length=12)
    secret_sha256 = models.CharField(max_length=64, unique=True)
    scopes = ArrayField(models.CharField(max_length=8, choices=Scope.choices), default=_read_only)
    project = models.ForeignKey(
        "projects.Project", on_delete=models.CASCADE, null=True, blank=True, related_name="+", db_index=False
    )
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "arborist_api_token"
        constraints = [
            models.CheckConstraint(
                condition=models.Q(scopes__contains=["read"])
                & models.Q(scopes__contained_by=["read", "write", "control"]),
                name="token_scopes_are_known_and_read",
            ),
        ]


class LoginTry(models.Model):
    """One password that was tried and has not (yet) proved right; `accounts.limits` counts them.

    `account` is the SHA-256 of the name as typed, so a password typed into the wrong field is not kept.
    """

    account = models.CharField(max_length=64)
    address = models.CharField(max_length=64, blank=True)
    at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "arborist_login_try"
        indexes = [
            # The two counts before each try, and the sweep of old rows.
            models.Index(fields=["account", "at"], name="login_try_account"),
            models.Index(fields=["address", "at"], name="login_try_address"),
            models.Index(fields=["at"], name="login_try_at"),
        ]
