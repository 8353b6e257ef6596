"""What uvicorn serves: pages and API over HTTP, live data over WebSocket."""

from __future__ import annotations

import os

from webapp.limits import DATABASE_STATEMENT_SECONDS

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webapp.settings")
# Before the settings are read: only web processes pool connections and give up on slow statements.
os.environ.setdefault("ARBORIST_DATABASE_POOL", "20")
os.environ.setdefault("ARBORIST_STATEMENT_SECONDS", str(DATABASE_STATEMENT_SECONDS))

from django.core.asgi import get_asgi_application

django_application = get_asgi_application()

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter

from webapp.body_limit import BodyLimit
from webapp.live.routing import websocket_urlpatterns
from webapp.origin import OwnOrigin

application = ProtocolTypeRouter(
    {
        "http": BodyLimit(django_application),
        "websocket": OwnOrigin(AuthMiddlewareStack(URLRouter(websocket_urlpatterns))),
    }
)
