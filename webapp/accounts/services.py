"""One-time login links and API tokens: secrets of 256 bits, shown once, stored as SHA-256."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Literal

from django.db import transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.urls import reverse

from webapp.accounts.models import ApiToken, LoginLink, User
from webapp.limits import LOGIN_LINK_SECONDS

TOKEN_MARK = "arb_"  # noqa: S105 (a prefix by which people and secret scanners know our tokens)
TOKEN_SEEN_SECONDS = 60

LinkState = Literal["valid", "unknown", "used", "expired"]


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def create_login_link(user: User) -> str:
    """The path of a link that logs `user` in once, within an hour: `/login/<secret>/`."""
    secret = secrets.token_urlsafe(32)
    LoginLink.objects.create(
        user=user, secret_sha256=sha256(secret), expires_at=Now() + timedelta(seconds=LOGIN_LINK_SECONDS)
    )
    return reverse("login-link", args=[secret])


def link_state(secret: str) -> LinkState:
    """What the link is good for, without using it."""
    link = (
        LoginLink.objects.filter(secret_sha256=sha256(secret), user__is_active=True)
        .annotate(is_expired=Q(expires_at__lte=Now()))
        .first()
    )
    if link is None:
        return "unknown"
    if link.used_at is not None:
        return "used"
    return "expired" if link.is_expired else "valid"


def use_login_link(secret: str) -> User | None:
    """The user the link logs in, the first time; None ever after. Of many calls at once one gets the user."""
    links = LoginLink.objects.filter(secret_sha256=sha256(secret))
    # Conditions on this one table only: with a join Django puts them into a subquery, which PostgreSQL does
    # not ask again after waiting for the row, and then two get in.
    if not links.filter(used_at__isnull=True, expires_at__gt=Now()).update(used_at=Now()):
        return None
    user = links.select_related("user").get().user
    return user if user.is_active else None


def create_token(
    user: User,
    name: str,
    *scopes: ApiToken.Scope,
    days: int | None = None,
    project_id: int | None = None,
) -> str:
    """A new bearer token, which may read whatever else it may. The returned text is the only copy."""
    secret = TOKEN_MARK + secrets.token_urlsafe(32)
    ApiToken.objects.create(
        user=user,
        name=name,
        prefix=secret[:12],
        secret_sha256=sha256(secret),
        scopes=[str(scope) for scope in ApiToken.Scope if scope in (*scopes, ApiToken.Scope.READ)],
        project_id=project_id,
        expires_at=None if days is None else Now() + timedelta(days=days),
    )
    return secret


def find_token(secret: str, *, note_use: bool = True) -> ApiToken | None:
    """The live token with this secret, its user at hand; notes that it was used, at most once a minute."""
    token = (
        ApiToken.objects.filter(
            Q(expires_at__isnull=True) | Q(expires_at__gt=Now()),
            secret_sha256=sha256(secret),
            revoked_at__isnull=True,
            user__is_active=True,
        )
        .select_related("user")
        .first()
    )
    if token is not None:
        token.user.only_project = token.project_id
    if token is not None and note_use:
        ApiToken.objects.filter(
            Q(last_used_at__isnull=True) | Q(last_used_at__lt=Now() - timedelta(seconds=TOKEN_SEEN_SECONDS)),
            id=token.id,
        ).update(last_used_at=Now())
    return token


def live_tokens(user: User) -> QuerySet[ApiToken]:
    """Those that still open something: neither revoked nor expired."""
    return ApiToken.objects.filter(
        Q(expires_at__isnull=True) | Q(expires_at__gt=Now()), user=user, revoked_at__isnull=True
    )


def revoke_tokens(user: User, prefix: str = TOKEN_MARK) -> int:
    """Revoke `user`'s tokens that start with `prefix`, at once. Returns how many."""
    return live_tokens(user).filter(prefix__startswith=prefix).update(revoked_at=Now())


def change_password(user: User, password: str, *, revoke: bool) -> None:
    """Ends every session and socket that stood on the old one and every unused login link, and with `revoke`
    every token.
    """
    with transaction.atomic():
        user.set_password(password)
        user.save(update_fields=["password"])
        LoginLink.objects.filter(user=user, used_at__isnull=True, expires_at__gt=Now()).update(
            expires_at=Now()
        )
        if revoke:
            revoke_tokens(user)
