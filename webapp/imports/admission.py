"""Who sends a file, asked before its first byte is taken: Django reads a body before it knows whose it is."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from typing import Any

from django.conf import settings

from webapp.accounts.services import find_token
from webapp.live.access import user_of_session
from webapp.live.reading import read


async def sender(scope: dict[str, Any]) -> int | None:
    """Id of the user, None for a stranger. Whether they may write here, the view asks.

    Raises what `webapp.live.reading.read` raises.
    """
    headers = dict(scope["headers"])
    given = headers.get(b"authorization", b"").decode("latin-1")
    if given:
        kind, _, secret = given.partition(" ")
        return await read(_of_token, secret.strip()) if kind.lower() == "bearer" else None
    try:
        cookies = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
    except CookieError:
        return None
    session = cookies.get(settings.SESSION_COOKIE_NAME)
    return await read(_of_session, session.value) if session is not None else None


def _of_token(secret: str) -> int | None:
    token = find_token(secret, note_use=False)
    return None if token is None else token.user_id


def _of_session(key: str) -> int | None:
    user = user_of_session(key)
    return None if user is None else user.id
