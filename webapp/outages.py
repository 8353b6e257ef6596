"""When the database is away, slow or full: what is said to people and programs, and how it passes.

Nothing of this is a fault of the request: it is answered with 503, a sentence and when to come again, and it
changed nothing. Runs go on meanwhile; their workers keep what happens in a spool.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
from django.db import InterfaceError, OperationalError, connection
from django.http import HttpRequest, HttpResponse
from django.template import loader
from psycopg import errors
from psycopg_pool import PoolTimeout

from webapp.context import THEMES
from webapp.database.silence import Address, answers, known
from webapp.errors import error_response, is_api
from webapp.limits import DATABASE_STATEMENT_SECONDS, OUTAGE_RETRY_SECONDS

# The kinds of error that an outage comes as; some of them are another trouble (`outage_of` looks closer).
OUTAGES = (OperationalError, InterfaceError, psycopg.OperationalError, psycopg.InterfaceError)
# Never sent back in a page, not even to who typed them: forms of these views, and fields of these names.
SECRET_VIEWS = ("login", "login-link", "password")
SECRET_FIELDS = ("password", "secret", "token")
MAX_FIELDS_KEPT = 500

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outage:
    """`title` and `detail` are for people; `word` is for logs."""

    word: str
    title: str
    detail: str


AWAY = Outage(
    "unreachable",
    "Database unreachable",
    "The database is unreachable. Runs go on and keep their events; nothing of them is lost.",
)
SLOW = Outage(
    "too slow",
    "The database took too long",
    f"The database did not answer within {DATABASE_STATEMENT_SECONDS} s, so this was given up; it changed "
    "nothing. Runs go on and keep their events.",
)
BUSY = Outage(
    "busy",
    "The database is busy",
    "All connections to the database are in use. This was not done; runs go on and keep their events.",
)
FULL = Outage(
    "full",
    "The database's disk is full",
    "The database has no room left, so nothing can be stored until somebody makes some. Runs go on and keep "
    "their events.",
)
CROSSED = Outage(
    "crossed",
    "Two changes met",
    "Somebody else changed the same thing at this moment. This was given up and changed nothing.",
)


def outage_of(error: BaseException | None) -> Outage | None:
    """What kind of outage this error tells of; None: it is no outage."""
    if not isinstance(error, OUTAGES):
        return None
    cause = error if isinstance(error, psycopg.Error) else error.__cause__
    match cause:
        case errors.QueryCanceled() | errors.LockNotAvailable():
            return SLOW
        case errors.TooManyConnections() | errors.ConfigurationLimitExceeded():
            return BUSY
        case errors.DiskFull():
            return FULL
        case errors.DeadlockDetected() | errors.SerializationFailure():
            return CROSSED
        case PoolTimeout():
            return BUSY if _answers_at_all() else AWAY
    return AWAY


def _answers_at_all() -> bool:
    """Whether a server is there, though it gives us no connection: full is not the same as away."""
    parameters = connection.get_connection_params()
    address = Address(str(parameters.get("host") or ""), int(parameters.get("port") or 5432))
    return not known.is_away and (not address.is_one() or answers(address))


def unavailable(request: HttpRequest, error: BaseException, outage: Outage) -> HttpResponse:
    """503 for this request."""
    log.warning("database %s at %s %s: %s", outage.word, request.method, request.path, _one_line(error))
    if outage is AWAY:
        mend_pool()
    if is_api(request):
        response = error_response(503, f"{outage.detail} Try again in a moment.")
    else:
        theme = request.COOKIES.get("theme", "")
        context = {
            "outage": outage,
            "retry_seconds": OUTAGE_RETRY_SECONDS,
            "asks_again": request.method in ("GET", "HEAD"),
            "path": request.get_full_path(),
            "kept": _kept(request),
            "theme": theme if theme in THEMES else "",
        }
        response = HttpResponse(loader.get_template("503.html").render(context), status=503)
    response["Retry-After"] = str(OUTAGE_RETRY_SECONDS)
    response["Cache-Control"] = "no-store"
    # Told above, in one line; Django would call it an error of ours.
    response._has_been_logged = True  # type: ignore[attr-defined]  # Django's own mark
    return response


def _kept(request: HttpRequest) -> list[tuple[str, str]]:
    """What a form sent, so that it can be sent again: only after its CSRF check, and no secrets."""
    if request.method != "POST" or not getattr(request, "csrf_processing_done", False):
        return []
    if request.content_type != "application/x-www-form-urlencoded":
        return []
    if request.resolver_match is None or request.resolver_match.view_name in SECRET_VIEWS:
        return []
    sent = [(name, value) for name, values in request.POST.lists() for value in values]
    visible = [name for name, _ in sent if name != "csrfmiddlewaretoken"]
    if len(sent) > MAX_FIELDS_KEPT or any(word in name.lower() for name in visible for word in SECRET_FIELDS):
        return []
    return sent


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


class OutageMiddleware:
    """Answers 503 where a view met an outage. What fails elsewhere `webapp.views.server_error` sees."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        outage = outage_of(error)
        return None if outage is None else unavailable(request, error, outage)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    try:
        yield
    except OUTAGES as error:
        log.info("the pool was not mended: %s", _one_line(error))


def mend_pool() -> None:
    """Drop the pooled connections that an outage broke, at once, not one by one as requests meet them."""
    if known.is_away:
        return  # they may all live on; looking at each would take its time
    with _quietly():
        pool = connection.pool  # type: ignore[attr-defined]  # of PostgreSQL's wrapper, the only one we use
        if pool is not None and not pool.closed:
            pool.check()
