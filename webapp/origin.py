"""Opens WebSockets to our own pages only: a browser sends cookies along with any site's socket, but also
names that site.
"""

from __future__ import annotations

from typing import Any

from channels.security.websocket import WebsocketDenier
from django.conf import settings
from django.http.request import split_domain_port, validate_host


def is_own_origin(origin: str, host: str, scheme: str) -> bool:
    """Whether `origin` is exactly where this request was sent to (scheme, host, port), or listed as trusted.

    `host` is the Host header, which must be an allowed one; `scheme` is ws or wss. Without an origin the
    answer is no.
    """
    if origin in settings.CSRF_TRUSTED_ORIGINS:
        return True
    domain, _ = split_domain_port(host)
    allowed = settings.ALLOWED_HOSTS or (["localhost", "127.0.0.1", "[::1]"] if settings.DEBUG else [])
    if not domain or not validate_host(domain, allowed):
        return False
    secure = settings.HTTPS or scheme == "wss"
    return origin == f"{'https' if secure else 'http'}://{host.lower()}"


class OwnOrigin:
    """ASGI middleware; the handshake of anyone else is answered 403."""

    def __init__(
        self, application: Any
    ) -> None:  # ASGI applications: asgiref's types are too narrow for middleware
        self.application = application

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = {
            name: value.decode("latin-1") for name, value in scope["headers"] if name in (b"origin", b"host")
        }
        if is_own_origin(headers.get(b"origin", ""), headers.get(b"host", ""), scope.get("scheme", "ws")):
            await self.application(scope, receive, send)
        else:
            await WebsocketDenier()(scope, receive, send)
