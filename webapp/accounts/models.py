"""Who may enter: users, one-time login links, API tokens, and the tries that limit guessing."""

from __future__ import annotations

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models.functions import Now


class User(AbstractUser):
    """A person. What they may see is decided by `projects.Membership`."""

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


class ApiToken(models.Model):
    """A bearer token of one user: 256 random bits, shown once, stored as SHA-256; `prefix` is for
    recognition.
    """

    class Scope(models.TextChoices):
        READ = "read"
        WRITE = "write"

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=80)
    prefix = models.CharField(max_length=12)
    secret_sha256 = models.CharField(max_length=64, unique=True)
    scope = models.CharField(max_length=8, choices=Scope.choices, default=Scope.READ)
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "arborist_api_token"


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
