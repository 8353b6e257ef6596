from __future__ import annotations

from django.urls import path

from webapp.imports import views

urlpatterns = [
    path("p/<slug:slug>/import", views.trees_import, name="trees-import"),
    path("imports/<int:import_id>/cancel", views.import_cancel, name="import-cancel"),
]
