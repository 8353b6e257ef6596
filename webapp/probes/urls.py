from __future__ import annotations

from django.urls import path

from webapp.probes import views

urlpatterns = [
    path("t/<int:tree_id>/branch", views.branch, name="branch"),
    path("probes/<int:probe_id>/cancel", views.probe_cancel, name="probe-cancel"),
]
