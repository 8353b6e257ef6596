from __future__ import annotations

from django.urls import path

from webapp.queue import views

urlpatterns = [
    path("queue/", views.queue, name="queue"),
    path("queue/<int:run_id>/priority", views.priority, name="queue-priority"),
    path("queue/<int:run_id>/cancel", views.cancel, name="queue-cancel"),
    path("queue/limits/<slug:slug>", views.limits, name="queue-limits"),
    path("workers/", views.workers, name="workers"),
    path("workers/<int:worker_id>", views.worker, name="worker-detail"),
    path("workers/<int:worker_id>/drain", views.drain, name="worker-drain"),
    path("workers/<int:worker_id>/undrain", views.undrain, name="worker-undrain"),
]
