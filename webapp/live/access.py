"""What a socket may see, asked again and again while it is open."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.utils.crypto import constant_time_compare

from webapp.accounts.models import User
from webapp.projects.access import projects_for, runs_for


@dataclass(frozen=True, slots=True)
class Visible:
    """Of what was asked for: run id -> project id, and project slug -> project id."""

    runs: dict[int, int]
    projects: dict[str, int]


def user_of_session(session_key: str | None) -> User | None:
    """Whose session it is, if it is still good: not expired, not logged out, password not changed."""
    if not session_key:
        return None
    store = import_module(settings.SESSION_ENGINE).SessionStore(session_key)
    kept = store.load()
    if BACKEND_SESSION_KEY not in kept:
        return None
    user = User.objects.filter(id=kept.get(SESSION_KEY), is_active=True).first()
    if user is None or not constant_time_compare(
        kept.get(HASH_SESSION_KEY, ""), user.get_session_auth_hash()
    ):
        return None
    return user


def visible(session_key: str | None, run_ids: Collection[int], slugs: Collection[str]) -> Visible | None:
    """What of these the session's user may see now. None: the session is over."""
    user = user_of_session(session_key)
    if user is None:
        return None
    runs = dict(runs_for(user).filter(id__in=run_ids).values_list("id", "project_id")) if run_ids else {}
    projects = dict(projects_for(user).filter(slug__in=slugs).values_list("slug", "id")) if slugs else {}
    return Visible(runs, projects)
