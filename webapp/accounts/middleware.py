"""Deny by default: every view of every app needs a login, unless its name stands in `OPEN_VIEWS`.

API calls may carry a bearer token instead of a session; its user and scope are settled here too, so that no
view can forget it. Static files are served before this (whitenoise), web sockets check in `live.consumers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, resolve_url

from webapp.accounts.services import find_token
from webapp.errors import error_response, is_api
from webapp.outages import OUTAGES, outage_of, unavailable

OPEN_VIEWS = frozenset({"login", "login-link", "healthz"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# What the last word of an operation's route does to runs and workers that exist. Everything else that is no
# reading is writing.
CONTROL_VERBS = frozenset(
    {"pause", "resume", "stop", "stop-now", "retry", "priority", "drain", "undrain", "limits"}
)


class LoginRequiredMiddleware:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_view(
        self, request: HttpRequest, _view: Callable[..., Any], _args: Any, _kwargs: Any
    ) -> HttpResponseBase | None:
        try:
            return self._check(request)
        except OUTAGES as error:
            # Who asks cannot be known now, so nothing is shown.
            if (outage := outage_of(error)) is None:
                raise
            return unavailable(request, error, outage)

    def _check(self, request: HttpRequest) -> HttpResponseBase | None:
        match = request.resolver_match
        if match is not None and match.view_name in OPEN_VIEWS:
            return None
        if is_api(request):
            return self._check_api(request)
        if request.user.is_authenticated:
            return None
        target = resolve_url(settings.LOGIN_URL)
        if request.method == "GET":
            target += "?next=" + quote(request.get_full_path(), safe="/")
        return redirect(target)

    def _check_api(self, request: HttpRequest) -> HttpResponseBase | None:
        header = request.headers.get("Authorization", "")
        if header:
            kind, _, secret = header.partition(" ")
            token = find_token(secret.strip()) if kind.lower() == "bearer" else None
            if token is None:
                return _unauthorised(
                    "This token is unknown, expired or revoked. Make one under Settings, API tokens."
                )
            needed = scope_of(request)
            if needed not in token.scopes:
                return error_response(
                    403,
                    f"This token may {' and '.join(token.scopes)}, and this needs the scope {needed!r}. Make "
                    "one that has it under Settings, API tokens.",
                )
            request.user = token.user
            request.api_token = token  # type: ignore[attr-defined]  # read by webapp.api's authentication
            return None
        if request.user.is_authenticated:
            return None
        return _unauthorised("Log in, or send a token in the header `Authorization: Bearer …`.")


def scope_of(request: HttpRequest) -> str:
    """What a token must be allowed for this call."""
    if request.method in SAFE_METHODS:
        return "read"
    route = request.resolver_match.route if request.resolver_match is not None else ""
    return "control" if route.rstrip("/").rpartition("/")[2] in CONTROL_VERBS else "write"


def _unauthorised(detail: str) -> HttpResponse:
    response = error_response(401, detail)
    response["WWW-Authenticate"] = 'Bearer realm="arborist"'
    return response
