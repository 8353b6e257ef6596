"""What uvicorn serves: pages and API over HTTP, live data over WebSocket."""

from __future__ import annotations

import os
from typing import Any

from webapp.limits import DATABASE_POOL, DATABASE_STATEMENT_SECONDS


def build() -> Any:  # an ASGI application: asgiref's types are too narrow for middleware
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")
    # Only web processes pool connections and give up on slow statements; the settings read this once.
    os.environ.setdefault("ARBORIST_DATABASE_POOL", str(DATABASE_POOL))
    os.environ.setdefault("ARBORIST_STATEMENT_SECONDS", str(DATABASE_STATEMENT_SECONDS))

    from django.core.asgi import get_asgi_application

    django_application = get_asgi_application()

    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured

    from webapp.checks import public_address_errors

    if found := public_address_errors(settings.BIND_ADDRESS):
        raise ImproperlyConfigured(" ".join(f"{error.msg} {error.hint}" for error in found))

    # These need Django's apps to be loaded.
    from channels.routing import ProtocolTypeRouter, URLRouter
    from channels.sessions import CookieMiddleware

    from webapp.body_limit import BodyLimit
    from webapp.imports.admission import sender
    from webapp.live.routing import websocket_urlpatterns
    from webapp.origin import OwnOrigin

    return ProtocolTypeRouter(
        {
            "http": BodyLimit(django_application, sender),
            "websocket": OwnOrigin(CookieMiddleware(URLRouter(websocket_urlpatterns))),
        }
    )


application = build()
