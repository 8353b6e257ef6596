"""Errors as people and programs read them: problem+json for the API (RFC 9457), one plain page for the
browser.
"""

from __future__ import annotations

import http
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from django.http import HttpRequest, HttpResponse

log = logging.getLogger(__name__)

API_PREFIX = "/api/"


class RequestError(Exception):
    """A request that cannot be met. `detail` says what is wrong and what to do; `errors` names the fields."""

    def __init__(self, status: int, detail: str, errors: Sequence[Mapping[str, str]] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = list(errors)


def bad_field(path: str, message: str) -> RequestError:
    """400 for one field of what was sent; `path` as in the config, `message` says what to do."""
    return RequestError(400, message, [{"path": path, "message": message}])


def is_api(request: HttpRequest) -> bool:
    return request.path.startswith(API_PREFIX)


def error_response(
    status: int, detail: str, errors: Sequence[Mapping[str, str]] = (), **extra: Any
) -> HttpResponse:
    body = {
        "type": "about:blank",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "errors": list(errors),
        **extra,
    }
    return HttpResponse(orjson.dumps(body), status=status, content_type="application/problem+json")
