"""The HTTP API as a client calls it: JSON in, JSON out, errors in the server's own words.

It follows no redirect, so the token never goes anywhere but to the server it was made for.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.message import Message
from typing import Any
from urllib.parse import urlencode, urlsplit

from client.account import Account, is_loopback
from client.errors import ClientError, RefusedError, UnreachableError, UsageError

TIMEOUT_SECONDS = 30.0
MOST_BYTES = 64 * 2**20
TRIES = 3  # of a reading, and of a call that was too early


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:  # as urllib calls it
        return None


class Server:
    """`sleep`: how to wait before another try."""

    def __init__(self, account: Account, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.account = account
        self._sleep = sleep
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if is_loopback(urlsplit(account.url).hostname or ""):
            handlers.append(urllib.request.ProxyHandler({}))  # no proxy knows this machine's own addresses
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, path: str, **query: Any) -> Any:
        """What the API says; values of None are left out. `Any`: its shape is the API's word."""
        asked = {name: value for name, value in query.items() if value is not None}
        return self._call("GET", f"{path}?{urlencode(asked)}" if asked else path, None)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._call("POST", path, json.dumps(body or {}).encode())

    def page(self, path: str) -> str:
        """The address of a page for people."""
        return f"{self.account.url}{path}"

    def _call(self, method: str, path: str, body: bytes | None) -> Any:
        for left in range(TRIES - 1, -1, -1):
            try:
                return self._once(method, path, body)
            except _TryLaterError as later:
                # What was not a reading may have been done, unless the server itself said that it was not.
                if not left or not (later.is_safe or method == "GET"):
                    raise UnreachableError(str(later)) from None
                self._sleep(min(later.seconds, 30.0))
        raise AssertionError  # the last try returned or raised

    def _once(self, method: str, path: str, body: bytes | None) -> Any:
        headers = {
            "Authorization": f"Bearer {self.account.token}",
            "Accept": "application/json",
            "User-Agent": "arborist",
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(  # noqa: S310 (the scheme was checked)
            f"{self.account.url}/api/v1{path}", data=body, headers=headers, method=method
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return _read(answer.read(MOST_BYTES + 1), answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error) from None
        except urllib.error.URLError as error:
            raise _TryLaterError(f"{self.account.url} cannot be reached: {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            what = str(error) or type(error).__name__
            raise _TryLaterError(f"{self.account.url} did not answer to the end: {what}") from None


class _TryLaterError(Exception):
    def __init__(self, message: str, *, seconds: float = 1.0, is_safe: bool = False) -> None:
        super().__init__(message)
        self.seconds, self.is_safe = seconds, is_safe


def _read(content: bytes, headers: Message) -> Any:
    if len(content) > MOST_BYTES:
        raise ClientError(f"The answer is larger than {MOST_BYTES // 2**20} MB.")
    if not content:
        return None
    if headers.get_content_type() != "application/json":
        raise ClientError(
            f"The server answered with {headers.get_content_type()}, not JSON. Is ARBORIST_URL right?"
        )
    try:
        return json.loads(content)
    except ValueError as error:
        raise ClientError(f"The answer cannot be read: {error}") from error


def _refusal(error: urllib.error.HTTPError) -> Exception:
    """The server's no, as the right exception."""
    detail = _detail(error)
    if error.code in (429, 503):
        wait = error.headers.get("Retry-After", "")
        seconds = float(wait) if wait.isdecimal() else 1.0
        return _TryLaterError(detail, seconds=seconds, is_safe=error.code == 429)
    if error.code >= 500:
        return UnreachableError(detail)
    if 300 <= error.code < 400:
        to = error.headers.get("Location", "")[:200]
        return UsageError(f"The server sends calls on to {to!r}. Set ARBORIST_URL to where it really is.")
    return UsageError(detail) if error.code in (400, 401, 413, 415) else RefusedError(detail)


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        problem = json.loads(error.read(MOST_BYTES))
        detail, errors = str(problem["detail"]), problem.get("errors") or []
        more = [f"  {one['path'] or 'config'}: {one['message']}" for one in errors]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return f"The server answered {error.code} {error.reason}."
    return "\n".join([detail, *more]) if len(more) > 1 else detail
