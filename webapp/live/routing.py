from __future__ import annotations

from django.urls import path

from webapp.live.consumers import live

websocket_urlpatterns = [
    path("ws/v1", live),  # type: ignore[arg-type]  # an ASGI application, as channels wants it, not a view
]
