"""The HTTP API under `/api/v1`: who may call it, how bodies are read, how errors look. Operations live with
their apps.

A session with its CSRF token or a bearer token; both are settled by the login middleware before an operation
runs.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Mapping
from threading import Lock
from typing import Any

import orjson
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.http import Http404, HttpRequest, HttpResponse
from ninja import NinjaAPI
from ninja.errors import HttpError, Throttled, ValidationError
from ninja.parser import Parser
from ninja.renderers import BaseRenderer
from ninja.throttling import BaseThrottle
from ninja.utils import check_csrf

from trainer.payload import DamagedTreeError
from trainer.text import storable
from webapp import strict_json
from webapp.accounts.models import User
from webapp.errors import RequestError, error_response
from webapp.exports.api import router as exports_router
from webapp.imports.api import router as imports_router
from webapp.limits import API_CALLS, API_WINDOW_SECONDS, MAX_BODY_BYTES
from webapp.live.api import router as live_router
from webapp.notes.api import router as notes_router
from webapp.outages import outage_of, unavailable
from webapp.probes.api import router as probes_router
from webapp.problems.api import router as problems_router
from webapp.projects.access import user_of
from webapp.queue.api import router as queue_router
from webapp.runs.api import router as runs_router
from webapp.saved.api import router as saved_router
from webapp.search.api import router as search_router
from webapp.trees.api import router as trees_router
from webapp.trees.opened import words_of
from webapp.verifications.api import router as verifications_router

log = logging.getLogger(__name__)


class StrictParser(Parser):
    """Bodies are JSON, said to be JSON, and read strictly."""

    def parse_body(self, request: HttpRequest) -> Any:
        if request.content_type != "application/json":
            raise RequestError(
                415, f"The body is {(request.content_type or 'of no type')[:80]}; send application/json."
            )
        return strict_json.loads(request.body)


class StrictRenderer(BaseRenderer):
    """JSON without NaN: a number that is not finite becomes null."""

    media_type = "application/json"

    def render(self, request: HttpRequest, data: Any, *, response_status: int) -> bytes:  # noqa: ARG002 (ninja calls it so)
        return orjson.dumps(data, option=orjson.OPT_UTC_Z | orjson.OPT_SERIALIZE_NUMPY)


class PerUser(BaseThrottle):
    """At most so many calls of a user in a window; each process counts for itself."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._calls: dict[int, deque[float]] = {}

    def allow_request(self, request: HttpRequest) -> bool:
        now = time.monotonic()
        with self._lock:
            calls = self._calls.setdefault(user_of(request).id, deque())
            while calls and calls[0] <= now - API_WINDOW_SECONDS:
                calls.popleft()
            if len(calls) >= API_CALLS:
                return False
            calls.append(now)
            return True

    def wait(self) -> float | None:
        return 1.0


def caller(request: HttpRequest) -> User:
    """Whose call this is. A cookie travels by itself, so with one a write needs its CSRF token; a bearer
    token does not.
    """
    if not hasattr(request, "api_token"):
        refused = check_csrf(request)
        if refused is not None:
            raise RequestError(
                403, "The CSRF token is missing or wrong. Send the cookie `csrftoken` as header X-CSRFToken."
            )
    return user_of(request)


api = NinjaAPI(
    title="Arborist",
    version="1",
    description="Create runs, watch them learn, read their rollout trees.",
    urls_namespace="api-1",
    auth=caller,
    docs_url=None,  # its page loads scripts from elsewhere
    parser=StrictParser(),
    renderer=StrictRenderer(),
    throttle=[PerUser()],
)
api.add_router("", runs_router)
api.add_router("", live_router)
api.add_router("", queue_router)
api.add_router("", trees_router)
api.add_router("", exports_router)
api.add_router("", imports_router)
api.add_router("", problems_router)
api.add_router("", probes_router)
api.add_router("", verifications_router)
api.add_router("", search_router)
api.add_router("", saved_router)
api.add_router("", notes_router)


@api.exception_handler(RequestError)
def _problem(_request: HttpRequest, error: RequestError) -> HttpResponse:
    return error_response(error.status, error.detail, error.errors)


@api.exception_handler(DamagedTreeError)
def _damaged(_request: HttpRequest, error: DamagedTreeError) -> HttpResponse:
    return error_response(422, words_of(error))


@api.exception_handler(Http404)
def _not_found(_request: HttpRequest, _error: Http404) -> HttpResponse:
    return error_response(404, "There is nothing here that you may see.")


@api.exception_handler(PermissionDenied)
def _denied(_request: HttpRequest, error: PermissionDenied) -> HttpResponse:
    return error_response(403, str(error) or "Your role does not allow this.")


@api.exception_handler(RequestDataTooBig)
def _too_big(_request: HttpRequest, _error: RequestDataTooBig) -> HttpResponse:
    return error_response(413, f"The body is larger than {MAX_BODY_BYTES:,} bytes.")


@api.exception_handler(Throttled)
def _throttled(_request: HttpRequest, error: Throttled) -> HttpResponse:
    response = error_response(
        429, f"More than {API_CALLS} calls in {API_WINDOW_SECONDS} seconds. Wait a moment."
    )
    response["Retry-After"] = str(max(1, round(error.wait or 1)))
    return response


@api.exception_handler(HttpError)
def _http_error(_request: HttpRequest, error: HttpError) -> HttpResponse:
    # Ninja wraps whatever the parser raised.
    if isinstance(error.__cause__, RequestError):
        return error_response(error.__cause__.status, error.__cause__.detail, error.__cause__.errors)
    return error_response(error.status_code, str(error))


@api.exception_handler(ValidationError)
def _invalid(_request: HttpRequest, error: ValidationError) -> HttpResponse:
    errors = [_field_error(detail) for detail in error.errors]
    first = (
        f"{errors[0]['path'] or 'The request'}: {errors[0]['message']}"
        if errors
        else "The request is not valid."
    )
    return error_response(400, storable(first)[:1000], errors)


def _field_error(detail: Mapping[str, Any]) -> dict[str, str]:
    # The location opens with where the value came from and the operation's parameter name: ("body",
    # "payload", "name").
    loc = [str(part) for part in detail["loc"]]
    loc = loc[2:] if loc[:1] == ["body"] else loc[1:]
    return {"path": storable(".".join(loc))[:200], "message": storable(str(detail["msg"]))[:500]}


@api.exception_handler(Exception)
def _failed(request: HttpRequest, error: Exception) -> HttpResponse:
    """A fault of ours: an id for the person, everything else for the log. An outage is none, and passes."""
    if outage := outage_of(error):
        return unavailable(request, error, outage)
    fault = secrets.token_hex(6)
    log.error("fault %s at %s %s", fault, request.method, request.path, exc_info=error)
    return error_response(
        500,
        f"Something failed here, and the log has it as {fault}. Try again, or report that number.",
        id=fault,
    )
